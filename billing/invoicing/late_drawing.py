"""What is still to be billed of billed periods, account by account: read, rated with its credits, compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple

from sqlalchemy import Connection

from billing.bills.credit_application import price_reductions
from billing.bills.credits import Grant, TaxTreatment
from billing.bills.late_usage import Adjusted, Waiting, adjusted, as_billed
from billing.bills.payment_credits import more_to_cover
from billing.invoicing import (
    adjustment_store,
    billed_until_store,
    credit_store,
    invoice_store,
    rated_line_store,
    tax_store,
)
from billing.invoicing.adjustment_store import Outstanding
from billing.invoicing.billed_documents import BilledPeriod, billed_period
from billing.invoicing.credit_store import CreditState
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import Invoice, InvoiceIdentity, InvoiceKind, draw_up
from billing.money import ZERO, exactly
from billing.periods import INSTANT, BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.subscriptions import Subscription
from billing.rating import LineIdentity, Naming, RatedLine, net, segments_of
from billing.rating.period import Coverable, RatedPeriod
from billing.usage.coverable_usage import CoverableUsage

NOT_ISSUED: Final = (InvoiceState.DRAFT, InvoiceState.APPROVED)


@dataclass(frozen=True, slots=True)
class LatePeriod:
    """A billed period of an account that is rated otherwise by now: what was billed, and what is missing either way.

    `waiting` is what is owed more. `then` is what credits can cover of the period once all is billed, None where nobody
    keeps it. `notes`, `adjustments`: how many
    documents of these kinds the period has.
    """

    billed: BilledPeriod
    issued: bool
    change: Adjusted
    waiting: Waiting
    then: Sequence[Coverable] | None
    grants: Sequence[CreditState]
    notes: int
    adjustments: int

    @property
    def period(self) -> BillingPeriod:
        """The original period."""
        return self.billed.invoice.identity.period


class LateUsage:
    """Reads what accounts are still to be billed of some billed periods.

    Where an account has credits all of the periods are looked at: what one gives back another may draw.
    """

    def __init__(
        self, connection: Connection, periods: Sequence[BillingPeriod], accounts: Collection[str] | None = None
    ) -> None:
        self._connection = connection
        self._periods = sorted(periods)
        self.outstanding: Outstanding = adjustment_store.outstanding(connection, periods, accounts)
        self.accounts = sorted({account for account, _ in self.outstanding})
        self._plans = plan_store.plans(connection)
        self._versions = {name: plan.versions for name, plan in self._plans.items()}
        self._usage: dict[BillingPeriod, CoverableUsage] = {}
        self._subscribed: dict[BillingPeriod, Mapping[str, Sequence[Subscription]]] = {}

    def of(self, account: str, *, before: datetime | None = None) -> Iterator[LatePeriod]:
        """An account's periods in order, each after the caller has taken note of the one before it.

        `before`: drafts of periods that begin earlier hold what they draw of credits. Raises CreditRefused,
        UnknownTaxGroup, EventsArchived.
        """
        documents = [
            s for s in invoice_store.listed(self._connection, billing_account=account) if s.frozen_at is not None
        ]
        states = credit_store.states(self._connection, accounts=[account])
        drawn: dict[str, Decimal] = defaultdict(lambda: ZERO)
        for period in self._periods:
            is_open = (account, period) in self.outstanding
            own = next((_Own(s.invoice, s.frozen_at, s.state) for s in documents if _bills(s.invoice, period)), None)
            if own is None and is_open:
                own = self._without_lines(account, period)
            if own is None or not (states or is_open):
                continue
            found = self._late(account, own, documents, states, drawn, before)
            changed = [*found.change.more.values(), *found.change.less.values()]
            if changed:
                yield found
            with exactly():
                for state in states:
                    drawn[state.grant.grant_id] += _drawn_by(changed, state.grant)

    def _without_lines(self, account: str, period: BillingPeriod) -> _Own:
        """In place of the invoice of a period of which there was nothing to bill when it was closed."""
        of = account_store.accounts(self._connection, [account])[account]
        identity = InvoiceIdentity(of.legal_entity, account, InvoiceKind.USAGE, period, of.currency)
        closed = billed_until_store.closed_without_invoice(self._connection, [period], [account])
        return _Own(draw_up(identity, (), plan_versions={}), closed[account, period], InvoiceState.ZERO)

    def _late(
        self,
        account: str,
        own: _Own,
        documents: Sequence[StoredInvoice],
        states: Sequence[CreditState],
        drawn: Mapping[str, Decimal],
        before: datetime | None,
    ) -> LatePeriod:
        period = own.invoice.identity.period
        others = [s.invoice for s in documents if s.invoice.invoice_id != own.invoice.invoice_id]
        grants = {state.grant.grant_id: state.grant for state in states}
        billed = billed_period([own.invoice, *others], period, grants)
        assert billed is not None, "its invoice is among the documents"
        posted = rated_line_store.posted(self._connection, period, billing_account=account)
        lines = list(net(line for listed in posted.values() for line in listed).values())
        known = [state for state in states if _known(state, own)]
        rated, open_ = RatedPeriod(tuple(lines), ()), None
        if known:
            ids = [s.invoice.invoice_id for s in documents]
            open_ = adjustment_store.coverables(self._connection, ids, period)
            rated = self._with_credits(period, billed, posted, lines, known, drawn, before)
        change = adjusted(rated.lines, billed.lines, _naming(billed, lines, self._versions))
        tax = tax_store.in_force(self._connection, [account], period.end - INSTANT)[account]
        then = None if open_ is None else as_billed(rated, (), open_, {**change.more, **change.less}).coverable
        more = () if open_ is None else as_billed(rated, (), open_, change.more).coverable
        waiting = Waiting(
            period,
            change.more,
            more_to_cover(open_ or (), more),
            tax,
            {state.grant.grant_id: _drawn_by(change.more.values(), state.grant) for state in known},
        )
        kinds = [s.invoice.identity.kind for s in documents if s.invoice.identity.period == period]
        return LatePeriod(
            billed,
            own.state not in NOT_ISSUED,
            change,
            waiting,
            then,
            states,
            kinds.count(InvoiceKind.CREDIT_NOTE),
            kinds.count(InvoiceKind.ADJUSTMENT),
        )

    def _with_credits(
        self,
        period: BillingPeriod,
        billed: BilledPeriod,
        posted: Mapping[str, Sequence[RatedLine]],
        lines: Sequence[RatedLine],
        known: Sequence[CreditState],
        drawn: Mapping[str, Decimal],
        before: datetime | None,
    ) -> RatedPeriod:
        """The period with its price reductions, as far as other documents and periods leave the grants."""
        grants = [state.grant for state in known]
        if period not in self._usage:
            self._subscribed[period] = account_store.subscriptions_in(self._connection, period)
            self._usage[period] = CoverableUsage(self._connection, period, self._subscribed[period], self._plans)
        coverable, like = self._usage[period].of(billed.invoice.identity.billing_account, posted, grants)
        reserved = credit_store.reserved(self._connection, [g.grant_id for g in grants], before=before)
        with exactly():
            left = {
                state.grant.grant_id: state.drawable
                - reserved.get(state.grant.grant_id, ZERO)
                + billed.drawn(state.grant.grant_id)
                - drawn.get(state.grant.grant_id, ZERO)
                for state in known
            }
        reduced = price_reductions(coverable, grants, left, like)
        return RatedPeriod((*lines, *reduced.lines), reduced.open)


class _Own(NamedTuple):
    """The usage invoice of a period, or what stands for it."""

    invoice: Invoice
    frozen_at: datetime | None
    state: InvoiceState


def _bills(invoice: Invoice, period: BillingPeriod) -> bool:
    return invoice.identity.kind is InvoiceKind.USAGE and invoice.identity.period == period


def _known(state: CreditState, own: _Own) -> bool:
    """Whether a grant was there when the period was billed: one that was given later covers nothing of it."""
    grant = state.grant
    assert own.frozen_at is not None, "only frozen documents are asked for"
    given_at = grant.granted_at or grant.effective
    return grant.effective < own.invoice.identity.period.end and given_at <= own.frozen_at


def _drawn_by(lines: Iterable[RatedLine], grant: Grant) -> Decimal:
    if grant.treatment is TaxTreatment.PAYMENT:
        return ZERO
    name, amount = f"credit.{grant.grant_id}", ZERO
    with exactly():
        for line in lines:
            if line.identity.charge_key == name or line.identity.charge_key.startswith(f"{name}."):
                amount -= line.amount
    return amount


def _naming(
    billed: BilledPeriod, lines: Sequence[RatedLine], plans: Mapping[str, Sequence[object]]
) -> Callable[[LineIdentity], str]:
    """Keys of a period's lines: as they were billed, and new ones by the same rule."""
    keys = billed.keys
    named = Naming(segments_of([*lines, *billed.lines]), {name: len(listed) for name, listed in plans.items()})
    return lambda of: keys.get(of) or named.key(of)


def parked_accounts(connection: Connection, up_to: datetime) -> dict[str, str]:
    """Billing accounts of which a billed period that ends by a moment cannot be rated as it is now, with the reason."""
    found: dict[str, str] = {}
    for period, problems in rated_line_store.problems(connection, up_to).items():
        frozen = billed_until_store.frozen_accounts(connection, period)
        subscribed = account_store.subscriptions_in(connection, period)
        for tenant_id, problem in problems.items():
            for account in {s.billing_account for s in subscribed.get(tenant_id, ())} & frozen:
                found.setdefault(account, f"tenant {tenant_id}, {period.name}: {problem}")
    return found
