"""Rated lines as they are made: of a charge in a piece, of a fee, of the whole period."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal

from billing.plans.price_plans import Charge
from billing.plans.subscriptions import Piece
from billing.rating.fees import FeeAmount
from billing.rating.lines import LineIdentity, LineKind, RatedLine


def line_of(piece: Piece, charge: Charge, kind: LineKind, amount: Decimal, *, tier_no: int = 0) -> RatedLine:
    """A line of a charge in a piece; what it counted is added by whoever knows."""
    where = charge.where
    return RatedLine(
        identity=LineIdentity(
            tenant_id=piece.subscription.tenant_id,
            charge_key=charge.key,
            segment_no=piece.segment_no,
            version=piece.version.version,
            tier_no=tier_no,
            kind=kind.value,
            plan=piece.version.plan,
            subscription_id=piece.subscription.subscription_id,
        ),
        metric=charge.metric,
        where=(where.model or "", where.adapter or "", where.region or "", where.tier or ""),
        billing_account=piece.subscription.billing_account,
        currency=piece.version.currency,
        service_start=piece.start,
        service_end=piece.end,
        unit_price=None,
        quantity=Decimal(0),
        amount=amount,
        reason=kind.value,
        tax_group=charge.tax_group,
    )


def period_line(pieces: Sequence[Piece], key: str, kind: LineKind, amount: Decimal, tax_group: str) -> RatedLine:
    """A line that belongs to the whole period."""
    last = pieces[-1]
    return RatedLine(
        identity=LineIdentity(
            last.subscription.tenant_id,
            key,
            0,
            last.version.version,
            0,
            kind.value,
            last.version.plan,
            last.subscription.subscription_id,
        ),
        metric="",
        where=("", "", "", ""),
        billing_account=last.subscription.billing_account,
        currency=last.version.currency,
        service_start=pieces[0].start,
        service_end=last.end,
        unit_price=None,
        quantity=Decimal(0),
        amount=amount,
        reason=kind.value,
        tax_group=tax_group,
    )


def credit_line(like: RatedLine, key: str, amount: Decimal, tax_group: str) -> RatedLine:
    """A line of credit of an amount: whose and of what time a line is like which it stands among."""
    identity = replace(like.identity, charge_key=key, segment_no=0, tier_no=0, kind=LineKind.CREDIT.value)
    return replace(
        like, identity=identity, metric="", where=("", "", "", ""), unit_price=None, quantity=Decimal(0), amount=amount,
        units=None, free=Decimal(0), included=None, reason=LineKind.CREDIT.value, tax_group=tax_group,
    )  # fmt: skip


def fee_line(fee: FeeAmount) -> RatedLine:
    """The line of a fee."""
    line = line_of(fee.piece, fee.charge, fee.kind, fee.amount)
    return line if fee.seats is None else replace(line, quantity=fee.seats, unit_price=fee.unit_price)
