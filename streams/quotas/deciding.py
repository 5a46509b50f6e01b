"""Whether a request fits under its tenant's quotas. Pure: it changes nothing but what the clock changes."""

from __future__ import annotations

from streams.quotas.decisions import Ask, Because, Limits, Refused, Wall
from streams.quotas.entries import Reserved
from streams.quotas.meter_set import MeterSet
from streams.quotas.meters import Meter, RateMeter, SlotMeter
from streams.quotas.outputs import RecentOutputs

SOON_US = 1_000_000
"""When to come again after requests in flight took what there is: they are settled within seconds."""
SOFT_STEP = 10
"""By how much each threshold that is passed puts a tenant's requests back."""


def judge(
    ask: Ask, meters: MeterSet, outputs: RecentOutputs, limits: Limits, now: int, *, priority: int, share: int,
    in_flight: bool,
) -> Reserved | Refused:  # fmt: skip
    """The entry that admits a request, or the quotas that it does not fit under.

    A budget must hold what is used, what may still come of what is in flight, and this request's bound together. A
    request that asks for more output than there is room for gets fewer tokens, down to the quotas' floor, where they
    let it. `share` = percent of what remains that may be promised. `in_flight`: another attempt of it holds a slot.
    """
    copies = ask.copies
    wanted = granted = ask.max_tokens if ask.max_tokens is not None else limits.default_max_tokens
    cap = wanted * copies
    expected = outputs.expected(wanted) * copies
    limited_by: list[str] = []
    walls: list[Wall] = []
    covering = meters.covering(ask.model, ask.adapter)
    budgets, rates = covering.bounds(meters.highest_price(ask.model, now))
    tight: list[tuple[Meter, int, int, int]] = []  # meters in which it does not fit as it is; room and bound
    for meter, each, per_input, per_output in budgets:
        by_input = each + per_input * ask.input_tokens
        room = meter.room(by_input + per_output * expected, share)
        if room < by_input + per_output * cap:
            tight.append((meter, room, by_input, per_output))
        quota = meter.quota
        if quota.thresholds and not quota.hard:
            percent = meter.percent
            passed = sum(each <= percent for each in quota.thresholds)
            if passed:
                priority += SOFT_STEP * passed
                if quota.on_shrink == "allow":
                    usual = outputs.median(wanted) if percent >= 100 else outputs.expected(wanted)
                    granted = min(granted, max(usual, quota.min_tokens))
                limited_by.append(quota.quota_id)
    for rate, each, per_input, per_output in rates:
        by_input = each + per_input * ask.input_tokens
        needed = by_input + per_output * cap
        if rate.quota.hard and (room := rate.rate.room(now, needed)) < needed:
            tight.append((rate, room, by_input, per_output))
    if not in_flight:
        tight += [(slot, 0, 1, 0) for slot in covering.slots if slot.quota.hard and not slot.room(share)]
    for wall, room, by_input, per_output in tight:
        quota = wall.quota
        # Whole answers: what is left over by dividing is not promised
        fits = (room - by_input) // (per_output * copies) if per_output else -1
        least = min(quota.min_tokens, wanted) if quota.on_shrink == "allow" else wanted
        if fits < least:
            needed, probably = (by_input + per_output * output for output in (least * copies, expected))
            walls.append(_wall(wall, needed, probably, max(room, 0), share, now))
        else:
            limited_by.append(quota.quota_id)
            granted = min(granted, fits)
    if walls:
        return Refused(ask, now, tuple(walls), tuple(meters.standings(ask.model, ask.adapter, now)))
    cap = granted * copies
    return Reserved(
        ask.tenant_id, ask.request_id, ask.attempt, now, ask.model, ask.adapter, ask.tier, ask.input_tokens, cap,
        min(expected, cap), granted, ask.asked, copies, now + limits.held_us, tuple(limited_by), priority, ask.nonce,
    )  # fmt: skip


def _wall(meter: Meter, needed: int, probably: int, room: int, share: int, now: int) -> Wall:
    quota = meter.quota
    because: Because
    wait: int | None = SOON_US
    if isinstance(meter, RateMeter):
        wait = meter.rate.wait_us(now, needed)
        because = "rate" if wait is not None else "never"
    elif isinstance(meter, SlotMeter):
        because = "concurrency"
    elif needed > meter.room_alone(probably, 0):
        because, wait = "never", None
    elif needed > meter.room_alone(probably, meter.used) or quota.metric == "gpu_seconds":
        because, wait = "spent", meter.end - now
    else:
        because = "learning" if share != 100 and meter.remaining >= needed else "in_flight"
    return Wall(quota, because, needed, room, wait)
