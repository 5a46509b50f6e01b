"""Usage windows: what a window row is keyed by and what it sums (`docs/spec` metering 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

WINDOW_KEY: Final = (
    "tenant_id", "model", "adapter", "region", "tier", "pool",
    "status", "fault", "purpose", "usage_source", "rating_band",
)  # fmt: skip
"""The columns, besides `bucket`, that tell two windows of the same time apart. None is nullable: '' stands for none."""

WINDOW_SUMS: Final = ("events", "requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
"""What a window adds up. `events` counts every event, `requests` only those of kind `usage` (not corrections)."""


@dataclass(frozen=True, slots=True)
class UsageQuantity:
    """Sums of usage over a period for one combination of rating keys.

    Token counts are tokens, `gpu_us` microseconds of GPU time; `input_tokens` includes `cache_hit_tokens`.
    """

    tenant_id: str
    model: str
    adapter: str
    region: str
    tier: str
    status: str
    fault: str
    usage_source: str
    rating_band: str
    requests: int
    input_tokens: int
    cache_hit_tokens: int
    output_tokens: int
    gpu_us: int


@dataclass(frozen=True, slots=True)
class AttemptUsage:
    """An event of a request that was dispatched more than once: its attempt, when it completed, and what it counts.

    A correction counts under its attempt, and as no request.
    """

    request_id: str
    attempt: int
    completed_at: datetime
    quantity: UsageQuantity
