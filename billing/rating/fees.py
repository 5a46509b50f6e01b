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


def fees_in_arrears(pieces: Sequence[Piece], period: BillingPeriod) -> list[FeeAmount]:
    """What the pieces of a period that have a length owe at its end."""
    found = []
    held = [piece for piece in pieces if piece.start < piece.end]
    for number, piece in enumerate(held):
        opens = number == 0 or held[number - 1].segment_no != piece.segment_no
        for charge in piece.version.charges:
            if charge.timing is Timing.ARREARS:
                fee = fee_for(piece, charge, piece.end, period, opens_segment=opens)
                if fee is not None:
                    found.append(fee)
    return found


def fee_for(
    piece: Piece, charge: Charge, until: datetime, period: BillingPeriod, *, opens_segment: bool
) -> FeeAmount | None:
    """The fee of a charge from the piece's start until a moment; None if it has none or none is due.

    A fee that is not prorated is due whole once for each subscription segment in the period.
    """
    pricing, seats, unit_price = charge.pricing, None, None
    match pricing:
        case Flat() | Prepaid():
            price = pricing.fee
        case Seat():
            seats = pricing.seats if pricing.seats is not None else Decimal(piece.subscription.seats or 0)
            with exactly():
                price, unit_price = pricing.fee * seats, pricing.fee
        case OneOff():
            price = pricing.fee
        case _:
            return None
    if isinstance(pricing, OneOff):
        amount = quantise_line(price) if piece.begins_plan else Decimal(0)
    elif not charge.prorated:
        amount = quantise_line(price) if opens_segment else Decimal(0)
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
