"""What a billing period that goes on has come to by a moment: accrued then, not billed (docs/spec/money.md 1 and 9).

Usage counts as far as it completed; fees in arrears accrue by the second; line discounts go with what they are of.
Minimum, maximum, invoice discount and true-up are known at the period's end alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from billing.periods import BillingPeriod
from billing.plans.charge_models import Prepaid
from billing.plans.price_plans import Terms
from billing.plans.subscriptions import Piece
from billing.rating.lines import LineKind, RatedLine
from billing.rating.period import rate_period
from billing.rating.usage import PieceUsage

_USAGE: Final = (LineKind.USAGE, LineKind.OVERAGE, LineKind.TIER_FEE)
_FEES: Final = (LineKind.FEE, LineKind.PREPAID_FEE)


def accrued_lines(
    period: BillingPeriod, used: Sequence[PieceUsage], terms: Terms, until: datetime
) -> tuple[RatedLine, ...]:
    """The lines of a period with the usage until a moment within it. Raises AmountTooLarge.

    Usage is rated over whole pieces, as it will be in the end; fees over what is over of them.
    """
    with_fee = _charges_with_fee(each.piece for each in used)
    found = [
        line
        for line in rate_period(period, used, terms).lines
        if line.identity.kind in _USAGE
        or (line.identity.kind == LineKind.DISCOUNT and line.identity.charge_key not in with_fee)
    ]
    if with_fee:
        over = [replace(each, piece=cut_off(each.piece, until)) for each in used if each.piece.start < until]
        ends = {(each.piece.segment_no, each.piece.version.version): each.piece.end for each in used}
        found += [
            replace(line, service_end=ends[line.identity.segment_no, line.identity.version])
            for line in rate_period(period, over, terms).lines
            if line.identity.kind in _FEES
            or (line.identity.kind == LineKind.DISCOUNT and line.identity.charge_key in with_fee)
        ]
    return tuple(sorted(found, key=lambda line: line.identity))


def cut_off(piece: Piece, until: datetime) -> Piece:
    """The piece as far as a moment."""
    return replace(piece, end=min(piece.end, until))


def _charges_with_fee(pieces: Iterable[Piece]) -> frozenset[str]:
    return frozenset(
        charge.key
        for piece in pieces
        for charge in piece.version.charges
        if charge.is_fee or isinstance(charge.pricing, Prepaid)
    )
