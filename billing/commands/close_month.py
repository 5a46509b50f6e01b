"""From a month's usage to finalized invoices: rate and book, draw up, send, expire credits, seal. Each step resumes.

Credit is bought where it runs low, and what is held in other currencies than a legal entity's own is remeasured.

Fees in advance whose time has begun by then come first; what is earned of them in the month is booked. What came late
to earlier periods is rated: credit notes are issued, the rest is carried by the next invoices. Billing periods that are
no calendar months are billed by the month that they end in; what goes on is accrued.

What prepares (`prepare_month`) and what issues (`finalize_month`) are apart: between them lie the gates and the
approval of a close (`reconciliation/close`). Only a dry run (`foresee_month`) is both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Engine

from billing.bills.documents import GRACE
from billing.commands.close_other_periods import (
    Choice,
    Chosen,
    PeriodClosed,
    bill_other_periods,
    everything,
    rate_other_periods,
)
from billing.commands.draft_invoices import InvoicesDrafted, draft_invoices
from billing.commands.expire_credits import CreditExpired, expire_credits
from billing.commands.invoice_in_advance import NOTHING_IN_ADVANCE, AdvanceInvoiced, invoice_in_advance
from billing.commands.issue_credit_notes import CreditNotesIssued, issue_credit_notes
from billing.commands.rate_period import PeriodRated, rate_period
from billing.commands.remeasure_balances import Remeasured, remeasure_balances
from billing.commands.seal_journal import keep_balances, seal_journals
from billing.commands.send_invoices import InvoicesSent, Outcome, send_invoices
from billing.commands.top_up_credit import ToppedUp, top_up_credits
from billing.database import raw, transaction
from billing.errors import PeriodNotEnded
from billing.invoicing import adjustment_store
from billing.invoicing.sending import SendingStep
from billing.money import plain, total
from billing.periods import BillingPeriod
from billing.posting.breakage_recognition import recognise_breakage
from billing.posting.fee_recognition import recognise_fees
from billing.stripe.stripe_accounts import Stripe
from billing.usage import settled_periods
from streams import audit

StageProgress = Callable[[str, int, int], None]
"""Told the stage (`rate`, `send`), how many are done, and of how many."""


@dataclass(frozen=True, slots=True)
class MonthClosed:
    """What a run of the close did and found."""

    period: BillingPeriod
    rated: PeriodRated
    drafted: InvoicesDrafted
    sent: InvoicesSent
    dry_run: bool = False
    expired: tuple[CreditExpired, ...] = ()
    in_advance: AdvanceInvoiced = NOTHING_IN_ADVANCE
    others: tuple[PeriodClosed, ...] = ()
    earlier: tuple[PeriodRated, ...] = ()
    notes: CreditNotesIssued = field(default_factory=lambda: CreditNotesIssued((), ()))
    remeasured: tuple[Remeasured, ...] = ()
    topped_up: tuple[ToppedUp, ...] = ()

    @property
    def accounts_to_redraw(self) -> frozenset[str]:
        """Billing accounts whose drafts follow what this run rated anew."""
        return frozenset(
            line.billing_account
            for rated in (*self.earlier, self.rated)
            for tenant in rated.tenants
            for line in tenant.posted
        )

    @property
    def amount(self) -> Decimal:
        """Exact price of the month, over all tenants rated (of one currency)."""
        return total(tenant.amount for tenant in self.rated.tenants)

    @property
    def late(self) -> list[str]:
        """What came after its invoice was frozen and was posted by this run, each in a line."""
        return [
            f"{rated.period.name}: usage of {late.tenant_id} worth {plain(late.amount)} {late.currency} came after its"
            " invoice"
            for rated in (*self.earlier, self.rated)
            for late in rated.late
        ]

    @property
    def problems(self) -> list[str]:
        """What waits for a person or a later run, each in a line."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        for other in self.others:
            yield from other.problems
        for usage in self.rated.unpriced:
            yield str(usage)
        yield from self.rated.unratable
        for lost in self.rated.unsubscribed:
            yield f"tenant {lost.tenant_id}: {lost.requests} requests without a subscription: start one for that time"
        yield from self.in_advance.problems
        for earlier in self.earlier:
            for text in (*map(str, earlier.unpriced), *earlier.unratable):
                yield f"{earlier.period.name}: {text}"
            yield from _unbillable(earlier)
            for account in self._without_invoice(earlier):
                yield f"billing account {account} has no invoice for {earlier.period.name}: close that month first"
        yield from _unbillable(self.rated)
        for account, reason in self.notes.blocked:
            yield f"billing account {account} gets no credit note: {reason}"
        for account, reason in self.drafted.blocked:
            yield f"billing account {account} has no invoice: {reason}"
        for invoice in (*self.sent.having(Outcome.PARKED), *self.sent.having(Outcome.LATER)):
            yield f"invoice of {invoice.billing_account}: {invoice.outcome.value}: {invoice.reason}"
        for book in self.remeasured:
            if book.problem is not None:
                yield book.problem

    def _without_invoice(self, earlier: PeriodRated) -> list[str]:
        """Accounts of which an earlier month's usage is posted now, and whose invoice of it was never frozen."""
        late = {(each.tenant_id, each.billing_account) for each in earlier.late}
        posted = {(tenant.tenant_id, line.billing_account) for tenant in earlier.tenants for line in tenant.posted}
        return sorted({account for _, account in posted - late})


