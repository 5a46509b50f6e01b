"""A tenant's billing periods one after another: what is issued, in order (docs/spec/money.md 3, 6, 7, 10, 13).

Pure: from the whole history to every document. The preview, simulations and the tests run it whole; commands run its
steps against what is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial

from billing.bills import credits
from billing.bills.credit_application import (
    PriceReductions,
    Written,
    given_back_with_fees,
    grant_of,
    price_reductions,
)
from billing.bills.credit_notes import (
    Remaining,
    Returned,
    credit_note,
    net_by_group,
    net_of_discounts,
    on_no_document,
    reduced,
    remaining_of,
    without_ending,
)
from billing.bills.credits import Grant
from billing.bills.documents import GRACE, Document, DocumentKind, DocumentState, PaidByCredit, Payer, draw_up, settle
from billing.bills.late_usage import adjusted, as_billed, changed_key, dated_key
from billing.bills.payment_credits import fees_to_cover, given_back, more_to_cover, paid_by_credits
from billing.money import ZERO, exactly, from_minor, total
from billing.periods import BillingPeriod
from billing.plans.price_plans import DEFAULT_TAX_GROUP, PlanVersion, Terms
from billing.plans.subscriptions import Piece, Subscription, pieces
from billing.rating.advance import AdvanceBill, advance_bills
from billing.rating.lines import LineIdentity, LineKind, Naming, RatedLine
from billing.rating.made_lines import period_line
from billing.rating.period import NOTHING_RATED, Coverable, RatedPeriod, rate_period
from billing.rating.usage import UnpricedUsage
from billing.rating.usage_events import UsageEvent, billable, usage_by_piece


@dataclass(frozen=True, slots=True)
class LateUsage:
    """Events that arrive after a period (its number, from 0) was frozen."""

    of_period: int
    events: tuple[UsageEvent, ...]


@dataclass(frozen=True, slots=True)
class PriorCredit:
    """A credit note of its own on a line of a fee in advance, as a positive amount."""

    line_key: str
    amount: Decimal
    at: datetime


@dataclass(frozen=True, slots=True)
class History:
    """All that the bills of a tenant follow from."""

    payer: Payer
    terms: Terms
    periods: tuple[BillingPeriod, ...]
    subscriptions: tuple[Subscription, ...]
    versions: Mapping[str, Sequence[PlanVersion]]
    events: tuple[UsageEvent, ...] = ()
    late: tuple[LateUsage, ...] = ()
    grants: tuple[Grant, ...] = ()
    prior_credits: tuple[PriorCredit, ...] = ()


@dataclass(frozen=True, slots=True)
class Bills:
    """What a history comes to: documents in order of issue, what was drawn of each grant (major units), what had no
    price, and late usage that is too old to bill."""

    documents: tuple[Document, ...]
    drawn: Mapping[str, Decimal]
    unpriced: tuple[UnpricedUsage, ...]
    unbillable: tuple[UsageEvent, ...]


@dataclass(slots=True)
class _Invoiced:
    """What remains of an invoice, and of what credits paid on it, after its credit notes."""

    remaining: Remaining = field(default_factory=Remaining)
    paid: list[PaidByCredit] = field(default_factory=list)


@dataclass(slots=True)
class _Billed:
    """A period that was billed: its lines on documents so far and what credits can cover of them; what price reductions
    draw, as last rated; its invoice; by tax group the invoice that its fees in advance are on, these fees by key, what
    price reductions draw for them, all lines of their documents and what lowered or replaced them without one, which
    prior credits are in what remains."""

    lines: list[RatedLine] = field(default_factory=list)
    drawn: dict[str, Decimal] = field(default_factory=dict)
    open: list[Coverable] = field(default_factory=list)
    invoice: _Invoiced = field(default_factory=_Invoiced)
    in_advance: dict[str, _Invoiced] = field(default_factory=dict)
    fees: dict[str, RatedLine] = field(default_factory=dict)
    drawn_in_advance: dict[str, Decimal] = field(default_factory=lambda: defaultdict(lambda: ZERO))
    advance_lines: list[Written] = field(default_factory=list)
    noted: set[int] = field(default_factory=set)

    def of_credit(self, naming: Naming) -> set[str]:
        """The keys of lines of credit on documents over its fees in advance."""
        return {naming.key(line.identity) for line, _ in self.advance_lines if line.identity.kind == LineKind.CREDIT}

    def take_in(self, document: Document, grants: Sequence[Grant]) -> None:
        """A document over its fees in advance: price reductions are on an invoice, or come back by a credit note."""
        for each in document.lines:
            line = each.rated
            self.advance_lines.append((line, each.amount_minor))
            if line.identity.kind == LineKind.CREDIT:
                with exactly():
                    self.drawn_in_advance[grant_of(line, [grant.grant_id for grant in grants])] -= line.amount


@dataclass(frozen=True, slots=True)
class _Adjustment:
    """Lines of an earlier period (its number) that the next invoice carries, by key, and what credits can cover of
    them; `then` is the period as billed once it does."""

    number: int
    period: BillingPeriod
    lines: Mapping[str, RatedLine]
    open: tuple[Coverable, ...]
    then: RatedPeriod


def bill(history: History) -> Bills:
    """Every document of a history. Raises Unratable, NoPriceVersion, UnknownTaxGroup."""
    return _Cycle(history).run()


class _Cycle:
    """What is known and issued so far, as the periods go by."""

    def __init__(self, history: History) -> None:
        self.of = history
        self.known: list[UsageEvent] = list(history.events)
        self.billed = [_Billed() for _ in history.periods]
        self.cuts = [pieces(history.subscriptions, history.versions, period) for period in history.periods]
        self.paid_minor: dict[str, int] = defaultdict(int)
        self.carried_minor = 0
        self.waiting: list[_Adjustment] = []
        self.documents: list[Document] = []
        self.unpriced: dict[UnpricedUsage, None] = {}
        self.unbillable: list[UsageEvent] = []

    def run(self) -> Bills:
        """Every step at its moment: fees in advance, a period's invoice when it is frozen, then what comes late."""
        steps: list[tuple[datetime, int, Callable[[], None]]] = []
        for number, period in enumerate(self.of.periods):
            frozen = period.end + GRACE
            steps += [
                (each.service.start, 0, partial(self._bill_in_advance, number, each))
                for each in advance_bills(self.cuts[number], period, partial(self._credited_before, number))
            ]
            steps.append((frozen, 1, partial(self._bill_usage, number)))
            steps += [
                (frozen, 2, partial(self._take_in, late, period)) for late in self.of.late if late.of_period == number
            ]
            if not any(self.cuts[number + 1 :][:1]):
                steps.append((frozen, 3, self._bill_adjustments))
        for _, _, step in sorted(steps, key=lambda step: step[:2]):
            step()
        return Bills(
            tuple(self.documents),
            {grant.grant_id: self._drawn(grant) for grant in self.of.grants},
            tuple(self.unpriced),
            tuple(self.unbillable),
        )

    # -- a period ----------------------------------------------------------------------------------------------------

    def _credited_before(self, number: int, of: LineIdentity, at: datetime) -> Decimal:
        key = self._naming(number).key(of)
        return total(credit.amount for credit in self.of.prior_credits if credit.line_key == key and credit.at <= at)

    def _bill_in_advance(self, number: int, each: AdvanceBill) -> None:
        """Each tax group by itself (13.10): what comes to more is on one invoice, what comes to less on a credit note
        against the invoice that the group's fees are on; one that nets to nothing goes on without a document."""
        billed, naming = self.billed[number], self._naming(number)
        self._note_prior_credits(billed, each.service.start)
        lines = {naming.key(line.identity): line for line in each.lines}
        billed.fees |= {without_ending(key): line for key, line in lines.items()}
        net = net_by_group(each.lines)
        less: list[tuple[_Invoiced, dict[str, RatedLine]]] = []
        for group in sorted(group for group, amount in net.items() if amount <= 0):
            own = {key: line for key, line in lines.items() if line.tax_group == group}
            original = billed.in_advance.setdefault(group, _Invoiced())
            if not net[group]:
                after = self._taken_back(each.service, own, original)[1]
                original.remaining = on_no_document(original.remaining, after, billed.of_credit(naming))
                billed.advance_lines += ((line, 0) for line in own.values())
            elif of_original := next((listed for of, listed in less if of is original), None):
                of_original |= own
            else:
                less.append((original, own))
        for original, own in less:
            back = given_back_with_fees(billed.advance_lines, list(own.values()), self._grants())
            returned = [(naming.key(each.line.identity), each) for each in back]
            document, after = self._taken_back(each.service, own, original, returned)
            billed.take_in(document, self._grants())
            original.remaining = net_of_discounts(after, billed.of_credit(naming))
            self.documents.append(self._restore(document, original.paid))
        if more := {key: line for key, line in lines.items() if net[line.tax_group] > 0}:
            off = self._reduced(list(more.values()))
            more |= {naming.key(line.identity): line for line in off.lines}
            document = draw_up(DocumentKind.ADVANCE, each.service, more, self.of.payer)
            document = self._issue(document, off.open)
            invoiced = _Invoiced(remaining_of(document), list(document.paid))
            billed.take_in(document, self._grants())
            invoiced.remaining = net_of_discounts(invoiced.remaining, billed.of_credit(naming))
            billed.in_advance |= {line.tax_group: invoiced for line in more.values()}

    def _reduced(self, fees: Sequence[RatedLine]) -> PriceReductions:
        """What grants that cover fees take off those that an invoice in advance is over (docs/decisions/0051)."""
        left = {grant.grant_id: self._left(grant) for grant in self._grants()}
        return price_reductions(fees_to_cover(fees), self._grants(), left, min(fees, key=lambda line: line.identity))

    def _taken_back(
        self, service: BillingPeriod, lines: Mapping[str, RatedLine], original: _Invoiced,
        returned: Sequence[tuple[str, Returned]] = (),
    ) -> tuple[Document, Remaining]:  # fmt: skip
        unused = [key for key, line in lines.items() if line.identity.kind == LineKind.UNUSED]
        against = {key: without_ending(key) for key in unused}
        return credit_note(service, lines, against, original.remaining, self.of.payer, returned)

    def _note_prior_credits(self, billed: _Billed, at: datetime) -> None:
        """Take the credit notes by hand until a moment off what remains of the fees in advance."""
        for number, credit in enumerate(self.of.prior_credits):
            key = without_ending(credit.line_key)
            fee = billed.fees.get(key)
            original = billed.in_advance.get(fee.tax_group if fee else "", _Invoiced())
            if fee and number not in billed.noted and credit.at <= at and key in original.remaining.lines:
                billed.noted.add(number)
                before, minor = original.remaining.line(key)
                off = min(credit.amount, max(before, ZERO))
                original.remaining = reduced(original.remaining, key, fee.tax_group, off, self.of.payer)
                by_hand = replace(fee, identity=replace(fee.identity, kind=LineKind.UNUSED), amount=-off)
                billed.advance_lines.append((by_hand, original.remaining.line(key)[1] - minor))

    def _bill_usage(self, number: int) -> None:
        period, naming = self.of.periods[number], self._naming(number)
        rated, self.billed[number].drawn = self._rated(number)
        lines = {naming.key(line.identity): line for line in rated.lines}
        self._now_billed(number, rated)
        coverable = list(rated.coverable)
        for waiting in self._carried_adjustments():
            for key, line in waiting.lines.items():
                lines[key if key not in lines else dated_key(key, waiting.period)] = line
            coverable += waiting.open
        if lines:
            document = draw_up(DocumentKind.USAGE, period, lines, self.of.payer)
            document = self._issue(document, coverable)
            self.billed[number].invoice = _Invoiced(remaining_of(document), list(document.paid))

    def _rated(self, number: int) -> tuple[RatedPeriod, dict[str, Decimal]]:
        """A period rated from all that is known, with its price reductions, and what these draw of each grant."""
        of, period = self.of, self.of.periods[number]
        used, unpriced = usage_by_piece(billable(self.known, of.terms), of.subscriptions, of.versions, period, of.terms)
        self.unpriced.update(dict.fromkeys(unpriced))
        rated = rate_period(period, used, of.terms, by_model=credits.by_model(of.grants))
        if not rated.lines:
            return NOTHING_RATED, {}
        left = {grant.grant_id: self._left(grant, but=number) for grant in self._grants()}
        like = period_line([each.piece for each in used], "", LineKind.CREDIT, ZERO, DEFAULT_TAX_GROUP)
        less = price_reductions(rated.coverable, self._grants(), left, like)
        return RatedPeriod((*rated.lines, *less.lines), less.open), dict(less.drawn)

    # -- late usage --------------------------------------------------------------------------------------------------

    def _take_in(self, late: LateUsage, frozen: BillingPeriod) -> None:
        """Late usage of frozen periods: re-rate, take away what was billed, net per tax group (section 7)."""
        horizon = self.of.terms.late_usage_days
        completed = {each.event_id: each.completed_at for each in (*self.known, *late.events) if each.corrects is None}
        for event in late.events:
            age = frozen.end - completed.get(event.corrects or event.event_id, event.completed_at)
            too_old = horizon is not None and age > timedelta(days=horizon)
            (self.unbillable if too_old else self.known).append(event)
        last = next(n for n, period in enumerate(self.of.periods) if period == frozen)
        for number in range(last + 1 if late.events else 0):
            self._adjust(number)

    def _adjust(self, number: int) -> None:
        """What waits for an invoice is not billed yet, and is worked out anew.

        A period of which nothing is to be billed or given back keeps the grants that it was billed with.
        """
        billed, naming, period = self.billed[number], self._naming(number), self.of.periods[number]
        rated, drawn = self._rated(number)
        self.waiting = [waiting for waiting in self.waiting if waiting.number != number]
        late = adjusted(rated.lines, billed.lines, naming.key)
        billed.drawn = drawn if late.less or late.more else self._drawn_on(billed.lines)
        if late.less:
            against = {key: changed_key(key) for key in late.less}
            document, noted = credit_note(period, late.less, against, billed.invoice.remaining, self.of.payer)
            billed.invoice.remaining = noted
            self.documents.append(self._restore(document, billed.invoice.paid))
            self._now_billed(number, as_billed(rated, billed.lines, billed.open, late.less))
        if late.more:
            then = as_billed(rated, billed.lines, billed.open, late.more)
            open_ = more_to_cover(billed.open, then.coverable)
            self.waiting.append(_Adjustment(number, period, late.more, open_, then))

    def _now_billed(self, number: int, rated: RatedPeriod) -> None:
        self.billed[number].lines, self.billed[number].open = list(rated.lines), list(rated.coverable)

    def _restore(self, document: Document, paid: list[PaidByCredit]) -> Document:
        """Crediting what credits paid gives it back to the grants; it pays out nothing."""
        back = given_back(paid, -document.total_minor)
        for each in back:
            self.paid_minor[each.grant_id] += each.used_minor
            n = next(n for n, of in enumerate(paid) if of.grant_id == each.grant_id)
            paid[n] = replace(paid[n], used_minor=paid[n].used_minor + each.used_minor)
        return replace(document, paid=back)

    def _carried_adjustments(self) -> list[_Adjustment]:
        """What waits, earlier periods first; from here on it is billed."""
        carried = sorted(self.waiting, key=lambda waiting: waiting.number)
        for waiting in carried:
            self._now_billed(waiting.number, waiting.then)
        self.waiting = []
        return carried

    def _bill_adjustments(self) -> None:
        """A tenant that has no next invoice gets one of its own for each period that late usage belongs to."""
        for waiting in self._carried_adjustments():
            document = draw_up(DocumentKind.ADJUSTMENT, waiting.period, waiting.lines, self.of.payer)
            self._issue(document, waiting.open)

    # -- what every invoice goes through -----------------------------------------------------------------------------

    def _issue(self, document: Document, coverable: Iterable[Coverable]) -> Document:
        paid = self._paid_by_credits(document, coverable)
        for each in paid:
            self.paid_minor[each.grant_id] += each.used_minor
        settled = settle(document, paid, self.carried_minor, self.of.payer)
        carried = settled.state is DocumentState.CARRIED_BELOW_MINIMUM
        self.carried_minor = settled.due_minor if carried else 0
        self.documents.append(settled)
        return settled

    def _paid_by_credits(self, document: Document, coverable: Iterable[Coverable]) -> tuple[PaidByCredit, ...]:
        grants = [grant for grant in self._grants() if not credits.reduces_price(grant)]
        left = {grant.grant_id: self._left(grant) for grant in grants}
        return paid_by_credits(document, coverable, grants, left, self.paid_minor, self.of.payer)

    # -- credits -----------------------------------------------------------------------------------------------------

    def _grants(self) -> list[Grant]:
        return [grant for grant in self.of.grants if grant.currency == self.of.payer.money.code]

    def _left(self, grant: Grant, *, but: int | None = None) -> Decimal:
        """What price reductions leave of a grant, those of one period not counted."""
        drawn = [b.drawn.get(grant.grant_id, ZERO) for n, b in enumerate(self.billed) if n != but]
        drawn += [b.drawn_in_advance.get(grant.grant_id, ZERO) for b in self.billed]
        with exactly():
            return grant.amount - total(drawn)

    def _drawn_on(self, lines: Iterable[RatedLine]) -> dict[str, Decimal]:
        """What lines of documents take off by price reductions."""
        grant_ids = [grant.grant_id for grant in self.of.grants]
        found: dict[str, Decimal] = defaultdict(lambda: ZERO)
        with exactly():
            for line in lines:
                if line.identity.kind == LineKind.CREDIT:
                    found[grant_of(line, grant_ids)] -= line.amount
        return found

    def _drawn(self, grant: Grant) -> Decimal:
        with exactly():
            paid = from_minor(self.paid_minor[grant.grant_id], self.of.payer.money)
            return grant.amount - self._left(grant) + paid

    def _naming(self, number: int) -> Naming:
        cut: Sequence[Piece] = self.cuts[number]
        tenant = self.of.subscriptions[0].tenant_id if self.of.subscriptions else ""
        segments = {tenant: max((piece.segment_no for piece in cut), default=1)}
        return Naming(segments, {plan: len(listed) for plan, listed in self.of.versions.items()})
