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

WIDTHS: Final = {"windows_1m": "1 minute", "windows_1h": "1 hour"}
"""The tables of windows, and how much time a row of each holds."""


def add_to_windows(table: str, width: str) -> str:
    """SQL that adds the minutes of `summed` to one window size, in key order so that no two can deadlock."""
    keys, sums = ", ".join(WINDOW_KEY), ", ".join(WINDOW_SUMS)
    summed = ", ".join(f"sum({name})::int8" for name in WINDOW_SUMS)
    added = ", ".join(f"{name} = w.{name} + excluded.{name}" for name in WINDOW_SUMS)
    return f"""
        insert into usage.{table} as w (bucket, {keys}, {sums})
        select time_bucket('{width}', minute) as bucket, {keys}, {summed}
        from summed group by bucket, {keys} order by tenant_id, bucket, {keys}
        on conflict (tenant_id, bucket, {", ".join(WINDOW_KEY[1:])}) do update set {added}
    """


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
