"""Which of a tenant's subscriptions a billing period is of, and since when its contract runs: by its rows as stored.

Rests on the rules and the oracle's calendar alone. Values in, values out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from reconciliation.oracle.calendar import Period, Schedule, day_of, instant, named

Plain = Mapping[str, Any]
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


def held_in(subscriptions: Iterable[Plain], start: str, end: str) -> list[Plain]:
    """Those that have time in the period [start, end) (dates), and are billed by it and not by another schedule's."""
    period = named(f"{start}..{end}")
    return [
        each for each in subscriptions if _has_time(each, period) and _schedule(each).period_at(period.start) == period
    ]


def _has_time(subscription: Plain, period: Period) -> bool:
    ends_at = subscription["ends_at"]
    return instant(subscription["starts_at"]) < period.end and (ends_at is None or instant(ends_at) > period.start)


def agreed(subscriptions: Sequence[Plain]) -> list[dict[str, Any]]:
    """Since when which schedule holds, as the oracle's cases say it; `begins` where a contract begins.

    A contract goes on over changes of plan and seats, which leave no gap, and over pauses: what follows one does not
    begin its plan, or goes on with the trial.
    """
    before = [None, *subscriptions]
    return [_agreed(each, last) for last, each in pairwise(before) if each is not None]


def _agreed(each: Plain, last: Plain | None) -> dict[str, Any]:
    goes_on = last is not None and (
        not each["begins_plan"]
        or each["starts_at"] == last["ends_at"]
        or (each["bills_from"] > each["starts_at"] and each["bills_from"] == last["bills_from"])
    )
    found = {"since": each["starts_at"], "begins": not goes_on, "period": each["terms"].get("period", "month")}
    schedule = _schedule(each)
    return found | ({"anchor": schedule.anchor.isoformat()} if _is_anchored(each) else {})


def _is_anchored(subscription: Plain) -> bool:
    return bool(subscription["terms"].get("anchor", "calendar") != "calendar")


def _schedule(subscription: Plain) -> Schedule:
    """An anniversary begins with the day of the contract's start, UTC (money 1, 13.13)."""
    months = _MONTHS[subscription["terms"].get("period", "month")]
    if not _is_anchored(subscription):
        return Schedule(months)
    return Schedule(months, day_of(instant(subscription["anchored_at"] or subscription["starts_at"])))
