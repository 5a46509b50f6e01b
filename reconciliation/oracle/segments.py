"""Who was subscribed to what, when, at which version, and in which period of the contract (money.md 1, 2, 3, 13.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import takewhile, zip_longest

from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Agreed, Case, Change, Charge, Plan, Version
from reconciliation.oracle.rational import ZERO

Pair = tuple[int, int]
"""(number of the subscription segment in its period from 1, index of the plan's version): a segment of section 4."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A plan with its seats through [start, end), inside one billing period.

    `begins` says that the plan itself begins here, not only a period or other seats.
    """

    number: int
    plan: Plan
    seats: Fraction
    start: int
    end: int
    begins: bool


@dataclass(frozen=True, slots=True)
class Stretch:
    """One version inside one segment, through [start, end)."""

    pair: Pair
    segment: Segment
    version: Version
    start: int
    end: int


def segments_in(period: Period, changes: Sequence[Change]) -> list[Segment]:
    """The subscription's segments in a period, numbered from 1."""
    result: list[Segment] = []
    before: Plan | None = None
    for i, change in enumerate(changes):
        ends = changes[i + 1].at if i + 1 < len(changes) else period.end
        start, end = max(change.at, period.start), min(ends, period.end)
        if change.plan and start < end:
            begins = change.plan is not before and start == change.at and not change.resumed
            result.append(Segment(len(result) + 1, change.plan, change.seats, start, end, begins))
        before = change.plan
    return result


def stretches_in(segments: Sequence[Segment]) -> list[Stretch]:
    """The (segment, version) pairs that have a time of their own, in their order."""
    result = []
    for segment in segments:
        versions = segment.plan.versions
        for i, version in enumerate(versions):
            start = segment.start if i == 0 else max(segment.start, version.start or segment.start)
            end = segment.end if i + 1 == len(versions) else min(segment.end, versions[i + 1].start or segment.end)
            if start < end:
                result.append(Stretch((segment.number, i), segment, version, start, end))
    return result


def version_at(plan: Plan, moment: int) -> int:
    """Index of the version in force; the first one reaches back as far as it is asked."""
    found = 0
    for i, version in enumerate(plan.versions):
        if version.start is not None and version.start <= moment:
            found = i
    return found


def segment_at(segments: Sequence[Segment], moment: int) -> Segment | None:
    """The segment that contains an instant; none before, after, and between subscriptions."""
    return next((segment for segment in segments if segment.start <= moment < segment.end), None)


def number_in_contract(period: Period, agreed: Sequence[Agreed], moment: int, since: int | None) -> int:
    """Which of its contract's periods a period is, from 1: of those that begin at or after `since`, where it is given.

    The contract is the one of an instant in the period. It begins in its first period, and has the periods of all its
    schedules in whose time some of them lies; a pause is part of it.
    """
    first = max((i for i, one in enumerate(agreed) if one.begins and one.since <= moment), default=0)
    later = takewhile(lambda one: not one.begins, agreed[first + 1 :])
    of_contract = [*agreed[first : first + 1], *later]
    periods: set[Period] = set()
    for one, following in zip_longest(of_contract, of_contract[1:]):
        until = min(period.start, following.since) if following else period.start
        periods.update(one.schedule.periods(one.since, until))
    return 1 + sum(1 for one in periods if one.start < period.start and (since is None or one.start >= since))


def share(start: int, end: int, period: Period) -> Fraction:
    """Active seconds over the period's seconds (3)."""
    return Fraction(end - start, period.end - period.start)


def weighted(amounts: Sequence[tuple[Stretch, Fraction | None]], period: Period) -> Fraction:
    """Σ amount × active share (3) of a billing or tier period; None weighs nothing."""
    return sum((amount * share_within(one, period) for one, amount in amounts if amount is not None), ZERO)


def share_within(held: Segment | Stretch, period: Period) -> Fraction:
    """The share of a period's seconds in which something held; what lies outside is none of it."""
    start, end = max(held.start, period.start), min(held.end, period.end)
    return share(start, end, period) if start < end else ZERO


class Naming:
    """Keys of lines: `charge[.sN][.version]`, each part only where there is more than one (tests/money/README.md)."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._several = len(segments) > 1
        self._plans = {segment.number: segment.plan for segment in segments}

    def __call__(self, charge: str, pair: Pair) -> str:
        number, version = pair
        versions = self._plans[number].versions
        key = f"{charge}.s{number}" if self._several else charge
        return f"{key}.{versions[version].name}" if len(versions) > 1 else key


@dataclass(frozen=True, slots=True)
class PeriodPlan:
    """A period cut into segments and stretches, and how lines are named there."""

    period: Period
    segments: list[Segment]
    stretches: list[Stretch]
    name: Naming
    agreed: Sequence[Agreed]

    def version(self, pair: Pair) -> Version:
        return self.segments[pair[0] - 1].plan.versions[pair[1]]

    def charge(self, key: str, pair: Pair) -> Charge:
        return self.version(pair).charges[key]

    def times(self, charge: Charge, pair: Pair) -> list[Period]:
        """What a charge counts over: the billing period, or shorter tier periods from the contract's anchor on (4)."""
        begun = [one for one in self.agreed if one.since <= self.segments[pair[0] - 1].start] or self.agreed[:1]
        if charge.counted_months is None or not begun or charge.counted_months >= begun[-1].schedule.months:
            return [self.period]
        schedule = replace(begun[-1].schedule, months=charge.counted_months)
        return list(schedule.periods(self.period.start, self.period.end))

    def carriers(self, key: str) -> list[tuple[Stretch, Charge]]:
        """The stretches whose version has the charge."""
        return [(s, s.version.charges[key]) for s in self.stretches if key in s.version.charges]


def period_plan(case: Case, period: Period) -> PeriodPlan:
    found = segments_in(period, case.changes)
    return PeriodPlan(period, found, stretches_in(found), Naming(found), case.agreed)
