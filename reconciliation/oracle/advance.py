"""Fees in advance: billed where a stretch begins, given back where it ends early (money.md 4, 13.9, 13.10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import combinations

from reconciliation.oracle import credits, discounts, fees
from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Case, Charge, Discount, Grant, PriorCredit
from reconciliation.oracle.document import Document, Tax, changes, credit_note, invoice, rounding, tax_on
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
    """A document, the invoice that it is or is against, what credits for fees may still pay of it, and what its lines
    of credit use of each grant (less than nothing: give back)."""

    document: Document
    invoice: Standing
    draws: list[Draw]
    used: Mapping[str, Fraction]


@dataclass(slots=True)
class Reduction:
    """What a price reduction took off a tax group of an invoice, on a line of this key, and what of it no credit note
    gave back."""

    key: str
    grant: Grant
    group: str
    left: Fraction
    left_quanta: int


@dataclass(frozen=True, slots=True)
class Sums:
    """By charge, of a whole period's fees in advance less what came back unused: what they had of a discount of an
    amount per period (`given`; of the invoice's: ""), and what they came to after discounts (`net`)."""

    given: Mapping[str, Fraction]
    net: Mapping[str, Fraction]


def moments(plan: PeriodPlan) -> list[int]:
    """When fees in advance may be due or come back: where a stretch begins, or ends before its period does."""
    ends = {stretch.end for stretch in plan.stretches if stretch.end < plan.period.end}
    return sorted({stretch.start for stretch in plan.stretches} | ends)


def sums(case: Case, plan: PeriodPlan) -> Sums:
    """As they are rated: a credit by hand gives back money, and lowers no fee; a grant is none, either (13.8)."""
    if not any(charge.in_advance for stretch in plan.stretches for charge in stretch.version.charges.values()):
        return Sums({}, {})
    found = InAdvance(replace(case, prior_credits=(), grants=()), plan)
    for at in moments(plan):
        list(found.issued(at, {}))
    return Sums(found.given, totals(found.lines, lambda line: line.charge))


class InAdvance:
    """A period's fees in advance, from one moment to the next.

    `given`: what they had of discounts of an amount per period, by charge; `lines`: all that was due or came back.
    """

    def __init__(self, case: Case, plan: PeriodPlan) -> None:
        self.given: dict[str, Fraction] = defaultdict(Fraction)
        self.lines: list[Line] = []
        self._case = case
        self._plan = plan
        self._paid: list[Paid] = []
        self._on: dict[str, Standing] = {}
        self._reductions: list[Reduction] = []
        self._fees: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
        """By the name that a grant can have for it, and tax group: what is left of the period's fees."""
        self._quanta: dict[str, int] = defaultdict(int)
        """By tax group: what is left of it on all of the period's documents, with its lines of credit."""

    def issued(self, at: int, left: Mapping[str, Fraction]) -> Iterator[Issued]:
        """Credit notes and the invoice of a moment, in order. What nets to nothing has none.

        A new stretch in which every fee goes on is no change of a fee (13.10). `left`: what grants have; it is read
        again for each document, which may use what the one before gave back.
        """
        plan, given = self._plan, self.given
        starting = next((stretch for stretch in plan.stretches if stretch.start == at), None)
        fees_due = _new_fees(plan, starting) if starting else []
        lasting = [one for one in self._paid if one.lasts]
        if starting and _all_go_on(plan, lasting, fees_due):
            return
        for one in self._paid:
            self._credits_by_hand(one, at)
        back = [(_unused(one, at), one) for one in lasting]
        for one in lasting:
            for key, amount in one.given.items():
                given[key] -= amount * Fraction(one.end - at, one.end - one.start)
        of_fees = _off_invoice(plan, [_with_discount(plan, *fee, given) for fee in fees_due], given)
        changed = [(line, one.left, one.left_quanta) for line, one in back if line.amount]
        changed += [(line, ZERO, 0) for lines, _ in of_fees for line in lines]
        for line, _, _ in changed:
            self.lines.append(line)
            self._fees[fees.named(plan, line), line.group] += line.amount
        service = Period(at, plan.period.end)
        documents = []
        for one_issued in self._documents(service, changed, left):
            for line, quanta in one_issued.document.lines:
                self._quanta[line.group] += quanta
            documents.append(one_issued.document)
            yield one_issued
        self._paid = _paid(self._case, fees_due, of_fees, documents, service, self._on)

    def _documents(
        self, service: Period, changed: Sequence[tuple[Line, Fraction, int]], left: Mapping[str, Fraction]
    ) -> Iterator[Issued]:
        """Each tax group's net by itself: more on one invoice, less on a credit note against the invoice that the group
        is on, nothing on none (13.10). `_on`: that invoice, by tax group; of more, the new one."""
        net = totals((line for line, _, _ in changed), lambda line: line.group)
        notes: list[tuple[Standing, list[tuple[Line, Fraction, int]]]] = []
        for group in sorted(group for group, amount in net.items() if amount < 0):
            of_group = [one for one in changed if one[0].group == group]
            same = [lines for standing, lines in notes if standing is self._on[group]]
            if same:
                same[0].extend(of_group)
            else:
                notes.append((self._on[group], of_group))
        for standing, lines in notes:
            yield self._note(service, lines, standing)
        more = [line for line, _, _ in changed if net[line.group] > 0]
        if more:
            yield self._invoice(service, more, left)

    def _invoice(self, service: Period, lines: Sequence[Line], left: Mapping[str, Fraction]) -> Issued:
        """With what price reductions take off its fees when these begin, before tax (3, 6)."""
        case = self._case
        reduced = credits.price_reductions(case, _draws(self._plan, lines, service.start), left)
        document = invoice(case.account, case.contract, "advance", service, [*lines, *reduced.lines])
        quanta = {line.key: rounded for line, rounded in document.lines}
        for line, grant in zip(reduced.lines, reduced.grants, strict=True):
            self._reductions.append(Reduction(line.key, grant, line.group, -line.amount, quanta[line.key]))
        standing = Standing({group: Tax(tax.amount, tax.tax) for group, tax in document.taxes.items()})
        self._on |= {line.group: standing for line in lines}
        return Issued(document, standing, reduced.draws, reduced.used)

    def _note(self, service: Period, changed: Sequence[tuple[Line, Fraction, int]], standing: Standing) -> Issued:
        """A credit note, with what grants took off beyond what is left of the fees that they cover (6, 7, 13.12).

        Where that leaves nothing of a tax group, the line of credit that does so takes what rounding line by line would
        leave (13.17); nor does rounding make anybody pay by a credit note.
        """
        case = self._case
        net = totals((line for line, _, _ in changed), lambda line: line.group)
        returned = [each for group in sorted(net) for each in self._returned(group, -net[group])]
        used: dict[str, Fraction] = defaultdict(Fraction)
        rounded = changes(case.account, case.contract, changed)
        for group in sorted(net):
            of_group = [each for each in returned if each[0].group == group]
            of_note = sum(quanta for line, quanta in rounded if line.group == group)
            for n, (reduction, back) in enumerate(of_group, 1):
                reduction.left -= back
                used[reduction.grant.id] -= back
                quanta = rounding(case.contract, -reduction.left / case.account.quantum) - reduction.left_quanta
                if n == len(of_group) and not self._net(group):
                    quanta = -(self._quanta[group] + of_note)
                elif n == len(of_group):
                    quanta = min(quanta, -of_note)
                of_note += quanta
                reduction.left_quanta += quanta
                rounded.append((self._credit(reduction, back, net), quanta))
        return Issued(credit_note(case.account, service, _together(rounded), standing.taxes), standing, [], used)

    def _credit(self, reduction: Reduction, back: Fraction, groups: Mapping[str, Fraction]) -> Line:
        """Named as where the grant first took off the tax group, with the group if another on the note has that key,
        too: one line per grant and group (13.12)."""
        keys: dict[str, str] = {}
        for one in self._reductions:
            if one.grant is reduction.grant and one.group in groups:
                keys.setdefault(one.group, one.key)
        key = keys[reduction.group]
        if list(keys.values()).count(key) > 1:
            key = f"credit.{reduction.grant.id}.{reduction.group}"
        return Line(key, "credit", "", None, reduction.group, back)

    def _net(self, group: str) -> Fraction:
        """What is left of a tax group of the period's fees in advance, less what grants took off it."""
        left = sum((amount for (_, of), amount in self._fees.items() if of == group), ZERO)
        return left - sum((one.left for one in self._reductions if one.group == group), ZERO)

    def _returned(self, group: str, most: Fraction) -> list[tuple[Reduction, Fraction]]:
        """What comes back to grants of a tax group, the last drawn first, and at most so much: what the first one took
        off stays as far as there is a fee left that it covers, of the next one what fits beside that, and so on."""
        fees_left = {name: amount for (name, of), amount in self._fees.items() if of == group and amount > 0}
        of_group = [one for one in self._reductions if one.group == group]
        fitting = [_fitting(of_group[:n], fees_left) for n in range(len(of_group) + 1)]
        result = []
        for n, one in reversed(list(enumerate(of_group))):
            back = min(one.left - (fitting[n + 1] - fitting[n]), most)
            if back > 0:
                result.append((one, back))
                most -= back
        return result

    def _credits_by_hand(self, paid: Paid, at: int) -> None:
        """What was credited of any fee on the invoice, until a moment, lowers what is left of it (13.17)."""
        before, quanta = paid.left, paid.left_quanta
        for credit in self._case.prior_credits:
            if credit.line == paid.line.key and paid.start <= credit.at <= at:
                _credit_by_hand(self._case, paid, credit)
        self._fees[fees.named(self._plan, paid.line), paid.line.group] -= before - paid.left
        self._quanta[paid.line.group] -= quanta - paid.left_quanta


def _fitting(taken: Sequence[Reduction], fees_left: Mapping[str, Fraction]) -> Fraction:
    """The most that reductions can take off fees, each off those that it covers.

    Whichever of them are held to what the fees that these cover come to, and the others to what they took, it is no
    more than that; and the least of these bounds is it. Those that cover the same are held together.
    """
    covered = [frozenset(name for name in fees_left if credits.covers_fee(one.grant, name)) for one in taken]
    different = sorted({*covered}, key=sorted)
    bounds = []
    for size in range(len(different) + 1):
        for held in combinations(different, size):
            names = {name for each in held for name in each}
            others = sum((one.left for one, of in zip(taken, covered, strict=True) if of not in held), ZERO)
            bounds.append(others + sum((fees_left[name] for name in names), ZERO))
    return min(bounds)


def _together(rounded: Sequence[tuple[Line, int]]) -> list[tuple[Line, int]]:
    """One line per key: of a grant that several invoices drew on."""
    result: dict[str, tuple[Line, int]] = {}
    for line, quanta in rounded:
        if line.key in result:
            other, before = result[line.key]
            line, quanta = replace(line, amount=other.amount + line.amount), before + quanta
        result[line.key] = line, quanta
    return list(result.values())


def _draws(plan: PeriodPlan, lines: Sequence[Line], at: int) -> list[Draw]:
    """What each new fee on an invoice comes to, less its share of what came back in its tax group: what credits for
    fees may pay (6)."""
    net = totals(lines, lambda line: line.group)
    new = [line for line in lines if line.kind != "unused"]
    whole, found = totals(new, lambda line: line.group), totals(new, lambda line: (fees.named(plan, line), line.group))
    return [
        Draw(at, key, group, 0, value * net[group] / whole[group], fee=True)
        for (key, group), value in found.items()
        if value > 0
    ]


def _new_fees(plan: PeriodPlan, stretch: Stretch) -> list[tuple[Charge, Line]]:
    """Each fee to the period's end: nobody knows yet that it will end before."""
    charges = [charge for charge in stretch.version.charges.values() if charge.in_advance]
    earlier = [one for one in plan.stretches if one.start < stretch.start]
    found = [
        (charge, fees.fee_line(charge, stretch, earlier, plan.period, plan.period.end, plan.name)) for charge in charges
    ]
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
