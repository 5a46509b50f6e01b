"""What is done to the amounts of charges, in the order of docs/spec/money.md 3.

Line discounts → minimum and maximum per charge → invoice discount → true-up of the commitment. A percentage is taken of
quantised lines. Minimum, maximum and commitment are weighted by the active seconds of the pieces.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import zip_longest

from billing.money import exactly, quantise_line, quantise_pieces, total
from billing.periods import BillingPeriod
from billing.plans.price_plans import DEFAULT_TAX_GROUP, Charge, DiscountBase, Validity
from billing.plans.schedules import schedule_of
from billing.plans.subscriptions import Piece, Subscription
from billing.rating.lines import LineKind, RatedLine
from billing.rating.positions import share_of

NOTHING = Fraction(0)


@dataclass(frozen=True, slots=True)
class ChargeLine:
    """A line with the piece it comes from and its charge.

    `of_fee`: what a prepaid charge's discount or maximum takes off its fee; the rest is off its usage.
    """

    piece_no: int
    charge: Charge
    line: RatedLine
    of_fee: Fraction = NOTHING

    def part(self, *, usage: bool) -> Fraction:
        """What of its amount is for usage, or else a fee's."""
        amount, kind = Fraction(self.line.amount), self.line.identity.kind
        if kind == LineKind.PREPAID_FEE or (self.charge.is_fee and kind != LineKind.MINIMUM):
            return NOTHING if usage else amount
        return amount - self.of_fee if usage else self.of_fee


Lines = Sequence[ChargeLine]


def holds(valid: Validity, piece: Piece, period: BillingPeriod) -> bool:
    """Whether a discount holds in this billing period of a piece's contract."""
    number = 1 if valid.periods is None else _period_no(valid.since, piece.subscription, period)
    return valid.holds(period.start, number)


def _period_no(since: datetime | None, subscription: Subscription, period: BillingPeriod) -> int:
    """Which of the contract's periods this is, from 1; with `since`, of those that begin then or later.

    A contract has the periods of each of its schedules in that one's time; a pause is part of it.
    """
    contract = subscription.contract
    before: set[BillingPeriod] = set()
    for each, following in zip_longest(contract, contract[1:]):
        until = min(period.start, following.starts_at) if following else period.start
        before.update(schedule_of(each).periods(each.starts_at, until))
    return 1 + sum(1 for each in before if each.start < period.start and (since is None or each.start >= since))


def line_discounts(
    lines: Lines, pieces: Sequence[Piece], period: BillingPeriod, used: Fraction = NOTHING
) -> list[tuple[int, Charge, Decimal]]:
    """The discounts of one charge by piece, negative: of all that it comes to there, fees included.

    `used` is what of an amount per period was given before.
    Quantised cumulatively per subscription segment, as the lines that they are of, so that its pieces add up (3).
    """
    bases: dict[int, tuple[Charge, Decimal]] = {}
    with exactly():
        for each in lines:
            charge, base = each.charge, bases[each.piece_no][1] if each.piece_no in bases else Decimal(0)
            bases[each.piece_no] = (charge, base + each.line.amount)
    by_segment: dict[int, list[tuple[int, Charge, Fraction]]] = defaultdict(list)
    for number, (charge, base) in sorted(bases.items()):
        discount = charge.discount
        if discount is None or not holds(discount, pieces[number], period):
            continue
        if discount.percent is not None:
            less = Fraction(base) * Fraction(discount.percent)
        else:
            assert discount.amount is not None, "a discount is one of the two"
            less = max(NOTHING, min(Fraction(base), Fraction(discount.amount) - used))
            used += less
        if less:
            by_segment[pieces[number].segment_no].append((number, charge, -less))
    return [
        (number, charge, amount)
        for found in by_segment.values()
        for (number, charge, _), amount in zip(found, quantise_pieces(less for _, _, less in found), strict=True)
        if amount
    ]


def share_of_fees(lines: Iterable[ChargeLine]) -> Fraction:
    """What share of what lines of a charge come to is its fee's: as much of what is taken off them all is."""
    fees, whole = NOTHING, NOTHING
    for each in lines:
        fees += each.part(usage=False)
        whole += Fraction(each.line.amount)
    return fees / whole if whole else NOTHING


def limit(
    lines: Lines, charges: Mapping[int, Charge], pieces: Sequence[Piece], period: BillingPeriod
) -> tuple[LineKind, Decimal] | None:
    """What brings one charge to its minimum or maximum of the period (13.7); None if it is within.

    `charges`: the charge as it is in each piece. A maximum holds if it is one in every piece. What has no minimum may
    come to less than nothing: a percentage of amounts below zero.
    """
    comes_to = Fraction(total(each.line.amount for each in lines))
    floored = any(charge.minimum is not None for charge in charges.values())
    least = _weighted(charges, pieces, period, lambda charge: charge.minimum)
    most = _weighted(charges, pieces, period, lambda charge: charge.maximum)
    capped = all(charge.maximum is not None for charge in charges.values())
    if floored and least > comes_to:
        amount = quantise_line(least - comes_to)
        return (LineKind.MINIMUM, amount) if amount else None
    if capped and most < comes_to:
        amount = quantise_line(most - comes_to)
        return (LineKind.MAXIMUM, amount) if amount else None
    return None


