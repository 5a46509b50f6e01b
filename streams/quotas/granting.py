"""How large a slice may be that somebody else decides upon. Pure."""

from __future__ import annotations

from typing import NamedTuple

from streams.quotas.amounts import Counts, amount
from streams.quotas.book import TenantBook
from streams.quotas.meters import BudgetMeter, Meter, RateMeter


class Slice(NamedTuple):
    """Requests, tokens, and concurrent requests."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    slots: int = 0


def grant(book: TenantBook, model: str, adapter: str, want: Slice, now: int, parts: int) -> Slice:
    """The largest slice of the form of `want` that fits into one part of so many of what each hard quota has left; all
    0 where one has nothing, or where a soft one has reached its first threshold."""
    book.roll(now)
    requests, input_tokens, output_tokens, slots = want
    price = book.meters.highest_price_of_slice(model, now)
    dearest = price._replace(input=max(price.input, price.cached_input))
    for meter in book.meters.of(model, adapter):
        quota = meter.quota
        if not quota.hard:
            if isinstance(meter, BudgetMeter) and quota.thresholds and meter.percent >= quota.thresholds[0]:
                return Slice()  # its requests are put back and shortened, each by the service
            continue
        room = max(_room(meter, now), 0) // parts
        counts = Counts(requests, input_tokens, input_tokens, output_tokens)
        if quota.metric == "concurrency":
            slots = min(slots, room)
            continue
        if room == 0:
            return Slice()
        if quota.metric == "gpu_seconds":
            continue
        if quota.metric == "spend":
            counts = counts._replace(cached_tokens=0)
        needed = amount(quota.metric, counts, dearest)
        if needed <= room:
            continue
        if quota.metric in ("requests", "spend"):
            requests = requests * room // needed
        if quota.metric in ("input_tokens", "cached_input_tokens", "total_tokens", "spend"):
            input_tokens = input_tokens * room // needed
        if quota.metric in ("output_tokens", "total_tokens", "spend"):
            output_tokens = output_tokens * room // needed
    granted = Slice(requests, input_tokens, output_tokens, slots)
    empty = any(wanted and not given for wanted, given in zip(want, granted, strict=True))
    return Slice() if empty else granted


def _room(meter: Meter, now: int) -> int:
    if isinstance(meter, BudgetMeter):
        return meter.room(0, 100)
    if isinstance(meter, RateMeter):
        return meter.rate.room(now, meter.quota.limit)
    return meter.quota.limit - meter.in_use - meter.leased
