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
        fee_line(charge, stretch, period, stretch.end, name)
        for stretch in stretches
        for charge in stretch.version.charges.values()
        if not charge.in_advance
    ]
    return [line for line in found if line]


def fee_line(charge: Charge, stretch: Stretch, period: Period, end: int, name: Naming) -> Line | None:
    """The charge's fee for [stretch's start, end); a one-off where its plan begins.

    One that is not prorated (4: "where prorated") is due whole where a segment begins.
    """
    if charge.model == "one_off":
        begins = stretch.segment.begins and stretch.start == stretch.segment.start
        amount = charge.fee if begins else ZERO
    elif charge.has_fee and not charge.prorated:
        amount = at_twelve(_full_fee(charge, stretch)) if stretch.start == stretch.segment.start else ZERO
    elif charge.has_fee:
        amount = piece(_full_fee(charge, stretch), stretch.start, end, period)
    else:
        amount = ZERO
    if not amount:
        return None
    key = name(charge.key, stretch.pair) + (".fee" if charge.model == "prepaid" else "")
    seats = stretch.segment.seats if charge.model == "seat" else None
    kind = "one_off" if charge.model == "one_off" else "fee"
    return Line(key, kind, charge.key, stretch.pair, charge.tax_group, amount, quantity=seats)


def named(plan: PeriodPlan, line: Line) -> str:
    """By what a grant can name the fee that a line is of: its charge, but not a prepaid one (6)."""
    prepaid = line.pair is not None and plan.charge(line.charge, line.pair).model == "prepaid"
    return f"{line.charge}.fee" if prepaid else line.charge


def _full_fee(charge: Charge, stretch: Stretch) -> Fraction:
    return charge.fee * stretch.segment.seats if charge.model == "seat" else charge.fee


def piece(price: Fraction, start: int, end: int, period: Period) -> Fraction:
    """round(P·c) at the end − at the start, c = elapsed share of the period: pieces add up to P (4, 13.9)."""
    until = at_twelve(price * share(period.start, end, period))
    return until - at_twelve(price * share(period.start, start, period))


def unused(amount: Fraction, start: int, end: int, at: int) -> Fraction:
    """What of an amount invoiced for [start, end) was not used when it ends at `at` (4, 13.9)."""
    return amount - at_twelve(amount * Fraction(at - start, end - start))
