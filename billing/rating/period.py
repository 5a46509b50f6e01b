"""One tenant's billing period rated: the order of computation of docs/spec/money.md 3, up to the credits.

Usage charges → free allowances → line discounts → minimum and maximum → fees → invoice discounts → true-up. Credits and
tax belong to the billing account (billing/bills/credits.py, billing/bills/documents.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction

from billing.errors import AmountTooLarge
from billing.money import decimal_of, plain, quantise_pieces, total
from billing.periods import BillingPeriod
from billing.plans.price_plans import Charge, Terms
from billing.plans.subscriptions import Piece
from billing.rating import adjustments, metered
from billing.rating.adjustments import ChargeLine, InvoiceDiscounted
from billing.rating.advance import INVOICE, InAdvance, in_advance
from billing.rating.allowances import free_units
from billing.rating.fees import fees_in_arrears
from billing.rating.lines import LineKind, RatedLine
from billing.rating.made_lines import fee_line, line_of, period_line
from billing.rating.positions import Counted, by_charge
from billing.rating.usage import PieceUsage

AMOUNT_MAX = Decimal(10) ** 12
"""Major units per tenant and period. Beyond it a price is mistaken; thousands of such tenants on one account still fit
the minor units of an invoice (a bigint) and the 18 digits of a posting."""


@dataclass(frozen=True, slots=True, order=True)
class Coverable:
    """What of a charge came to be at a time of usage, after all discounts: what a credit may be drawn for.

    `model`: of which model, '' for what is of none; None where models are not told apart.
    """

    at: datetime
    charge_key: str
    tax_group: str
    amount: Fraction
    is_fee: bool = False
    model: str | None = None


@dataclass(frozen=True, slots=True)
class RatedPeriod:
    """A tenant's period: its lines, and what credits can cover by time of usage."""

    lines: tuple[RatedLine, ...]
    coverable: tuple[Coverable, ...]


NOTHING_RATED = RatedPeriod((), ())


def rate_period(
    period: BillingPeriod, used: Sequence[PieceUsage], terms: Terms, *, by_model: bool = False
) -> RatedPeriod:
    """The lines of a tenant's period, in order of their identity, and what credits can cover of them.

    `used` has every piece of the period in order, also those without usage. Neither the order of the usage in a piece
    nor how it is split into parts changes a line. `by_model`: what credits can cover is told apart by model. Raises
    AmountTooLarge.
    """
    if not used:
        return NOTHING_RATED
    pieces = [each.piece for each in used]
    whole, by_key, counted, discounted = _rated(period, used, terms)
    return RatedPeriod(whole, tuple(sorted(_coverable(by_key, counted, discounted, pieces, by_model))))


def rate_lines(period: BillingPeriod, used: Sequence[PieceUsage], terms: Terms) -> tuple[RatedLine, ...]:
    """The lines alone. Raises AmountTooLarge."""
    return _rated(period, used, terms)[0] if used else ()


def accrued_lines(
    period: BillingPeriod, used: Sequence[PieceUsage], terms: Terms, until: datetime
) -> tuple[RatedLine, ...]:
    """What a period that goes on has come to by a moment: accrued then, not billed (docs/spec/money.md 1 and 9).

    `used` is the usage until then; it is rated over whole pieces, as it will be in the end. Fees in arrears accrue by
    the second; line discounts are off both. Minimum, maximum, invoice discount and true-up are known at the period's
    end alone. Raises AmountTooLarge.
    """
    pieces = [each.piece for each in used]
    lines = _usage_lines(by_charge(used, period), terms)
    _add_fees(lines, pieces, period, until)
    given = in_advance(pieces, period).discounted if used else {}
    for key in sorted(lines):
        _discount(lines[key], pieces, period, given.get(key, adjustments.NOTHING))
    return _checked([each.line for listed in lines.values() for each in listed], pieces)


def _rated(
    period: BillingPeriod, used: Sequence[PieceUsage], terms: Terms
) -> tuple[tuple[RatedLine, ...], dict[str, list[ChargeLine]], Mapping[str, Sequence[Counted]], InvoiceDiscounted]:
    """The lines; what they come from by charge; what was counted; what the invoice discount takes of which."""
    pieces = [each.piece for each in used]
    counted = by_charge(used, period)
    lines = _usage_lines(counted, terms)
    _add_fees(lines, pieces, period, period.end)
    advance = in_advance(pieces, period)
    charges = _charges_by_key(pieces)
    for key in sorted({*lines, *charges}):  # a piece without length has lines where usage is priced at its start
        _adjust(lines[key], charges[key], pieces, period, advance.discounted.get(key, adjustments.NOTHING))
    found = [each for listed in lines.values() for each in listed]
    given = advance.discounted.get(INVOICE, adjustments.NOTHING)
    discounted = adjustments.invoice_discount(found, pieces, period, given)
    closing = _closing_lines(found, discounted, advance, pieces, period)
    whole = _checked([*(each.line for each in found), *closing], pieces)
    return whole, lines, counted, discounted


