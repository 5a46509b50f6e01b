"""From a case to its documents, in the order in which they are issued (money.md 3, 7, 8, 10)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from reconciliation.oracle import adjustment, advance, credits
from reconciliation.oracle.advance import InAdvance
from reconciliation.oracle.calendar import DAY, Period
from reconciliation.oracle.case import Case, Usage
from reconciliation.oracle.document import Document, Tax, changes, credit_note, gross_per_group, invoice, plain
from reconciliation.oracle.line import Draw, Line
from reconciliation.oracle.rational import ZERO, written
from reconciliation.oracle.reading import read_case
from reconciliation.oracle.segments import PeriodPlan, period_plan
from reconciliation.oracle.statement import statement

GRACE = DAY
"""From a period's end to FROZEN, the default (11)."""


def rate(case: Mapping[str, Any]) -> dict[str, Any]:
    """`documents` and, where the case has credits, `credits_after`, of a case in plain data.

    Raises:
        CaseError: for a case that cannot be read.
    """
    read = read_case(case)
    bill = _Bill(read)
    bill.run()
    result: dict[str, Any] = {"documents": [plain(read.account, document) for document in bill.documents]}
    if read.grants:
        result["credits_after"] = {
            grant.id: {"used": written(grant.amount - bill.left[grant.id]), "left": written(bill.left[grant.id])}
            for grant in read.grants
        }
    return result


