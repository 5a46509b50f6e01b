"""An attempt's event: as it is while nothing more is heard, and as its end makes it."""

from __future__ import annotations

from typing import Final

from msgspec.structs import replace

from serving_adapter.clock import rfc3339
from serving_adapter.engine.attempts import Attempt
from serving_adapter.events import UsageEvent
from serving_adapter.isolation.callers import Caller
from serving_adapter.isolation.rules import Resolved
from serving_adapter.metering.outcome import outcome
from serving_adapter.request_ids import uuid7

PLATFORM: Final = "_platform"


def lost_event(
    caller: Caller, model: Resolved, request_id: str, client_request_id: str | None, *, now_ns: int, region: str,
    pool: str,
) -> UsageEvent:  # fmt: skip
    """The event of a request that is about to begin, as it is if nothing more is heard of it."""
    now = rfc3339(now_ns)
    trusted = caller.request_id is not None and caller.attempt is not None
    return UsageEvent(
        tenant_id=caller.tenant_id,
        request_id=request_id,
        attempt=caller.attempt or 1 if trusted else 1,
        parent_request_id=None if trusted else caller.request_id,
        client_request_id=caller.client_request_id or client_request_id,
        model=model.model,
        model_revision=model.model_revision or None,
        adapter=model.adapter or None,
        adapter_revision=model.adapter_revision or None,
        input_tokens=0,
        output_tokens=0,
        timestamp=now,
        started_at=now,
        status="lost",
        fault="platform",
        finish_reason=_item(caller),
        usage_source="estimate",
        tier=caller.tier,
        region=region,
        pool=pool,
        purpose=caller.purpose,
        api_key_id=caller.api_key_id,
        labels=caller.labels,
    )


def event_of_nobody(now_ns: int, model: str, region: str, pool: str) -> UsageEvent:
    """The same of work that belongs to no request: an itemised row of the platform."""
    at = rfc3339(now_ns)
    return UsageEvent(
        tenant_id=PLATFORM, request_id=uuid7(now_ns), model=model, input_tokens=0, output_tokens=0, timestamp=at,
        started_at=at, status="lost", fault="platform", finish_reason="orphaned", usage_source="estimate",
        region=region, pool=pool,
    )  # fmt: skip


def ended_event(lost: UsageEvent, attempt: Attempt, *, duration_s: float, first_token_s: float | None) -> UsageEvent:
    """What has become of it."""
    counts, how = attempt.counts(), outcome(attempt.seen)
    return replace(
        lost,
        status=how.status,
        fault=how.fault,
        finish_reason=lost.finish_reason or how.finish_reason[:256],
        usage_source=attempt.source,
        input_tokens=counts.input_tokens,
        output_tokens=counts.output_tokens,
        cache_hit_tokens=counts.cache_hit_tokens,
        duration_ms=int(duration_s * 1000),
        ttft_ms=None if first_token_s is None else int(first_token_s * 1000),
        gpu_us=attempt.known_gpu_us,
        **counts.of_engine,
    )


def _item(caller: Caller) -> str:
    """What an itemised row of the platform is (docs/spec/metering.md 1.6); a tenant's event says how it ended."""
    return caller.purpose if caller.tenant_id.startswith("_") and caller.purpose != "tenant" else ""