def _checked(lines: Sequence[RatedLine], pieces: Sequence[Piece]) -> tuple[RatedLine, ...]:
    """Lines in order of their identity. Raises AmountTooLarge."""
    if (amount := total(line.amount for line in lines)) > AMOUNT_MAX:
        raise AmountTooLarge(
            f"tenant {lines[0].identity.tenant_id}: its usage comes to {plain(amount)} {lines[0].currency}, more than"
            f" {plain(AMOUNT_MAX)}: look at the prices of plan {pieces[0].version.plan}"
        )
    return tuple(sorted(lines, key=lambda line: line.identity))


def _usage_lines(counted: Mapping[str, Sequence[Counted]], terms: Terms) -> dict[str, list[ChargeLine]]:
    """Usage by charge, quantised cumulatively per segment in the order of price version, then tier (13.2)."""
    free = free_units(counted, weighted=terms.weighted_allowances)
    found: dict[str, list[ChargeLine]] = defaultdict(list)
    for key, listed in counted.items():
        by_segment: dict[int, list[metered.Amount]] = defaultdict(list)
        for amount in metered.amounts(listed, free, weighted=terms.weighted_allowances):
            by_segment[amount.of.piece.segment_no].append(amount)
        for amounts in by_segment.values():
            quantised = quantise_pieces(each.amount for each in amounts)
            # What was counted in a piece ends as a decimal, so units of its lines that add up do so in a segment too.
            units = iter(quantise_pieces(part for each in amounts for part in _units(each)))
            found[key] += [
                ChargeLine(
                    each.of.piece_no, each.of.charge, _usage_line(each, exact, next(units), next(units), next(units))
                )
                for each, exact in zip(amounts, quantised, strict=True)
            ]
    return found


def _units(amount: metered.Amount) -> tuple[Fraction, Fraction, Fraction]:
    return amount.quantity, amount.free, amount.included or Fraction(0)


def _usage_line(
    amount: metered.Amount, exact: Decimal, quantity: Decimal, free: Decimal, included: Decimal
) -> RatedLine:
    line = line_of(amount.of.piece, amount.of.charge, amount.kind, exact, tier_no=amount.tier_no)
    ends = (Fraction(quantity), Fraction(free)) == (amount.quantity, amount.free)
    return replace(
        line,
        quantity=quantity,
        unit_price=amount.unit_price,
        units=None if amount.units is None else decimal_of(amount.units),
        free=free,
        included=None if amount.included is None else included,
        split=None if ends else (amount.quantity, amount.free),
    )


def _charges_by_key(pieces: Sequence[Piece]) -> dict[str, dict[int, Charge]]:
    """Each charge as it is in the pieces that have a length, by number of the piece."""
    found: dict[str, dict[int, Charge]] = defaultdict(dict)
    for number, piece in enumerate(pieces):
        if piece.start < piece.end:
            for charge in piece.version.charges:
                found[charge.key][number] = charge
    return found


def _add_fees(
    lines: dict[str, list[ChargeLine]], pieces: Sequence[Piece], period: BillingPeriod, until: datetime
) -> None:
    for fee in fees_in_arrears(pieces, period, until):
        lines[fee.charge.key].append(ChargeLine(pieces.index(fee.piece), fee.charge, fee_line(fee)))


def _discount(lines: list[ChargeLine], pieces: Sequence[Piece], period: BillingPeriod, given: Fraction) -> None:
    """Add a charge's discounts, of which `given` was had in advance."""
    for number, charge, amount in adjustments.line_discounts(lines, pieces, period, given):
        of_fee = Fraction(amount) * adjustments.share_of_fees(each for each in lines if each.piece_no == number)
        lines.append(ChargeLine(number, charge, line_of(pieces[number], charge, LineKind.DISCOUNT, amount), of_fee))


