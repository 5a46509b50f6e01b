"""A tenant's billing periods one after another: what is issued, in order (docs/spec/money.md 3, 6, 7, 10, 13).

Pure: from the whole history to every document. The preview, simulations and the tests run it whole; commands run its
steps against what is stored.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from billing import credits
from billing.credit_notes import Remaining, credit_note, net_by_group, net_of_discounts, reduced, remaining_of
from billing.credits import Grant
from billing.documents import Document, DocumentKind, DocumentState, PaidByCredit, Payer, draw_up, settle
from billing.money import ZERO, exactly, from_minor, to_minor, total
from billing.periods import BillingPeriod
from billing.price_plans import PlanVersion, Terms
from billing.rating.advance import AdvanceBill, advance_bills
from billing.rating.differences import difference
from billing.rating.lines import LineIdentity, LineKind, Naming, RatedLine
from billing.rating.period import NOTHING_RATED, Coverable, RatedPeriod, period_line, rate_period
from billing.rating.usage import UnpricedUsage
from billing.subscriptions import Piece, Subscription, pieces
from billing.usage_events import UsageEvent, billable, usage_by_piece


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
class _Billed:
    """A period that was billed: its lines on documents so far and what credits can cover of them; what price reductions
    draw, as last rated; what remains of its invoice, and of what credits paid on it, after credit notes."""

    lines: list[RatedLine] = field(default_factory=list)
    drawn: dict[str, Decimal] = field(default_factory=dict)
    open: list[Coverable] = field(default_factory=list)
    paid: list[PaidByCredit] = field(default_factory=list)
    remaining: Remaining = field(default_factory=Remaining)


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
        for number, period in enumerate(self.of.periods):
            self._bill_in_advance(number)
            self._bill_usage(number)
            for late in self.of.late:
                if late.of_period == number:
                    self._take_in(late, period)
            if self.waiting and not any(self.cuts[number + 1 :][:1]):
                self._bill_adjustments()
        return Bills(
            tuple(self.documents),
            {grant.grant_id: self._drawn(grant) for grant in self.of.grants},
            tuple(self.unpriced),
            tuple(self.unbillable),
        )

    # -- a period ----------------------------------------------------------------------------------------------------

    def _bill_in_advance(self, number: int) -> None:
        naming = self._naming(number)

        def credited(of: LineIdentity, at: datetime) -> Decimal:
            key = naming.key(of)
            return total(c.amount for c in self.of.prior_credits if c.line_key == key and c.at <= at)

        remaining = Remaining()
        noted: set[int] = set()
        for each in advance_bills(self.cuts[number], self.of.periods[number], credited):
            remaining = self._with_prior_credits(remaining, each.service.start, noted, each)
            lines = {naming.key(line.identity): line for line in each.lines}
            net = total(line.amount for line in each.lines)
            if not net:
                remaining = net_of_discounts(self._advance_note(each, lines, remaining)[1])
            elif net < 0:
                remaining = self._note_in_advance(each, lines, remaining)
            else:
                document = draw_up(DocumentKind.ADVANCE, each.service, lines, self.of.payer)
                fees = _fees_to_cover(each.lines)
                document = self._issue(document, fees, DocumentKind.ADVANCE)
                issued = net_of_discounts(remaining_of(document))
                remaining = Remaining({**remaining.lines, **issued.lines}, {**remaining.groups, **issued.groups})

    def _with_prior_credits(self, remaining: Remaining, at: datetime, noted: set[int], of: AdvanceBill) -> Remaining:
        groups = {line.tax_group for line in of.lines}
        for number, credit in enumerate(self.of.prior_credits):
            if number not in noted and credit.at <= at and credit.line_key in remaining.lines:
                noted.add(number)
                group = next(iter(groups))
                remaining = reduced(remaining, credit.line_key, group, credit.amount, self.of.payer)
        return remaining

    def _note_in_advance(self, of: AdvanceBill, lines: Mapping[str, RatedLine], remaining: Remaining) -> Remaining:
        """A change of fees that comes to less than nothing is a credit note against what was billed in advance."""
        document, after = self._advance_note(of, lines, remaining)
        self.documents.append(document)
        return net_of_discounts(after)

    def _advance_note(
        self, of: AdvanceBill, lines: Mapping[str, RatedLine], remaining: Remaining
    ) -> tuple[Document, Remaining]:
        against = {key: key.replace(".unused", "") for key, line in lines.items() if line.amount < 0}
        return credit_note(of.service, lines, against, remaining, self.of.payer)

    def _bill_usage(self, number: int) -> None:
        period, naming = self.of.periods[number], self._naming(number)
        rated, self.billed[number].drawn = self._rated(number)
        lines = {naming.key(line.identity): line for line in rated.lines}
        self._now_billed(number, rated)
        coverable = list(rated.coverable)
        for waiting in self._carried_adjustments():
            for key, line in waiting.lines.items():
                lines[key if key not in lines else f"{key}@{waiting.period.start:%Y-%m-%d}"] = line
            coverable += waiting.open
        if lines:
            document = draw_up(DocumentKind.USAGE, period, lines, self.of.payer)
            document = self._issue(document, coverable, DocumentKind.USAGE, number)
            self.billed[number].remaining = remaining_of(document)

    def _rated(self, number: int) -> tuple[RatedPeriod, dict[str, Decimal]]:
        """A period rated from all that is known, with its price reductions, and what these draw of each grant."""
        of, period = self.of, self.of.periods[number]
        used, unpriced = usage_by_piece(billable(self.known, of.terms), of.subscriptions, of.versions, period, of.terms)
        self.unpriced.update(dict.fromkeys(unpriced))
        rated = rate_period(period, used, of.terms)
        if not rated.lines:
            return NOTHING_RATED, {}
        grants = [grant for grant in self._grants() if credits.reduces_price(grant)]
        left = {grant.grant_id: Fraction(self._left(grant, but=number)) for grant in grants}
        draws = credits.draw(rated.coverable, grants, left)
        amounts = credits.by_grant_and_group(draws)
        groups: dict[str, int] = defaultdict(int)
        for grant_id, _ in amounts:
            groups[grant_id] += 1
        cut = [each.piece for each in used]
        lines = list(rated.lines)
        drawn: dict[str, Decimal] = defaultdict(lambda: ZERO)
        for (grant_id, group), amount in amounts.items():
            key = f"credit.{grant_id}" + (f".{group}" if groups[grant_id] > 1 else "")
            lines.append(period_line(cut, key, LineKind.CREDIT, -amount, group))
            with exactly():
                drawn[grant_id] += amount
        return RatedPeriod(tuple(lines), tuple(credits.after(rated.coverable, draws))), drawn

    # -- late usage --------------------------------------------------------------------------------------------------

    def _take_in(self, late: LateUsage, frozen: BillingPeriod) -> None:
        """Late usage of frozen periods: re-rate, take away what was billed, net per tax group (section 7)."""
        horizon = self.of.terms.late_usage_days
        for event in late.events:
            too_old = horizon is not None and (frozen.end - event.completed_at).days >= horizon
            (self.unbillable if too_old else self.known).append(event)
        last = next(n for n, period in enumerate(self.of.periods) if period == frozen)
        for number in range(last + 1 if late.events else 0):
            self._adjust(number)

    def _adjust(self, number: int) -> None:
        """What waits for an invoice is not billed yet, and is worked out anew."""
        billed, naming, period = self.billed[number], self._naming(number), self.of.periods[number]
        rated, billed.drawn = self._rated(number)
        self.waiting = [waiting for waiting in self.waiting if waiting.number != number]
        changes = difference(rated.lines, billed.lines)
        nets = net_by_group(changes)
        keyed = _adjustment_keys(changes, naming)
        more = {key: line for key, line in keyed.items() if nets[line.tax_group] > 0}
        less = {key: line for key, line in keyed.items() if nets[line.tax_group] < 0}
        if less:
            against = {key: key.removeprefix("adj.") for key in less}
            document, billed.remaining = credit_note(period, less, against, billed.remaining, self.of.payer)
            self.documents.append(self._restore(document, billed))
            self._now_billed(number, self._as_billed(number, rated, less))
        if more:
            then = self._as_billed(number, rated, more)
            open_ = _more_to_cover(billed.open, then.coverable)
            self.waiting.append(_Adjustment(number, period, more, open_, then))

    def _as_billed(self, number: int, rated: RatedPeriod, changed: Mapping[str, RatedLine]) -> RatedPeriod:
        """A period as it was billed, but the tax groups of what changed as they are rated now."""
        billed = self.billed[number]
        groups = {line.tax_group for line in changed.values()}
        lines = [line for line in billed.lines if line.tax_group not in groups]
        lines += [line for line in rated.lines if line.tax_group in groups]
        coverable = [of for of in billed.open if of.tax_group not in groups]
        coverable += [of for of in rated.coverable if of.tax_group in groups]
        return RatedPeriod(tuple(lines), tuple(coverable))

    def _now_billed(self, number: int, rated: RatedPeriod) -> None:
        self.billed[number].lines, self.billed[number].open = list(rated.lines), list(rated.coverable)

    def _restore(self, document: Document, billed: _Billed) -> Document:
        """Crediting what credits paid gives it back to the grants; it pays out nothing."""
        left = -document.total_minor
        restored: list[PaidByCredit] = []
        for index, paid in reversed(list(enumerate(billed.paid))):
            back = min(left, paid.used_minor)
            if back > 0:
                restored.append(PaidByCredit(paid.grant_id, -back))
                billed.paid[index] = replace(paid, used_minor=paid.used_minor - back)
                self.paid_minor[paid.grant_id] -= back
                left -= back
        return replace(document, paid=tuple(restored))

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
            self._issue(document, waiting.open, DocumentKind.ADJUSTMENT)

    # -- what every invoice goes through -----------------------------------------------------------------------------

    def _issue(
        self, document: Document, coverable: Iterable[Coverable], kind: DocumentKind, number: int | None = None
    ) -> Document:
        paid = self._paid_by_credits(document, coverable)
        for each in paid:
            self.paid_minor[each.grant_id] += each.used_minor
        if number is not None:
            self.billed[number].paid = list(paid)
        settled = settle(document, paid, self.carried_minor, self.of.payer)
        carried = settled.state is DocumentState.CARRIED_BELOW_MINIMUM
        self.carried_minor = settled.due_minor if carried else 0
        self.documents.append(settled)
        return settled

    def _paid_by_credits(self, document: Document, coverable: Iterable[Coverable]) -> tuple[PaidByCredit, ...]:
        """What grants pay of a document with its tax: their part of each group's gross, by time of usage."""
        payer = self.of.payer
        grants = [grant for grant in self._grants() if not credits.reduces_price(grant)]
        if not grants or document.total_minor <= 0:
            return ()
        exact: dict[str, Decimal] = net_by_group([line.rated for line in document.lines])
        gross = {row.group: row.base_minor + row.tax_minor for row in document.taxes}
        with_tax = [
            replace(of, amount=of.amount * gross[of.tax_group] / Fraction(exact[of.tax_group]))
            for of in coverable
            if exact.get(of.tax_group, ZERO) > 0
        ]
        step = to_minor(payer.money.quantum, payer.money)
        left = {
            grant.grant_id: Fraction(to_minor_floor(self._left(grant), payer) - self.paid_minor[grant.grant_id])
            for grant in grants
        }
        draws = credits.draw(with_tax, grants, left)
        sums: dict[str, Fraction] = defaultdict(Fraction)
        for each in draws:
            sums[each.grant.grant_id] += each.amount
        found, drawn, before = [], Fraction(0), 0
        for grant in sorted(grants, key=credits.draw_order):
            drawn += sums[grant.grant_id]
            rounded = min(round(drawn / step) * step, document.total_minor)
            if rounded > before:
                found.append(PaidByCredit(grant.grant_id, rounded - before))
            before = max(before, rounded)
        return tuple(found)

    # -- credits -----------------------------------------------------------------------------------------------------

    def _grants(self) -> list[Grant]:
        return [grant for grant in self.of.grants if grant.currency == self.of.payer.money.code]

    def _left(self, grant: Grant, *, but: int | None = None) -> Decimal:
        """What price reductions leave of a grant, those of one period not counted."""
        drawn = (b.drawn.get(grant.grant_id, ZERO) for n, b in enumerate(self.billed) if n != but)
        with exactly():
            return grant.amount - total(drawn)

    def _drawn(self, grant: Grant) -> Decimal:
        with exactly():
            paid = from_minor(self.paid_minor[grant.grant_id], self.of.payer.money)
            return grant.amount - self._left(grant) + paid

    def _naming(self, number: int) -> Naming:
        cut: Sequence[Piece] = self.cuts[number]
        tenant = self.of.subscriptions[0].tenant_id if self.of.subscriptions else ""
        segments = {tenant: max((piece.segment_no for piece in cut), default=1)}
        return Naming(segments, {plan: len(listed) for plan, listed in self.of.versions.items()})