def documents_of(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The documents alone, in the form of `expect.documents`."""
    documents: list[dict[str, Any]] = rate(case)["documents"]
    return documents


@dataclass(slots=True)
class _Billed:
    """A period as it was billed, for what comes late.

    `lines` and `draws` are those on documents so far, `reduced` what its price reductions use of each grant. What is
    left of its invoice after credit notes: `remains` per line (exact, quanta), `taxes` per group, `paid` per grant in
    quanta.
    """

    lines: list[Line]
    draws: list[Draw]
    reduced: dict[str, Fraction]
    remains: dict[str, tuple[Fraction, int]] = field(default_factory=dict)
    taxes: dict[str, Tax] = field(default_factory=dict)
    paid: list[tuple[str, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Waiting:
    """What late usage adds to a period: lines and draws for the next invoice, and the period's once they are on it."""

    lines: list[Line]
    draws: list[Draw]
    then: tuple[list[Line], list[Draw]]


class _Bill:
    """What goes from one document to the next: grants, carried amounts, adjustments that wait for an invoice."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.documents: list[Document] = []
        self.left = {grant.id: grant.amount for grant in case.grants}
        self._plans = [period_plan(case, period) for period in case.periods]
        self._usage = case.usage
        self._billed: dict[int, _Billed] = {}
        self._carried = 0
        self._waiting: dict[int, _Waiting] = {}

    def run(self) -> None:
        """Advance documents at their instants; a period's invoice when it is frozen; late usage after that (7, 11)."""
        steps: list[tuple[int, int, Callable[[], None]]] = []
        for i, plan in enumerate(self._plans):
            in_advance = InAdvance(self.case, plan)
            steps += [(at, 0, self._billing_in_advance(in_advance, at)) for at in advance.moments(plan)]
            frozen = plan.period.end + GRACE
            steps.append((frozen, 1, self._billing(i)))
            steps += [(frozen, 2, self._taking_in(i, late.usage)) for late in self.case.late if late.of_period == i]
            steps.append((frozen, 3, self._closing(i)))
        for _, _, step in sorted(steps, key=lambda step: step[:2]):
            step()

    def _billing_in_advance(self, in_advance: InAdvance, at: int) -> Callable[[], None]:
        return lambda: self._bill_in_advance(in_advance, at)

    def _billing(self, i: int) -> Callable[[], None]:
        return lambda: self._bill(i)

    def _taking_in(self, i: int, late: Usage) -> Callable[[], None]:
        return lambda: self._take_in(i, late)

    def _closing(self, i: int) -> Callable[[], None]:
        return lambda: self._bill_what_waits(i)

    def _bill_in_advance(self, in_advance: InAdvance, at: int) -> None:
        """Credits for fees pay an invoice in advance when it is issued, and come back with its credit notes (6)."""
        for issued in in_advance.issued(at, self.left):
            self._draw(issued.used)
            if issued.document.doc == "credit_note":
                self._give_back(issued.document, issued.invoice.paid)
            else:
                self._pay(issued.document, issued.draws)
                issued.invoice.paid = list(issued.document.payments)
            self._issue(issued.document)

    def _bill(self, i: int) -> None:
        """The period's invoice, with what waits from earlier ones; none without any line (10)."""
        own, reduced = self._rated(self._plans[i])
        self._draw(reduced.used)
        self._billed[i] = _Billed(own, reduced.draws, dict(reduced.used))
        lines, draws = own + self._waiting_lines(), list(reduced.draws)
        for waiting in self._waiting.values():
            draws += waiting.draws
        self._waiting_is_billed()
        if not lines:
            return
        document = self._invoice("usage", self._plans[i].period, lines)
        self._pay(document, draws)
        billed = self._billed[i]
        exact = {line.key: line.amount for line in own}
        billed.remains = {line.key: (exact[line.key], quanta) for line, quanta in document.lines if line.key in exact}
        billed.taxes = {group: Tax(tax.amount, tax.tax) for group, tax in document.taxes.items()}
        billed.paid = list(document.payments)
        self._issue(document)

    def _waiting_lines(self) -> list[Line]:
        """Earlier periods first; a key that is taken says its period (tests/money/README.md), or, where that is the
        same, that it is a second one of it."""
        result: dict[str, Line] = {}
        periods: dict[str, int] = {}
        for i, waiting in sorted(self._waiting.items()):
            for line in waiting.lines:
                key = line.key
                if key in result:
                    second = periods[key] == i
                    key += ".repriced" if second else f"@{self._plans[i].period.name.split('..')[0]}"
                result[key], periods[key] = replace(line, key=key), i
        return list(result.values())

    def _waiting_is_billed(self) -> None:
        for i, waiting in self._waiting.items():
            self._billed[i].lines, self._billed[i].draws = waiting.then
        self._waiting = {}

    def _rated(self, plan: PeriodPlan) -> tuple[list[Line], credits.Reduced]:
        found = statement(self.case, plan.period, self._usage)
        reduced = credits.price_reductions(self.case, found.draws, self.left)
        return found.lines + reduced.lines, reduced

    def _draw(self, used: Mapping[str, Any]) -> None:
        for grant, amount in used.items():
            self.left[grant] -= amount

    def _invoice(self, doc: str, period: Period, lines: Sequence[Line]) -> Document:
        return invoice(self.case.account, self.case.contract, doc, period, lines)

    def _pay(self, document: Document, draws: Sequence[Draw]) -> None:
        """Credits of kind `payment`, after tax (3)."""
        if not draws:
            return
        account = self.case.account
        gross = gross_per_group(account, document)
        document.payments = credits.payments(self.case, draws, self.left, gross, document.total(account))
        self._draw({grant: quanta * account.quantum for grant, quanta in document.payments})

    def _issue(self, document: Document) -> None:
        """Below Stripe's minimum it is carried to the next invoice, gross, after payment credits (10, 13.16)."""
        if document.doc != "credit_note":
            document.carried_in, self._carried = self._carried, 0
            due = document.due(self.case.account)
            document.state = "zero" if due == 0 else "finalize"
            if 0 < due * self.case.account.quantum < self.case.account.stripe_minimum:
                document.state = "carried_below_minimum"
                self._carried = due
        self.documents.append(document)

    def _take_in(self, i: int, late: Usage) -> None:
        """Late usage after period i was frozen changes every period, so far billed, that it completed in (2, 7)."""
        self._usage = self._usage.and_also(self._within_horizon(i, late))
        for billed in sorted(self._billed):
            self._adjust(billed)

    def _within_horizon(self, i: int, late: Usage) -> Usage:
        """Without what completed longer before the period's end than the contract's horizon: nobody can bill it (7)."""
        days = self.case.contract.late_usage_days
        if days is None:
            return late
        oldest = self._plans[i].period.end - days * DAY
        known = {event.id: event for usage in (self._usage, late) for event in usage.events}
        return Usage(
            tuple(event for event in late.events if event.completed >= oldest),
            tuple(one for one in late.corrections if one.corrects in known and known[one.corrects].completed >= oldest),
        )

    def _bill_what_waits(self, i: int) -> None:
        """A tenant that gets no next invoice, being subscribed in no next period, gets one for each period (7)."""
        if i + 1 < len(self._plans) and self._plans[i + 1].segments:
            return
        for one, waiting in sorted(self._waiting.items()):
            document = self._invoice("adjustment", self._plans[one].period, waiting.lines)
            self._pay(document, waiting.draws)
            self._issue(document)
        self._waiting_is_billed()

    def _adjust(self, i: int) -> None:
        """Re-rate(all) − billed, at the period's credit state: less → credit note, more → the next invoice (7).

        What waits for an invoice is not billed yet: it is worked out anew. A period of which nothing is to be billed or
        given back keeps the grants that are on its documents.
        """
        billed, plan = self._billed[i], self._plans[i]
        self._draw({grant: -amount for grant, amount in billed.reduced.items()})
        lines, reduced = self._rated(plan)
        self._waiting.pop(i, None)
        more, less = adjustment.netted(adjustment.differences(billed.lines, lines))
        billed.reduced = dict(reduced.used) if more or less else self._given(billed.lines)
        self._draw(billed.reduced)
        if less:
            self._credit(plan.period, billed, less)
            billed.lines, billed.draws = _with_groups(less, billed, lines, reduced.draws)
        if more:
            then = _with_groups(more, billed, lines, reduced.draws)
            self._waiting[i] = _Waiting(more, _added(billed.draws, then[1]), then)

    def _given(self, lines: Sequence[Line]) -> dict[str, Fraction]:
        """What price reductions give on some lines, by grant."""
        credit = [line for line in lines if line.kind == "credit"]
        return {
            grant.id: -sum((line.amount for line in credit if line.key in (key, f"{key}.{line.group}")), ZERO)
            for grant in self.case.grants
            for key in (f"credit.{grant.id}",)
        }

    def _credit(self, period: Period, billed: _Billed, less: Sequence[Line]) -> None:
        """A credit note against the period's invoice."""
        keys = [line.key.removeprefix("adj.") for line in less]
        changed = [(line, *billed.remains.get(key, (ZERO, 0))) for line, key in zip(less, keys, strict=True)]
        account = self.case.account
        note = credit_note(account, period, changes(account, self.case.contract, changed), billed.taxes)
        quanta_of = {line.key: quanta for line, quanta in note.lines}
        for (line, before, quanta), key in zip(changed, keys, strict=True):
            billed.remains[key] = (before + line.amount, quanta + quanta_of[line.key])
        self._give_back(note, billed.paid)
        self._issue(note)

    def _give_back(self, note: Document, paid: list[tuple[str, int]]) -> None:
        """What payment credits paid of an invoice goes back to them first, the last one's first (6)."""
        open_quanta = -note.total(self.case.account)
        for n, (grant, quanta) in reversed(list(enumerate(paid))):
            back = min(quanta, open_quanta)
            if back > 0:
                note.payments.append((grant, -back))
                paid[n] = (grant, quanta - back)
                self._draw({grant: -back * self.case.account.quantum})
                open_quanta -= back


def _with_groups(
    changed: Sequence[Line], billed: _Billed, lines: Sequence[Line], draws: Sequence[Draw]
) -> tuple[list[Line], list[Draw]]:
    """A period's lines and draws as billed, those of the tax groups that changed as they are rated now."""
    groups = {line.group for line in changed}
    return (
        [line for line in billed.lines if line.group not in groups] + [line for line in lines if line.group in groups],
        [draw for draw in billed.draws if draw.group not in groups] + [draw for draw in draws if draw.group in groups],
    )


def _added(before: Sequence[Draw], after: Sequence[Draw]) -> list[Draw]:
    """What came to be draws that were not, at their own times; what fell takes its share off all of it, usage off usage
    and fees off fees (6, 7, 13.8)."""
    return [
        draw
        for fee in (False, True)
        for draw in _grown(*([one for one in draws if one.fee is fee] for draws in (before, after)), fee=fee)
    ]


def _grown(before: Sequence[Draw], after: Sequence[Draw], *, fee: bool) -> list[Draw]:
    change: dict[tuple[int, str, str, str], Fraction] = {}
    for sign, draws in ((-1, before), (1, after)):
        for draw in draws:
            at = (draw.completed, draw.charge, draw.group, draw.model)
            change[at] = change.get(at, ZERO) + sign * draw.value
    grown = sum((value for value in change.values() if value > 0), ZERO)
    whole = sum(change.values(), ZERO)
    if whole <= 0:
        return []
    return [
        Draw(completed, charge, group, 0, value * whole / grown, model, fee)
        for (completed, charge, group, model), value in change.items()
        if value > 0
    ]