def _adjust(
    lines: list[ChargeLine], charges: Mapping[int, Charge], pieces: Sequence[Piece], period: BillingPeriod,
    given: Fraction,
) -> None:  # fmt: skip
    """Add a charge's discounts, of which `given` was had in advance, and what brings it to its minimum or maximum."""
    _discount(lines, pieces, period, given)
    limited = adjustments.limit(lines, charges, pieces, period) if charges else None
    if limited is not None:
        kind, amount = limited
        number, charge = max(charges.items())
        line = period_line(pieces, charge.key, kind, amount, charge.tax_group)
        off = kind is LineKind.MAXIMUM
        of_fee = Fraction(amount) * adjustments.share_of_fees(lines) if off else adjustments.NOTHING
        lines.append(ChargeLine(number, charge, replace(line, metric=charge.metric), of_fee))


def _closing_lines(
    lines: Sequence[ChargeLine],
    discounted: InvoiceDiscounted,
    advance: InAdvance,
    pieces: Sequence[Piece],
    period: BillingPeriod,
) -> list[RatedLine]:
    kind = LineKind.INVOICE_DISCOUNT
    several = len(discounted.by_group) > 1
    found = [
        period_line(pieces, f"{kind}.{group}" if several else kind.value, kind, amount, group)
        for group, amount in discounted.by_group.items()
    ]
    missing = adjustments.true_up(lines, discounted, advance.net, pieces, period)
    if missing is not None:
        amount, group = missing
        found.append(period_line(pieces, "true_up", LineKind.TRUE_UP, amount, group))
    return found


def _coverable(
    lines: Mapping[str, Sequence[ChargeLine]],
    counted: Mapping[str, Sequence[Counted]],
    discounted: InvoiceDiscounted,
    pieces: Sequence[Piece],
    by_model: bool,
) -> list[Coverable]:
    """Each charge's amount by time of usage: a piece's lines over its parts by quantity, then all by one factor.
    What is less than nothing, as a refund, takes its share off all others of the charge.

    The factor brings in what belongs to the whole charge: minimum, maximum and its part of the invoice discount.
    What has no usage to stand beside (a fee; a minimum without usage) counts at the start or end of its service.
    """
    found: list[Coverable] = []
    for key, listed in lines.items():
        for is_usage in (True, False):
            own = [(each, amount) for each in listed if (amount := each.part(usage=is_usage))]
            comes_to = sum((amount for _, amount in own), discounted.on(key, usage=is_usage))
            if comes_to > 0:
                of = counted.get(key, ()) if is_usage else ()
                found += _by_time(own, not is_usage, comes_to, of, pieces, by_model)
    found = [each for each in found if each.amount > 0]
    return [replace(each, model=each.model or "") for each in found] if by_model else found


def _by_time(
    lines: Sequence[tuple[ChargeLine, Fraction]], is_fee: bool, comes_to: Fraction, counted: Sequence[Counted],
    pieces: Sequence[Piece], by_model: bool,
) -> list[Coverable]:  # fmt: skip
    last = lines[-1][0].charge
    key = f"{last.key}.fee" if is_fee and not last.is_fee else last.key
    by_piece: dict[int, Fraction] = defaultdict(Fraction)
    charges: dict[int, Charge] = {}
    for each, amount in lines:
        if each.line.identity.segment_no:
            by_piece[each.piece_no] += amount
            charges[each.piece_no] = each.charge
    whole = sum(by_piece.values(), Fraction(0))
    if whole <= 0:  # a minimum stands alone, which is the last line
        at = pieces[-1].end - timedelta(microseconds=1)
        return [Coverable(at, key, last.tax_group, comes_to, is_fee)]
    above = sum((amount for amount in by_piece.values() if amount > 0), Fraction(0))
    of_piece: dict[int, Counted] = {}
    for each_time in counted:
        before = of_piece.get(each_time.piece_no)
        parts = (*(before.parts if before else ()), *each_time.parts)
        of_piece[each_time.piece_no] = replace(each_time, parts=parts)
    return [
        part
        for number, amount in by_piece.items()
        if amount > 0
        for part in _timed(
            charges[number], key, amount * comes_to / above, of_piece.get(number), pieces[number], is_fee, by_model
        )
    ]


def _timed(
    charge: Charge, key: str, amount: Fraction, of: Counted | None, piece: Piece, is_fee: bool, by_model: bool
) -> list[Coverable]:
    weights = [max(Fraction(0), weight) for weight in metered.event_amounts(of)] if of is not None else []
    whole = sum(weights, Fraction(0))
    if of is None or not whole:
        return [Coverable(piece.start, key, charge.tax_group, amount, is_fee)]
    by_time: dict[tuple[datetime, str | None], Fraction] = defaultdict(Fraction)
    for (at, _, model), weight in zip(of.parts, weights, strict=True):
        by_time[at, model if by_model else None] += weight
    return [
        Coverable(at, key, of.charge.tax_group, amount * weight / whole, model=model)
        for (at, model), weight in by_time.items()
    ]