def _weighted(
    charges: Mapping[int, Charge],
    pieces: Sequence[Piece],
    period: BillingPeriod,
    amount_of: Callable[[Charge], Decimal | None],
) -> Fraction:
    found = NOTHING
    for number, charge in charges.items():
        amount = amount_of(charge)
        if amount is not None:
            found += Fraction(amount) * share_of(pieces[number], period)
    return found


Share = tuple[str, str, bool]
"""A charge's key, a tax group, and whether it is the charge's usage or its fees."""


@dataclass(frozen=True, slots=True)
class InvoiceDiscounted:
    """The invoice discount by tax group, negative, and what of it falls on each charge's usage and fees."""

    by_group: Mapping[str, Decimal]
    of_charge: Mapping[Share, Fraction]

    def on(self, charge_key: str, *, usage: bool) -> Fraction:
        """What falls on a charge's usage, or on its fees."""
        return sum((part for (key, _, of), part in self.of_charge.items() if (key, of) == (charge_key, usage)), NOTHING)


def invoice_discount(
    lines: Lines, pieces: Sequence[Piece], period: BillingPeriod, used: Fraction = NOTHING
) -> InvoiceDiscounted:
    """The discount on the whole: of each piece's lines by its version, a share or an amount.

    Amounts are given once in a period, to earlier pieces first: never more than what they are taken off comes to.
    `used` is what fees in advance have had of them.
    """
    less: dict[str, Fraction] = defaultdict(Fraction)
    bases: dict[Share, Fraction] = defaultdict(Fraction)
    found = []
    for number, piece in enumerate(pieces):
        discount = piece.version.invoice_discount
        if discount is not None and holds(discount, piece, period):
            found.append((discount, _based_on(discount.base, (each for each in lines if each.piece_no == number))))
    left = sum((_sum(own) for discount, own in found if discount.amount is not None), NOTHING)
    given = NOTHING
    for discount, own in found:
        share = Fraction(discount.percent or 0)
        if discount.amount is not None:
            comes_to = _sum(own)
            part = max(NOTHING, min(comes_to, left - given, Fraction(discount.amount) - used - given))
            given += part
            share = part / comes_to if part else NOTHING
        for of, amount in own:
            less[of[1]] -= amount * share
            bases[of] += amount * share
    groups = sorted(less)
    amounts = quantise_pieces(less[group] for group in groups)
    by_group = {group: amount for group, amount in zip(groups, amounts, strict=True) if amount}
    return InvoiceDiscounted(by_group, {share: -base for share, base in bases.items()})


def _sum(parts: Iterable[tuple[Share, Fraction]]) -> Fraction:
    return sum((amount for _, amount in parts), NOTHING)


def _based_on(base: DiscountBase, lines: Iterable[ChargeLine]) -> list[tuple[Share, Fraction]]:
    """What a discount is of: the usage in lines, the fees in them, or both."""
    kinds = {DiscountBase.USAGE: (True,), DiscountBase.FEES: (False,)}.get(base, (True, False))
    return [
        ((each.charge.key, each.line.tax_group, usage), amount)
        for each in lines
        for usage in kinds
        if (amount := each.part(usage=usage))
    ]


def true_up(
    lines: Lines,
    discounted: InvoiceDiscounted,
    in_advance: Mapping[str, Decimal],
    pieces: Sequence[Piece],
    period: BillingPeriod,
) -> tuple[Decimal, str] | None:
    """What is missing to the commitment, with its tax group (4, 13.8); None if nothing is.

    Committed charges count after line and invoice discounts, with minimum and maximum, before credits. A charge that is
    named counts whole, with what its fees `in_advance` came to in this period; without names all usage counts, and no
    fee.
    """
    committed, named, all_usage = NOTHING, list[str](), False
    tax_group: str | None = None
    for piece in pieces:
        commitment = piece.version.commitment
        if commitment is not None and piece.start < piece.end:
            committed += Fraction(commitment.amount) * share_of(piece, period)
            named += commitment.charges
            all_usage = all_usage or not commitment.charges
            tax_group = commitment.tax_group
    counting = [
        (each.charge.key, usage, each.part(usage=usage))
        for each in lines
        for usage in (True, False)
        if each.charge.key in named or (all_usage and usage)
    ]
    reached = sum((amount for _, _, amount in counting), NOTHING)
    for key, usage in {(key, usage) for key, usage, _ in counting}:
        reached += discounted.on(key, usage=usage)
    reached += Fraction(total(in_advance[key] for key in set(named) & in_advance.keys()))
    missing = quantise_line(max(NOTHING, committed - reached))
    if not missing:
        return None
    of_charges = {charge.key: charge.tax_group for piece in pieces for charge in piece.version.charges}
    of_usage = [charge.key for piece in pieces for charge in piece.version.charges if not charge.is_fee]
    first = next(iter(key for key in [*named, *of_usage] if key in of_charges), None)
    return missing, tax_group or (of_charges[first] if first else DEFAULT_TAX_GROUP)
