"""What a period that goes on has come to, by both ratings: random plans and usage, until any second of each period."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from random import Random
from typing import Any, Final

import pytest

from billing.plans.subscriptions import pieces
from billing.rating.lines import Naming
from billing.rating.period import accrued_lines
from billing.rating.usage_events import billable, usage_by_piece
from reconciliation.oracle.calendar import instant
from reconciliation.oracle.reading import read_case
from reconciliation.oracle.statement import accrued
from tests.money.product import TENANT, history_of
from tests.simulation.money import generator

SEED: Final = 1
CASES: Final = 200
OF_DISCOUNTS: Final = (1048, 1535, 1584, 2429, 3577)
"""Cases in which a discount is off a prepaid charge's fee and its overage."""
BEGAN: Final = datetime(2000, 1, 1, tzinfo=UTC)

Amounts = dict[tuple[str, str], Fraction]
"""By line and tax group."""


def untils(number: int) -> list[datetime]:
    """A second of each period of a case."""
    random = Random(number)
    return [
        period.start + timedelta(seconds=random.randrange(1, int((period.end - period.start).total_seconds())))
        for period in history_of(generator.simulated(SEED, number).case).periods
    ]


def first(case: Any, until: list[datetime]) -> list[Amounts]:
    history = history_of(case)
    found = []
    for period, moment in zip(history.periods, until, strict=True):
        events = [each for each in billable(history.events, history.terms) if each.completed_at < moment]
        used, _ = usage_by_piece(events, history.subscriptions, history.versions, period, history.terms)
        segments = max((p.segment_no for p in pieces(history.subscriptions, history.versions, period)), default=1)
        naming = Naming({TENANT: segments}, {name: len(versions) for name, versions in history.versions.items()})
        sums: Amounts = defaultdict(Fraction)
        for line in accrued_lines(period, used, history.terms, moment):
            sums[naming.key(line.identity), line.tax_group] += Fraction(line.amount)
        found.append({key: amount for key, amount in sums.items() if amount})
    return found


def second(plain: Any, until: list[datetime]) -> list[Amounts]:
    case = read_case(plain)
    found = []
    for period, moment in zip(case.periods, until, strict=True):
        sums: Amounts = defaultdict(Fraction)
        at = instant("2000-01-01T00:00:00Z") + (moment - BEGAN) // timedelta(microseconds=1)
        for line in accrued(case, period, case.usage, at):
            sums[line.key, line.group] += line.amount
        found.append({key: amount for key, amount in sums.items() if amount})
    return found


@pytest.mark.parametrize("numbers", [range(CASES), OF_DISCOUNTS], ids=["any", "discounts of fee and overage"])
def test_both_ratings_accrue_the_same(numbers: range | tuple[int, ...]) -> None:
    lines = 0
    for number in numbers:
        case = generator.simulated(SEED, number).case
        until = untils(number)
        found = first(case, until)
        assert found == second(case, until), f"seed {SEED}, case {number}"
        lines += sum(len(sums) for sums in found)
    assert lines > len(numbers)