def foresee_month(
    engine: Engine,
    *,
    period: BillingPeriod,
    gateway: Stripe,
    now: datetime,
    actor: str,
    test: bool = False,
    progress: StageProgress | None = None,
) -> MonthClosed:
    """What a close of a month would rate, draw up and send as it stands now; it changes nothing, and asks no gate.

    Its drafts and what would be sent are as of what is posted already, and `accounts_to_redraw` says which of them the
    new rated lines would change. Raises as `prepare_month`.
    """
    prepared = prepare_month(
        engine, period=period, gateway=gateway, now=now, actor=actor, test=test, progress=progress, dry_run=True
    )
    return finalize_month(engine, prepared, gateway=gateway, now=now, actor=actor, progress=progress)


def prepare_month(
    engine: Engine,
    *,
    period: BillingPeriod,
    gateway: Stripe,
    now: datetime,
    actor: str,
    test: bool = False,
    progress: StageProgress | None = None,
    dry_run: bool = False,
    until: SendingStep = SendingStep.FINALIZED,
    of: Chosen = everything,
    accounts: Callable[[], Collection[str] | None] = lambda: None,
    credited: Callable[[], Collection[str] | None] = lambda: None,
) -> MonthClosed:
    """Rate and book a month that has ended, and draw its invoices up; what has been done is in what is returned.

    `test` marks the run in the audit log. Other billing periods that end in it are taken as far as `until`. `of` says
    what of each period is rated, earlier ones included; `accounts`, asked when all of it is rated, whose invoices are
    drawn up (None: everybody's); `credited` likewise who gets credit notes for what is owed less of earlier periods.

    Raises PeriodNotEnded, and what rating, drafting and sending raise when nothing at all can go on.
    """
    if now < period.end:
        raise PeriodNotEnded(f"{period.name} ends {period.end:%Y-%m-%d %H:%M} UTC: it is closed after that")
    with transaction(engine, dry_run=dry_run) as connection:
        audit.record(raw(connection), actor, "close.run", period.name, {"now": now.isoformat(), "test": test})
    to_rate = periods_to_rate_again(engine, before=period)
    earlier = tuple(_rated_again(engine, each, of(each), terms, now, dry_run) for each, terms in to_rate.items())
    others = rate_other_periods(engine, month=period, now=now, dry_run=dry_run, of=of)
    chosen = of(period)
    rated = rate_period(
        engine, period=period, now=now, progress=_stage(progress, "rate"), dry_run=dry_run, tenants=chosen.tenants,
        keep=chosen.keep,
    )  # fmt: skip
    drawn_up = accounts()
    others = bill_other_periods(
        engine, others, month=period, gateway=gateway, now=now, actor=actor, dry_run=dry_run, until=until,
        billing_accounts=drawn_up,
    )  # fmt: skip
    # A day after its end a period is frozen: fees that begin until then are invoiced before its usage.
    in_advance = invoice_in_advance(
        engine, until=period.end + GRACE, gateway=gateway, now=now, actor=actor, dry_run=dry_run
    )
    notes = issue_credit_notes(
        engine, up_to=period.end, now=now, actor=actor, dry_run=dry_run, billing_accounts=credited()
    )
    drafted = draft_invoices(engine, period=period, now=now, actor=actor, dry_run=dry_run, billing_accounts=drawn_up)
    return MonthClosed(period, rated, drafted, InvoicesSent(()), dry_run, (), in_advance, others, earlier, notes)


