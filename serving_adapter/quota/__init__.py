"""Asking for quota before a request: out of a slice in this process, at the service, or by fail mode without it."""

from serving_adapter.quota.gate import Admission, QuotaGate
from serving_adapter.quota.pool import Pool, PoolFull
from serving_adapter.quota.settings import GateSettings

__all__ = ["Admission", "GateSettings", "Pool", "PoolFull", "QuotaGate"]
