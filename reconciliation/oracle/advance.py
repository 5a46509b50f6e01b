"""Fees in advance: billed where a stretch begins, given back where it ends early (money.md 4, 13.9, 13.10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction

from reconciliation.oracle import discounts, fees
from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Case, Charge, Discount, PriorCredit
from reconciliation.oracle.document import Document, Tax, credit_note, invoice, rounding, tax_on
from reconciliation.oracle.line import Draw, Line, totals
from reconciliation.oracle.rational import ZERO, at_twelve, pieces_that_add_up
from reconciliation.oracle.segments import PeriodPlan, Stretch


@dataclass(slots=True)
class Paid:
    """A fee invoiced in advance for [start, end), net of its discount, and what of it is not credited yet.

    `lasts`: its time can be left unused; a one-off covers none, and what is not prorated is never given back (4).
    `given` is what it had of discounts of an amount per period, by charge (the invoice's: ""). `taxes` are those of the
    invoice that its tax group is on, less the credit notes against it; all its lines share them.
    """

    line: Line
    charge: Charge
    amount: Fraction
    start: int
    end: int
    left: Fraction
    left_quanta: int
    taxes: dict[str, Tax]
    lasts: bool
    given: Mapping[str, Fraction]


@dataclass(slots=True)
class Standing:
    """What of an invoice its credit notes have left: its tax groups, and what each grant paid of it, in quanta."""

    taxes: dict[str, Tax]
    paid: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Issued:
    """A document, the instant at which it is issued, the invoice that it is or is against, and its fees by charge."""

    at: int
    document: Document
    invoice: Standing
    draws: list[Draw]


def documents(case: Case, plan: PeriodPlan) -> list[Issued]:
    """Advance invoices and credit notes of a period, in order. What nets to nothing has none.

    A new stretch in which every fee goes on is no change of a fee (13.10).
    """
    return _billed(case, plan)[0]


@dataclass(frozen=True, slots=True)
class Sums:
    """By charge, of a whole period's fees in advance less what came back unused: what they had of a discount of an
    amount per period (`given`; of the invoice's: ""), and what they came to after discounts (`net`)."""

    given: Mapping[str, Fraction]
    net: Mapping[str, Fraction]


def sums(case: Case, plan: PeriodPlan) -> Sums:
    """As they are rated: a credit by hand gives back money, and lowers no fee."""
    if not any(charge.in_advance for stretch in plan.stretches for charge in stretch.version.charges.values()):
        return Sums({}, {})
    return _billed(replace(case, prior_credits=()), plan)[1]


def _billed(case: Case, plan: PeriodPlan) -> tuple[list[Issued], Sums]:
    result = []
    fees_and_back: list[Line] = []
    paid: list[Paid] = []
    on: dict[str, Standing] = {}
    given: dict[str, Fraction] = defaultdict(Fraction)
    for at in _changes(plan.stretches, plan.period):
        starting = next((stretch for stretch in plan.stretches if stretch.start == at), None)
        fees_due = _new_fees(plan, starting) if starting else []
        lasting = [one for one in paid if one.lasts]
        if starting and _all_go_on(plan, lasting, fees_due):
            continue
        for one in paid:
            _credits_by_hand(case, one, at)
        back = [(_unused(one, at), one) for one in lasting]
        for one in lasting:
            for key, amount in one.given.items():
                given[key] -= amount * Fraction(one.end - at, one.end - one.start)
        of_fees = _off_invoice(plan, [_with_discount(plan, *fee, given) for fee in fees_due], given)
        new = [line for lines, _ in of_fees for line in lines]
        changed = [(line, one.left, one.left_quanta) for line, one in back if line.amount]
        changed += [(line, ZERO, 0) for line in new]
        fees_and_back += [line for line, _, _ in changed]
        issued = _documents(case, Period(at, plan.period.end), changed, on)
        result += [Issued(at, document, standing, _draws(plan, document, at)) for document, standing in issued]
        documents = [document for document, _ in issued]
        paid = _paid(case, fees_due, of_fees, documents, Period(at, plan.period.end), on)
    return result, Sums(given, totals(fees_and_back, lambda line: line.charge))


def _documents(
    case: Case, service: Period, changed: Sequence[tuple[Line, Fraction, int]], on: dict[str, Standing]
) -> list[tuple[Document, Standing]]:
    """Each tax group's net by itself: more on one invoice, less on a credit note against the invoice that the group is
    on, nothing on none (13.10). `on`: that invoice, by tax group; of more, the new one."""
    net = totals((line for line, _, _ in changed), lambda line: line.group)
    notes: list[tuple[Standing, list[tuple[Line, Fraction, int]]]] = []
    for group in sorted(group for group, amount in net.items() if amount < 0):
        of_group = [one for one in changed if one[0].group == group]
        same = [lines for standing, lines in notes if standing is on[group]]
        if same:
            same[0].extend(of_group)
        else:
            notes.append((on[group], of_group))
    result = [
        (credit_note(case.account, case.contract, service, lines, standing.taxes), standing)
        for standing, lines in notes
    ]
    more = [line for line, _, _ in changed if net[line.group] > 0]
    if more:
        document = invoice(case.account, case.contract, "advance", service, more)
        standing = Standing({group: Tax(tax.amount, tax.tax) for group, tax in document.taxes.items()})
        on |= {line.group: standing for line in more}
        result.append((document, standing))
    return result


def _draws(plan: PeriodPlan, document: Document, at: int) -> list[Draw]:
    """What each new fee on an invoice comes to, less its share of what came back in its tax group: what credits for
    fees may pay (6)."""
    lines = [line for line, _ in document.lines]
    net = totals(lines, lambda line: line.group)
    new = [line for line in lines if line.kind != "unused"]
    whole, found = totals(new, lambda line: line.group), totals(new, lambda line: (fees.named(plan, line), line.group))
    return [
        Draw(at, key, group, 0, value * net[group] / whole[group], fee=True)
        for (key, group), value in found.items()
        if value > 0
    ]


def _changes(stretches: Sequence[Stretch], period: Period) -> list[int]:
    """Where a stretch begins or ends before its period does."""
    ends = {stretch.end for stretch in stretches if stretch.end < period.end}
    return sorted({stretch.start for stretch in stretches} | ends)


def _new_fees(plan: PeriodPlan, stretch: Stretch) -> list[tuple[Charge, Line]]:
    """Each fee to the period's end: nobody knows yet that it will end before."""
    charges = [charge for charge in stretch.version.charges.values() if charge.in_advance]
    found = [(charge, fees.fee_line(charge, stretch, plan.period, plan.period.end, plan.name)) for charge in charges]
    return [(charge, line) for charge, line in found if line]


Discounted = tuple[list[Line], dict[str, Fraction]]
"""A fee with its discounts, and what these take of amounts per period, by charge."""


def _with_discount(plan: PeriodPlan, charge: Charge, line: Line, given: dict[str, Fraction]) -> Discounted:
    """The fee with its own discount; `given`: what is taken of amounts so far."""
    pair = line.pair
    if pair is None:
        raise ValueError(f"a fee of no stretch: {line.key}")
    discount = discounts.of_charge(charge, plan, pair)
    off = at_twelve(discounts.off(discount, line.amount, given[charge.key]))
    if not off:
        return [line], {}
    key = plan.name(charge.key, pair) + ".discount"
    of_amount = off if discount and discount.amount is not None else ZERO
    given[charge.key] += of_amount
    return [line, Line(key, "fee_discount", charge.key, pair, line.group, -off)], {charge.key: of_amount}


def _off_invoice(plan: PeriodPlan, of_fees: Sequence[Discounted], given: dict[str, Fraction]) -> list[Discounted]:
    """The fees of an instant less their invoice's discount: fees come before it, whichever invoice they are on (3).

    Each bears it by what it costs, cut cumulatively in order of the charges' keys.
    """
    if not of_fees:
        return []
    first = of_fees[0][0][0]
    discount = _of_invoice(plan, first)
    costs = {lines[0].charge: sum((line.amount for line in lines), ZERO) for lines, _ in of_fees}
    whole = sum(costs.values(), ZERO)
    share = discounts.off(discount, whole, given[""]) / whole if whole else ZERO
    keys = sorted(costs, key=str.encode)
    offs = dict(zip(keys, pieces_that_add_up(costs[key] * share for key in keys), strict=True))
    result = []
    for lines, of_amount in of_fees:
        fee, off = lines[0], offs[lines[0].charge]
        if fee.pair is None:
            raise ValueError(f"a fee of no stretch: {fee.key}")
        key = plan.name(fee.charge, fee.pair) + ".invoice_discount"
        less = [Line(key, "fee_discount", fee.charge, fee.pair, fee.group, -off)] if off else []
        taken = {"": off} if discount and discount.amount is not None else {}
        given[""] += taken.get("", ZERO)
        result.append(([*lines, *less], of_amount | taken))
    return result


def _of_invoice(plan: PeriodPlan, line: Line) -> Discount | None:
    """The invoice's discount that holds for a fee."""
    found = plan.version(line.pair).invoice_discount if line.pair else None
    if found is None or line.pair is None or found.base == "usage":
        return None
    return discounts.in_force(found.discount, plan, line.pair)


def _all_go_on(plan: PeriodPlan, paid: Sequence[Paid], due: Sequence[tuple[Charge, Line]]) -> bool:
    """Whether what begins is, fee by fee, in any order, what runs already: the same price, seats, discount, tax group.

    A prorated fee whose successor is not is another one: that is due whole where a segment begins (4).
    """
    running = {one.charge.key: _terms(plan, one.charge, one.line) for one in paid}
    return running == {charge.key: _terms(plan, charge, line) for charge, line in due}


def _terms(plan: PeriodPlan, charge: Charge, line: Line) -> tuple[object, ...]:
    discount = discounts.of_charge(charge, plan, line.pair) if line.pair else None
    offs = [(one.percent, one.amount) if one else None for one in (discount, _of_invoice(plan, line))]
    return charge.key, charge.model, charge.fee, charge.prorated, line.quantity, *offs, charge.tax_group


def _credits_by_hand(case: Case, paid: Paid, at: int) -> None:
    """What was credited of any fee on the invoice, until a moment, lowers what remains of it and of its tax (13.17)."""
    for credit in case.prior_credits:
        if credit.line == paid.line.key and paid.start <= credit.at <= at:
            _credit_by_hand(case, paid, credit)


def _unused(paid: Paid, at: int) -> Line:
    """The credit for unused time: from the invoiced amount, over the line's own interval, capped by what is left."""
    amount = min(fees.unused(paid.amount, paid.start, paid.end, at), paid.left)
    line = paid.line
    return Line(f"{_of_fee(line.key)}.unused", "unused", line.charge, line.pair, line.group, -amount)


def _of_fee(key: str) -> str:
    """A prepaid fee's key ends with `.fee`; no key has two endings (tests/money/README.md)."""
    return key.removesuffix(".fee")


def _credit_by_hand(case: Case, paid: Paid, credit: PriorCredit) -> None:
    paid.left = max(ZERO, paid.left - credit.amount)
    quanta = rounding(case.contract, paid.left / case.account.quantum)
    if paid.line.group in paid.taxes:
        tax = paid.taxes[paid.line.group]
        tax.amount -= paid.left_quanta - quanta
        tax.tax = tax_on(case.account, paid.line.group, tax.amount)
    paid.left_quanta = quanta


def _paid(
    case: Case,
    due: Sequence[tuple[Charge, Line]],
    of_fees: Sequence[Discounted],
    issued: Sequence[Document],
    service: Period,
    on: Mapping[str, Standing],
) -> list[Paid]:
    """The new fees, as they stand on their documents."""
    rounded = {line.key: quanta for document in issued for line, quanta in document.lines}
    result = []
    for (charge, line), (of_line, given) in zip(due, of_fees, strict=True):
        amount = sum((one.amount for one in of_line), ZERO)
        quanta = sum(
            rounded.get(one.key, rounding(case.contract, one.amount / case.account.quantum)) for one in of_line
        )
        lasts = line.kind != "one_off" and charge.prorated
        taxes = on[line.group].taxes if line.group in on else {}
        result.append(Paid(line, charge, amount, service.start, service.end, amount, quanta, taxes, lasts, given))
    return result
