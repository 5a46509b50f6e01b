"""Fees in advance, and the credit for unused time when they change (docs/spec/money.md 4, 13.9, 13.10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Final

from billing.money import ZERO, exactly, quantise_line, quantise_pieces, total
from billing.periods import BillingPeriod, seconds_between
from billing.plans.charge_models import Flat, OneOff, Prepaid, Seat, Timing
from billing.plans.price_plans import Charge, DiscountBase
from billing.plans.subscriptions import Piece
from billing.rating.adjustments import ChargeLine, holds, line_discounts
from billing.rating.fees import due_whole, fee_for
from billing.rating.lines import LineIdentity, LineKind, RatedLine
from billing.rating.made_lines import fee_line, line_of


@dataclass(frozen=True, slots=True)
class AdvanceBill:
    """What becomes due at a moment for the rest of the period: new fees, and credit for the unused part of old ones."""

    service: BillingPeriod
    lines: tuple[RatedLine, ...]


Less = tuple[Decimal | None, Decimal | None]
"""A discount: a share, or an amount."""
INVOICE: Final = ""
"""Stands for the invoice's discount among those of charges, whose keys are longer."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A fee that was billed in advance: what it came to net of its discounts, for what time.

    `discount` and `of_invoice` are the charge's own and the invoice's, where one holds in this period; `off` and
    `off_invoice` what they took.
    """

    piece: Piece
    charge: Charge
    line: RatedLine
    net: Decimal
    discount: Less | None
    off: Decimal
    of_invoice: Less | None = None
    off_invoice: Decimal = ZERO

    @property
    def lasts(self) -> bool:
        """Whether its time can be left unused: a one-off covers none, what is not prorated is never given back."""
        return self.charge.prorated and not isinstance(self.charge.pricing, OneOff)

    def elapsed(self, at: datetime) -> Fraction:
        """The share of its own time that is over."""
        since, until = self.line.service_start, self.line.service_end
        return Fraction(seconds_between(since, at)) / seconds_between(since, until)

    def goes_on_as(self, other: _Running) -> bool:
        """Whether the other is the same fee, for the same seats; what else its charge prices does not matter."""
        return self._fee == other._fee and self.line.quantity == other.line.quantity

    @property
    def _fee(self) -> tuple[object, ...]:
        charge, pricing = self.charge, self.charge.pricing
        assert isinstance(pricing, Flat | Seat | Prepaid | OneOff), pricing
        return (
            charge.key,
            pricing.model,
            pricing.fee,
            charge.prorated,
            charge.tax_group,
            self.discount,
            self.of_invoice,
        )


_Begun = tuple[_Running, list[RatedLine]]
CreditedBefore = Callable[[LineIdentity, datetime], Decimal]
"""What was credited on a line until a moment, as a positive amount."""


def advance_bills(pieces: Sequence[Piece], period: BillingPeriod, credited: CreditedBefore) -> list[AdvanceBill]:
    """What a period's fees in advance come to, moment by moment. A bill that nets to nothing makes no document.

    Where a piece begins and every fee goes on as it was, nothing is billed; where one changes, what is unused of all is
    credited and all are billed anew, so that one document says what is paid for the rest of the period.
    """
    return _billed(pieces, period, credited)[0]


@dataclass(frozen=True, slots=True)
class InAdvance:
    """What a period's fees in advance come to by charge, less what is unused of them (`net`), and what they have had of
    each charge's discount of an amount, and of the invoice's (`discounted`): the rest of that is for what is over."""

    net: Mapping[str, Decimal]
    discounted: Mapping[str, Fraction]


NOTHING_IN_ADVANCE = InAdvance({}, {})


def in_advance(pieces: Sequence[Piece], period: BillingPeriod) -> InAdvance:
    """A period's fees in advance as a whole, before any credit by hand."""
    if not any(charge.timing is Timing.ADVANCE for piece in pieces for charge in piece.version.charges):
        return NOTHING_IN_ADVANCE
    bills, discounted = _billed(pieces, period, lambda *_: Decimal(0))
    net: dict[str, Decimal] = defaultdict(Decimal)
    with exactly():
        for line in (line for each in bills for line in each.lines):
            net[line.identity.charge_key] += line.amount
    return InAdvance(net, discounted)


def _billed(
    pieces: Sequence[Piece], period: BillingPeriod, credited: CreditedBefore
) -> tuple[list[AdvanceBill], Mapping[str, Fraction]]:
    """The bills, and what of each charge's discount was given by the period's end."""
    held = [piece for piece in pieces if piece.start < piece.end]
    running: list[_Running] = []
    bills: list[AdvanceBill] = []
    used: dict[str, Fraction] = defaultdict(Fraction)
    for number, piece in enumerate(held):
        if running and held[number - 1].end < piece.start:
            ended = held[number - 1].end
            _add(bills, ended, period, [_unused(each, ended, credited) for each in running])
            used, running = _discounts_used(used, running, ended), []
        charges = [charge for charge in piece.version.charges if charge.timing is Timing.ADVANCE]
        until_here = _discounts_used(used, running, piece.start)
        begun = [
            found
            for charge in charges
            if (found := _begin(piece, charge, period, number, held, until_here[charge.key]))
        ]
        begun = _less_of_invoice(piece, begun, period, until_here[INVOICE])
        if _all_go_on(running, [fee for fee, _ in begun]):
            continue
        lines = [_unused(each, piece.start, credited) for each in running]
        lines += [line for _, new in begun for line in new]
        used, running = until_here, [fee for fee, _ in begun]
        _add(bills, piece.start, period, lines)
    if running and held[-1].end < period.end:
        _add(bills, held[-1].end, period, [_unused(each, held[-1].end, credited) for each in running])
    return bills, _discounts_used(used, running, held[-1].end) if running else used


