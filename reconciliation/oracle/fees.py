"""Fees: flat, per seat, of a prepaid quantity, and one-off (money.md 4, 13.9)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Charge
from reconciliation.oracle.line import Line
from reconciliation.oracle.rational import ZERO, at_twelve
from reconciliation.oracle.segments import Naming, PeriodPlan, Stretch, share


def in_arrears(period: Period, stretches: Sequence[Stretch], name: Naming) -> list[Line]:
    """The fees of a period that are billed at its end, each piece to the end of its stretch."""
    found = [
        fee_line(charge, stretch, stretches[:n], period, stretch.end, name)
        for n, stretch in enumerate(stretches)
        for charge in stretch.version.charges.values()
        if not charge.in_advance
    ]
    return [line for line in found if line]


def fee_line(
    charge: Charge, stretch: Stretch, earlier: Sequence[Stretch], period: Period, end: int, name: Naming
) -> Line | None:
    """The charge's fee for [stretch's start, end); a one-off where its plan begins.

    One that is not prorated (4: "where prorated") is due once in a period, where that or its plan begins; later on only
    for seats that are more than the period had (decision 58). `earlier`: the stretches of the period before this one.
    """
    seats = stretch.segment.seats if charge.seats is None else charge.seats
    had = _since_the_plan_began(earlier, stretch)
    if not charge.prorated and had:
        more = seats - max(one.segment.seats for one in had)
        seats = max(ZERO, more) if charge.seats is None else ZERO
    if charge.model == "one_off":
        begins = stretch.segment.begins and stretch.start == stretch.segment.start
        amount = charge.fee if begins else ZERO
    elif charge.has_fee and not charge.prorated:
        amount = at_twelve(_full_fee(charge, seats)) if charge.model == "seat" or not had else ZERO
    elif charge.has_fee:
        amount = piece(_full_fee(charge, seats), stretch.start, end, period)
    else:
        amount = ZERO
    if not amount:
        return None
    key = name(charge.key, stretch.pair) + (".fee" if charge.model == "prepaid" else "")
    kind, quantity = "one_off" if charge.model == "one_off" else "fee", seats if charge.model == "seat" else None
    return Line(key, kind, charge.key, stretch.pair, charge.tax_group, amount, quantity=quantity)


def _since_the_plan_began(earlier: Sequence[Stretch], stretch: Stretch) -> Sequence[Stretch]:
    """Of the period's stretches before one those on its plan since that began, or the period did."""
    every = [*earlier, stretch]
    begins = [n for n, one in enumerate(every) if one.segment.begins and one.start == one.segment.start]
    return every[max(begins, default=0) : -1]


def named(plan: PeriodPlan, line: Line) -> str:
    """By what a grant can name the fee that a line is of: its charge, but not a prepaid one (6)."""
    prepaid = line.pair is not None and plan.charge(line.charge, line.pair).model == "prepaid"
    return f"{line.charge}.fee" if prepaid else line.charge


def _full_fee(charge: Charge, seats: Fraction) -> Fraction:
    return charge.fee * seats if charge.model == "seat" else charge.fee


def piece(price: Fraction, start: int, end: int, period: Period) -> Fraction:
    """round(P·c) at the end − at the start, c = elapsed share of the period: pieces add up to P (4, 13.9)."""
    until = at_twelve(price * share(period.start, end, period))
    return until - at_twelve(price * share(period.start, start, period))


def unused(amount: Fraction, start: int, end: int, at: int) -> Fraction:
    """What of an amount invoiced for [start, end) was not used when it ends at `at` (4, 13.9)."""
    return amount - at_twelve(amount * Fraction(at - start, end - start))
