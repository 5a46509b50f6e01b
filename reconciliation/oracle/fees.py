"""Fees: flat, per seat, of a prepaid quantity, and one-off (money.md 4, 13.9)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Charge
from reconciliation.oracle.line import Line
from reconciliation.oracle.rational import ZERO, at_twelve
from reconciliation.oracle.segments import Naming, Stretch, share


def in_arrears(period: Period, stretches: Sequence[Stretch], name: Naming) -> list[Line]:
    """The fees of a period that are billed at its end, each piece to the end of its stretch."""
    return [
        line
        for stretch in stretches
        for charge in stretch.version.charges.values()
        if not charge.in_advance
        for line in fee_lines(charge, stretch, period, stretch.end, name)
    ]


def fee_lines(charge: Charge, stretch: Stretch, period: Period, end: int, name: Naming) -> list[Line]:
    """The charge's fee for [stretch's start, end), and its discount; a one-off where its plan begins."""
    if charge.model == "one_off":
        begins = stretch.segment.begins and stretch.start == stretch.segment.start
        amount = charge.fee if begins else ZERO
    elif charge.has_fee:
        amount = piece(_full_fee(charge, stretch), stretch.start, end, period)
    else:
        amount = ZERO
    if not amount:
        return []
    key = name(charge.key, stretch.pair) + (".fee" if charge.model == "prepaid" else "")
    seats = stretch.segment.seats if charge.model == "seat" else None
    kind = "one_off" if charge.model == "one_off" else "fee"
    lines = [Line(key, kind, charge.key, stretch.pair, charge.tax_group, amount, quantity=seats)]
    if charge.discount and charge.model != "prepaid":
        off = -at_twelve(amount * charge.discount)
        lines.append(Line(f"{key}.discount", "fee_discount", charge.key, stretch.pair, charge.tax_group, off))
    return lines


def _full_fee(charge: Charge, stretch: Stretch) -> Fraction:
    return charge.fee * stretch.segment.seats if charge.model == "seat" else charge.fee


def piece(price: Fraction, start: int, end: int, period: Period) -> Fraction:
    """round(P·c) at the end − at the start, c = elapsed share of the period: pieces add up to P (4, 13.9)."""
    until = at_twelve(price * share(period.start, end, period))
    return until - at_twelve(price * share(period.start, start, period))


def unused(amount: Fraction, start: int, end: int, at: int) -> Fraction:
    """What of an amount invoiced for [start, end) was not used when it ends at `at` (4, 13.9)."""
    return amount - at_twelve(amount * Fraction(at - start, end - start))