def _all_go_on(running: Sequence[_Running], begun: Sequence[_Running]) -> bool:
    """Whether each fee is one that runs already, in whatever order a version lists them."""
    lasting = sorted((each for each in running if each.lasts), key=lambda each: each.charge.key)
    due = sorted(begun, key=lambda each: each.charge.key)
    return len(lasting) == len(due) and all(old.goes_on_as(new) for old, new in zip(lasting, due, strict=True))


def _add(bills: list[AdvanceBill], at: datetime, period: BillingPeriod, lines: Sequence[RatedLine | None]) -> None:
    due = tuple(line for line in lines if line is not None)
    if due:
        bills.append(AdvanceBill(BillingPeriod(at, period.end), due))


def _discounts_used(before: Mapping[str, Fraction], running: Sequence[_Running], at: datetime) -> dict[str, Fraction]:
    """What was given of each charge's discount of an amount, if what runs ends at a moment: what is left goes back with
    the fee. A share uses up nothing of an amount that a later version gives."""
    used = defaultdict(Fraction, before)
    for each in running:
        for key, less, off in (
            (each.charge.key, each.discount, each.off),
            (INVOICE, each.of_invoice, each.off_invoice),
        ):
            if less is not None and less[1] is not None:
                used[key] += Fraction(off) * (each.elapsed(at) if each.lasts else 1)
    return used


def _begin(
    piece: Piece, charge: Charge, period: BillingPeriod, number: int, held: Sequence[Piece], used: Fraction
) -> _Begun | None:
    """A fee from the piece's start to the period's end, with its discount, of which so much is used."""
    fee = fee_for(piece, charge, period.end, period, whole=due_whole(held, number))
    if fee is None:
        return None
    lines = [replace(fee_line(fee), service_end=period.end)]
    for _, _, amount in line_discounts([ChargeLine(number, charge, lines[0])], held, period, used):
        lines.append(replace(line_of(piece, charge, LineKind.DISCOUNT, amount), service_end=period.end))
    discount = charge.discount if charge.discount and holds(charge.discount, piece, period) else None
    less = (discount.percent, discount.amount) if discount else None
    off = -total(line.amount for line in lines[1:])
    return _Running(piece, charge, lines[0], total(line.amount for line in lines), less, off), lines


def _less_of_invoice(
    piece: Piece, begun: Sequence[_Begun], period: BillingPeriod, used: Fraction
) -> list[_Begun]:  # fmt: skip
    """Fees less what the invoice's discount takes, as any invoice has it (docs/spec/money.md 3): of each what it costs.

    Cut cumulatively in order of their keys. Of an amount so much is used.
    """
    discount = piece.version.invoice_discount
    if discount is None or discount.base is DiscountBase.USAGE or not holds(discount, piece, period):
        return list(begun)
    nets = {fee.charge.key: Fraction(fee.net) for fee, _ in begun}
    whole = sum(nets.values(), Fraction(0))
    share = Fraction(discount.percent or 0)
    if discount.amount is not None:
        share = max(Fraction(0), min(whole, Fraction(discount.amount) - used)) / whole if whole else share
    keys = sorted(nets)
    off = dict(zip(keys, quantise_pieces(nets[key] * share for key in keys), strict=True))
    less, found = (discount.percent, discount.amount), []
    for fee, lines in begun:
        amount = off[fee.charge.key]
        taken = line_of(piece, fee.charge, LineKind.INVOICE_DISCOUNT, -amount)
        with exactly():
            net = fee.net - amount
        found.append((
            replace(fee, net=net, of_invoice=less, off_invoice=amount),
            [*lines, replace(taken, service_end=period.end)] if amount else lines,
        ))  # fmt: skip
    return found


def _unused(of: _Running, at: datetime, credited: CreditedBefore) -> RatedLine | None:
    """The credit for what is left of a fee's time: of its net amount, over its own service, capped by what is left."""
    if not of.lasts:
        return None
    with exactly():
        used = quantise_line(Fraction(of.net) * of.elapsed(at))
        amount = min(of.net - used, of.net - credited(of.line.identity, at))
    if amount <= 0:
        return None
    return replace(
        of.line,
        identity=replace(of.line.identity, kind=LineKind.UNUSED.value),
        service_start=at,
        unit_price=None,
        quantity=Decimal(0),
        amount=-amount,
        reason=LineKind.UNUSED.value,
    )