def finalize_month(
    engine: Engine,
    prepared: MonthClosed,
    *,
    gateway: Stripe,
    now: datetime,
    actor: str,
    progress: StageProgress | None = None,
    billing_accounts: Collection[str] | None = None,
) -> MonthClosed:
    """Issue a month's invoices, of some billing accounts if given, and book what follows. Safe to repeat."""
    period, dry_run, notes = prepared.period, prepared.dry_run, prepared.notes
    sent = send_invoices(
        engine, period=period, gateway=gateway, now=now, actor=actor, progress=_stage(progress, "send"),
        dry_run=dry_run, billing_accounts=billing_accounts,
    )  # fmt: skip
    if notes.blocked:  # what waited for a credit that an invoice has given back by now
        names = [name for name, _ in notes.blocked]
        again = issue_credit_notes(
            engine, up_to=period.end, now=now, actor=actor, dry_run=dry_run, billing_accounts=names
        )
        notes = CreditNotesIssued((*notes.notes, *again.notes), again.blocked)
    # After the invoices: what they could still draw on is no breakage.
    expired = expire_credits(engine, up_to=period.end, now=now, actor=actor, dry_run=dry_run)
    with transaction(engine, dry_run=dry_run) as connection:
        recognise_fees(connection, period, now=now)
        recognise_breakage(connection, period, now=now)
    topped_up = top_up_credits(engine, now=now, actor=actor, dry_run=dry_run)
    remeasured = remeasure_balances(engine, period, now=now, dry_run=dry_run)
    if not dry_run:
        seal_journals(engine)
        keep_balances(engine, effective_before=period.end)
    return replace(
        prepared, sent=sent, notes=notes, expired=tuple(expired), topped_up=tuple(topped_up),
        remeasured=tuple(remeasured),
    )  # fmt: skip


def _stage(progress: StageProgress | None, name: str) -> Callable[[int, int], None] | None:
    return (lambda done, total: progress(name, done, total)) if progress else None


def _unbillable(rated: PeriodRated) -> Iterator[str]:
    by_tenant = Counter(tenant_id for tenant_id, _ in rated.unbillable)
    for tenant_id, count in sorted(by_tenant.items()):
        yield (
            f"{rated.period.name}: {count} events of {tenant_id} came later than its contract bills:"
            f" `tollbook close unbillable {rated.period.name}` lists them, --approve lets them stay unbilled"
        )


def periods_to_rate_again(engine: Engine, *, before: BillingPeriod) -> dict[BillingPeriod, str]:
    """The periods that ended before a month and to which late usage may have come: rated before, and not settled."""
    with transaction(engine) as connection:
        return settled_periods.unsettled(connection, adjustment_store.rated_periods(connection, before.start))


def _rated_again(
    engine: Engine, period: BillingPeriod, chosen: Choice, terms: str, now: datetime, dry_run: bool
) -> PeriodRated:
    rated = rate_period(engine, period=period, now=now, dry_run=dry_run, tenants=chosen.tenants, keep=chosen.keep)
    if rated.ok and not rated.unbillable and chosen.tenants is None:
        with transaction(engine, dry_run=dry_run) as connection:
            settled_periods.settle(connection, period, terms)
    return rated
