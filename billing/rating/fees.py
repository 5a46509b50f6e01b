"""Fees in arrears: flat, per seat, once, and the fee of a prepaid quantity (docs/spec/money.md 4, 13.9).

Proration by the second: with c the elapsed share of the whole period, a piece costs round(P·c at its end) −
round(P·c at its start) at 10⁻¹², so that the pieces of a price add up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from billing.money import exactly, quantise_line
from billing.periods import BillingPeriod
from billing.plans.charge_models import Flat, OneOff, Prepaid, Seat, Timing
from billing.plans.price_plans import Charge
from billing.plans.subscriptions import Piece
from billing.rating.lines import LineKind


@dataclass(frozen=True, slots=True)
class FeeAmount:
    """A fee for a piece. `seats` is None where it does not count them."""

    piece: Piece
    charge: Charge
    kind: LineKind
    amount: Decimal
    seats: Decimal | None
    unit_price: Decimal | None


@dataclass(frozen=True, slots=True)
class DueWhole:
    """What of fees that are not prorated a piece owes: all of them, or those of seats that are more than before."""

    all: bool
    more_seats: int = 0


def due_whole(held: Sequence[Piece], number: int) -> DueWhole:
    """What a piece of a period owes of fees that are not prorated (docs/decisions/0058).

    All where the period or the plan begins; where other seats hold on, or a pause is over, only what seats are more
    than the period had of them since then.
    """
    begins = [n for n in range(number + 1) if n == 0 or (_begins(held, n) and held[n].subscription.begins_plan)]
    if begins[-1] == number:
        return DueWhole(True)
    if not _begins(held, number):
        return DueWhole(False)
    seats = [piece.subscription.seats or 0 for piece in held[begins[-1] : number + 1]]
    return DueWhole(False, max(0, seats[-1] - max(seats[:-1])))


def _begins(held: Sequence[Piece], number: int) -> bool:
    return held[number].segment_no != held[number - 1].segment_no


def fees_in_arrears(pieces: Sequence[Piece], period: BillingPeriod, until: datetime) -> list[FeeAmount]:
    """What the pieces of a period that have a length have come to owe by a moment: its end, or one within it."""
    found = []
    held = [piece for piece in pieces if piece.start < piece.end and piece.start < until]
    for number, piece in enumerate(held):
        for charge in piece.version.charges:
            if charge.timing is Timing.ARREARS:
                fee = fee_for(piece, charge, min(piece.end, until), period, whole=due_whole(held, number))
                if fee is not None:
                    found.append(fee)
    return found


def fee_for(
    piece: Piece, charge: Charge, until: datetime, period: BillingPeriod, *, whole: DueWhole
) -> FeeAmount | None:
    """The fee of a charge from the piece's start until a moment; None if it has none or none is due.

    `whole`: what is due where it is not prorated.
    """
    pricing, seats, unit_price = charge.pricing, None, None
    match pricing:
        case Flat() | Prepaid():
            price = pricing.fee
        case Seat():
            seats = pricing.seats if pricing.seats is not None else Decimal(piece.subscription.seats or 0)
            if not charge.prorated and not whole.all:
                seats = Decimal(whole.more_seats if pricing.seats is None else 0)
            with exactly():
                price, unit_price = pricing.fee * seats, pricing.fee
        case OneOff():
            price = pricing.fee
        case _:
            return None
    if isinstance(pricing, OneOff):
        amount = quantise_line(price) if piece.begins_plan else Decimal(0)
    elif not charge.prorated:
        amount = quantise_line(price) if whole.all or seats else Decimal(0)
    else:
        amount = prorated(price, period.elapsed(piece.start), period.elapsed(until))
    if not amount:
        return None
    kind = LineKind.PREPAID_FEE if isinstance(pricing, Prepaid) else LineKind.FEE
    return FeeAmount(piece, charge, kind, amount, seats, unit_price)


def prorated(price: Decimal, since: Fraction, until: Fraction) -> Decimal:
    """The piece of a price between two elapsed shares."""
    whole = Fraction(price)
    with exactly():
        return quantise_line(whole * until) - quantise_line(whole * since)