def to_minor_floor(amount: Decimal, payer: Payer) -> int:
    """The whole quanta in an amount, in minor units."""
    quanta = Fraction(amount) // Fraction(payer.money.quantum)
    return int(quanta * Fraction(payer.money.quantum) / Fraction(payer.money.minor_unit))


def _adjustment_keys(changes: Sequence[RatedLine], naming: Naming) -> dict[str, RatedLine]:
    """Changes by key; a line that is reversed and billed anew at another price has two."""
    found: dict[str, RatedLine] = {}
    for line in changes:
        key = f"adj.{naming.key(line.identity)}"
        found[key if key not in found else f"{key}.repriced"] = line
    return found


def _fees_to_cover(lines: Sequence[RatedLine]) -> list[Coverable]:
    """What credits can cover of fees in advance: the new ones, less what the credit for unused time takes off."""
    grown: dict[str, Decimal] = net_by_group([line for line in lines if line.amount > 0])
    nets = net_by_group(lines)
    return [
        Coverable(
            line.service_start,
            line.identity.charge_key,
            line.tax_group,
            Fraction(line.amount) * Fraction(nets[line.tax_group]) / Fraction(grown[line.tax_group]),
            is_fee=True,
        )
        for line in lines
        if line.amount > 0 and nets[line.tax_group] > 0
    ]


def _more_to_cover(before: Iterable[Coverable], after: Iterable[Coverable]) -> tuple[Coverable, ...]:
    """What late usage added to what credits can cover, at its own times of usage."""
    changes: dict[tuple[datetime, str, str, bool], Fraction] = defaultdict(Fraction)
    for sign, listed in ((-1, before), (1, after)):
        for of in listed:
            changes[of.at, of.charge_key, of.tax_group, of.is_fee] += sign * of.amount
    grown = sum((amount for amount in changes.values() if amount > 0), Fraction(0))
    whole = sum(changes.values(), Fraction(0))
    if grown <= 0 or whole <= 0:
        return ()
    return tuple(
        Coverable(at, key, group, amount * whole / grown, is_fee)
        for (at, key, group, is_fee), amount in changes.items()
        if amount > 0
    )
