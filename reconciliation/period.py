"""Reconcile one billing period: read every record of it and compare stage by stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from typing import Final

from sqlalchemy import Connection, Engine

from billing.commands.trial_balance import trial_balance
from billing.database import one_moment, raw, transaction
from billing.invoicing import (
    adjustment_store,
    billed_until_store,
    credit_store,
    invoice_parts,
    invoice_store,
    invoice_sums,
    number_store,
    rated_line_store,
)
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import ISSUED
from billing.invoicing.invoices import InvoiceKind
from billing.ledger import ledger_store
from billing.ledger.journal import FEES_EARNED
from billing.periods import INSTANT, BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.price_plans import BillAttempts, PlanVersion, PriceAt
from billing.plans.schedules import MONTHLY, periods_in
from billing.plans.subscriptions import Piece, pieces
from billing.posting import proposal_store
from billing.posting.breakage_recognition import expected_as_booked
from billing.posting.proposal_store import ProposalKind
from billing.rating import RatedLine
from billing.stripe import customer_store, returns_store
from billing.stripe.stripe_accounts import Everywhere, Stripe, all_followed
from billing.usage import unbillable_store
from billing.usage.attempts import less
from reconciliation import agreement, stripe_agreement, stripe_receivables, stripe_records, usage_records
from reconciliation.agreement import Check, Made, Terms, compare, told
from reconciliation.comparison import Difference, Value
from reconciliation.errors import PeriodNotReconcilable
from reconciliation.numbers_received import numbers_received
from reconciliation.usage_records import ReadLog
from reconciliation.witness_agreement import engine_checks
from streams.completeness import engine_store
from streams.completeness.engine_witness import EngineReport
from streams.ingest import passed_positions
from streams.ingest.logs import Log
from streams.rules.windows import AttemptUsage, UsageQuantity
from streams.usage import usage_store

BALANCES: Final = (1100, 1150, 2110, 2200, 4000, 4010, 4050, 4900, 4910, 5900)
"""Accounts to which accruals, invoices and money in Stripe are booked, and else only what two people approved."""
BILLS_USAGE: Final = (InvoiceKind.USAGE, InvoiceKind.ADJUSTMENT)
BOOKED: Final = "1100, 1150, 2100, 2110, 2200, 5900, revenue"
EXPLAINED: Final = "1100, 1150, 2110, 2200, 5900, revenue"


@dataclass(frozen=True, slots=True)
class PeriodReport:
    """The checks of one period, in the order in which usage becomes money."""

    period: BillingPeriod
    checks: tuple[Check, ...]
    engines: EngineReport
    """How engine counters stand to events, boots that were cut off included; which witnesses there are."""

    @property
    def agrees(self) -> bool:
        """Whether no check found a difference."""
        return all(check.agrees for check in self.checks)


def reconcile_period(
    engine: Engine | Connection,
    *,
    period: BillingPeriod,
    now: datetime,
    gateway: Stripe | None,
    log: ReadLog | None,
) -> PeriodReport:
    """Compare every record of a calendar month: its usage, what was accrued for it, the periods that it bills.

    Without `gateway` or `log`, Stripe or Kafka's end is left out. Raises PeriodNotReconcilable for anything else, and
    OtherStripeAccount where a gateway is not of the account that the books follow.
    """
    if gateway is not None:
        all_followed(engine, gateway, dry_run=True)
    asked = ask(gateway, log)
    with one_moment(engine) as connection:
        report = compare_period(connection, period=period, now=now, asked=asked)
    if gateway is None:
        return report
    with transaction(engine) as connection:
        paid = stripe_receivables.payments(connection, customer_store.customers(connection), asked.paid)
    about_today = (paid, stripe_records.disputes(engine, gateway), stripe_records.customers(engine, gateway))
    return replace(report, checks=(*report.checks, *about_today))


@dataclass(frozen=True, slots=True)
class Asked:
    """Where Kafka ended, and what Stripe's money was, by the entity whose account it is, before the database was read:
    what has come since is in the database and not here, and no difference."""

    gateway: Stripe | None = None
    log: ReadLog | None = None
    ended: Log | None = None
    money: Mapping[str, stripe_records.MoneySeen] = field(default_factory=dict)
    paid: stripe_receivables.Paid = field(default_factory=dict)
    """What was paid of Stripe's invoices, noted as they are read."""


def ask(gateway: Stripe | None, log: ReadLog | None) -> Asked:
    """Ask what can be asked; None: not asked, and its comparisons are left out."""
    accounts = () if gateway is None else gateway.each
    money = {account.legal_entity: stripe_records.money_seen(account) for account in accounts}
    return Asked(gateway, log, log() if log is not None else None, money)


def compare_period(
    connection: Connection, *, period: BillingPeriod, now: datetime, asked: Asked, made: Made = lambda name: None
) -> PeriodReport:
    """Compare all that a transaction of one moment sees (`one_moment`) of a month. Raises PeriodNotReconcilable."""
    if period.months != 1:
        raise PeriodNotReconcilable(f"{period.name}: one month is reconciled at a time, e.g. 2026-10")
    own, invoices = _documents(connection, period)
    checks = list(told(_checks(connection, period, own, invoices, asked, ended=now >= period.end), made))
    engines = engine_store.report(raw(connection), period.start, period.end)
    ours = stripe_agreement.Ours(
        period, invoices, invoice_sums.stripe_invoice_ids(connection), customer_store.customers(connection)
    )
    checks += told(_afterwards(connection, engines, ours, asked, now.date()), made)
    return PeriodReport(period, tuple(checks), engines)


def documents_of_month(connection: Connection, month: BillingPeriod) -> list[StoredInvoice]:
    """What a month bills, and what was billed since it began of earlier ones, altered or not."""
    return _documents(connection, month)[1]


def _documents(connection: Connection, month: BillingPeriod) -> tuple[list[StoredInvoice], list[StoredInvoice]]:
    """What a month bills; and with it what was billed since it began of earlier ones."""
    own = invoice_store.listed(connection, of_month=month, as_stored=True)
    return own, own + invoice_store.came_after(connection, month)


def _checks(
    connection: Connection,
    period: BillingPeriod,
    own: list[StoredInvoice],
    invoices: list[StoredInvoice],
    asked: Asked,
    *,
    ended: bool,
) -> Iterator[Check]:
    """What is compared of the database's records, and of Kafka's end.

    `own`: what the month bills; `invoices`: also what was billed since it began of earlier ones.
    """
    usage = raw(connection)
    if asked.log is not None and asked.ended is not None:
        yield usage_records.log_end(usage, asked.ended, asked.log)
    yield agreement.positions(passed_positions.extents(usage), passed_positions.runs(usage))
    yield usage_records.stored(usage, period)
    yield from numbers_received(usage, period.start, period.end)
    yield from usage_records.windows(usage, period)
    lines = rated_line_store.accrued_in(connection, period)
    yield _rated(connection, period, lines)
    yield from _ledger(connection, period, lines, invoices)
    yield _explained(connection)
    yield from _credits(connection, len(invoices))
    yield _invoiced(connection, period, own, invoices)
    yield from _invoices(invoices)
    yield _numbers(connection)
    yield _suspense(connection)
    yield _issued(invoices, ended=ended)
    yield _earned(connection, period, len(invoices), ended=ended)


def _afterwards(
    connection: Connection, engines: EngineReport, ours: stripe_agreement.Ours, asked: Asked, today: date
) -> Iterator[Check]:
    yield from engine_checks(engines)
    yield _trial_balance(connection)
    if (gateway := asked.gateway) is not None:
        there = Everywhere(gateway)
        listed = stripe_receivables.noting(there.invoices(), asked.paid)
        yield stripe_agreement.in_stripe(ours, listed, lambda at: there.gateway_of(at).invoice(at)[1])
        notes = chain.from_iterable(each.pages("/v1/credit_notes") for each in gateway.each)
        yield stripe_receivables.credit_notes(connection, ours.invoices, notes)
        yield stripe_records.money(connection, ours.period, gateway, asked.money)
        yield stripe_records.balances(connection, asked.money, today)


def _rated(connection: Connection, period: BillingPeriod, lines: Iterable[RatedLine]) -> Check:
    subscribed = account_store.subscriptions_during(connection, period)
    plans = plan_store.plans(connection)
    by_event = agreement.priced_by_event({t: [plans[s.plan] for s in listed] for t, listed in subscribed.items()})
    billable = agreement.billable_by_metric(_usage_with_terms(connection, period))
    rated = agreement.rated_by_metric(lines)
    ours, theirs = ({k: v for k, v in found.items() if k not in by_event} for found in (billable, rated))
    check = compare("usage is rated", "billable events", "rated quantities", ours, theirs)
    hindered = [
        Difference(f"{tenant}/problem: {problem}", "rated", None)
        for tenant, problem in rated_line_store.problems_in(connection, period)
    ]
    return Check(check.name, check.left, check.right, check.compared, (*check.differences, *hindered))


def _usage_with_terms(
    connection: Connection, period: BillingPeriod
) -> Iterator[tuple[Terms | None, Iterable[UsageQuantity]]]:
    """Every tenant's events, cut where its terms change; None for the times in which it had no subscription.

    Without those that came later than the contract bills: they are in the register of unbillable usage.
    """
    subscribed = account_store.subscriptions_during(connection, period)
    too_old: dict[str, list[AttemptUsage]] = defaultdict(list)
    for each in periods_in((s for listed in subscribed.values() for s in listed), period):
        for tenant, listed in unbillable_store.of_period(connection, each).items():
            too_old[tenant] += [late.usage for late in listed if period.contains(late.usage.completed_at)]
    versions = {name: plan.versions for name, plan in plan_store.plans(connection).items()}
    statuses = {tenant: {s for sub in subs for s in sub.bill_statuses} for tenant, subs in subscribed.items()}
    whole: dict[str, list[UsageQuantity]] = {tenant: [] for tenant in subscribed}
    for usage in usage_store.delivered_quantities(raw(connection), period.start, period.end, statuses):
        whole[usage.tenant_id].append(usage)
    for usage in usage_store.raw_quantities(raw(connection), period.start, period.end):
        if usage.tenant_id not in subscribed:
            whole.setdefault(usage.tenant_id, []).append(usage)
    for tenant, all_of_it in sorted(whole.items()):
        cut: dict[tuple[datetime, datetime], Terms | None] = {
            (piece.start, piece.end): _terms(piece, versions[piece.subscription.plan])
            for piece in pieces(subscribed.get(tenant, []), versions, period)
        }
        cut |= dict.fromkeys((s.trial for s in subscribed.get(tenant, []) if s.trial), agreement.FREE)
        cut |= dict.fromkeys(agreement.gaps(cut, period.start, period.end))
        for (start, end), terms in cut.items():
            if (start, end) == (period.start, period.end) and not (terms and terms.every_attempt):
                used: Iterable[UsageQuantity] = all_of_it
            elif terms is None or terms.every_attempt:
                used = usage_store.raw_quantities(raw(connection), start, end, tenant)
            else:
                bill = {tenant: terms.bill_statuses}
                used = usage_store.delivered_quantities(raw(connection), start, end, bill)
            within = [usage for usage in too_old.get(tenant, ()) if start <= usage.completed_at < end]
            yield terms, less(used, within) if within else used


def _terms(piece: Piece, versions: tuple[PlanVersion, ...]) -> Terms:
    terms = piece.subscription.terms
    return Terms(
        terms.bill_statuses,
        piece.version.metrics,
        terms.bill_attempts is BillAttempts.ALL,
        versions if terms.price_at is PriceAt.START else (),
    )


def _ledger(
    connection: Connection, period: BillingPeriod, lines: list[RatedLine], invoices: list[StoredInvoice]
) -> list[Check]:
    accrued = {
        f"{subledger}/{currency}": amount
        for (code, subledger, currency), amount in ledger_store.accrued(connection, period.name).items()
        if code == 1150
    }
    ids = [str(i.stored_id) for i in invoices]
    moved = [
        ledger_store.movements(connection, kind=kind, of="invoice_id", names=ids) for kind in ("invoice", "credit_note")
    ]
    booked = agreement.booked(*moved)
    issued = agreement.invoices_in_ledger(i.invoice for i in invoices if i.state in ISSUED)
    return [
        compare("rated lines are accrued", "rated lines", "ledger 1150", agreement.rated_by_tenant(lines), accrued),
        compare("issued invoices are booked", "invoices", f"ledger {BOOKED}", issued, booked),
    ]


def _earned(connection: Connection, month: BillingPeriod, invoices: int, *, ended: bool) -> Check:
    """What fees in advance earn in a month is booked once it has ended; so many invoices were looked at for it."""
    earning = invoice_store.earning_fees(connection, month) if ended else []
    due = agreement.earned((stored.invoice for stored in earning), month)
    booked = agreement.booked(ledger_store.movements(connection, kind=FEES_EARNED, of="period", names=[month.name]))
    check = compare("fees in advance are earned", "invoices, by the second", "ledger 2110, 4010", due, booked)
    return Check(check.name, check.left, check.right, max(check.compared, invoices), check.differences)


def _unearned(connection: Connection) -> dict[tuple[str, str], Decimal]:
    """What is deferred of fees in advance. Of an invoice that has earned its last month nothing is."""
    months = ledger_store.earned_months(connection)
    open_ = [
        invoice_id
        for invoice_id, service in invoice_sums.fee_services(connection, ISSUED).items()
        if MONTHLY.period_of(service.end - INSTANT).name not in months.get(str(invoice_id), ())
    ]
    invoices = [stored.invoice for stored in invoice_store.listed(connection, invoice_ids=open_, as_stored=True)]
    return agreement.unearned(invoices, months)


def _explained(connection: Connection) -> Check:
    proposed = proposal_store.listed(connection)
    kinds = (ProposalKind.POST_ENTRY, ProposalKind.SETTLE_CREDIT)
    by_hand = [p.entry_id for p in proposed if p.kind in kinds and p.entry_id is not None]
    moved = returns_store.entries(connection)
    expected = agreement.explained(
        rated_line_store.amounts_by_tenant(connection),
        invoice_sums.invoiced_by_tenant(connection, ISSUED),
        [agreement.Issued(*row) for row in invoice_sums.totals(connection, ISSUED)],
        credit_store.drawn_unpaid(connection),
        ledger_store.balances(connection, BALANCES, of_entries=[*by_hand, *moved]),
        invoice_sums.invoiced_in_advance(connection, ISSUED),
        _unearned(connection),
    )
    booked = agreement.booked(ledger_store.balances(connection, BALANCES))
    return compare(
        "the books are explained", "lines, invoices, money in Stripe", f"ledger {EXPLAINED}", expected, booked
    )


def _credits(connection: Connection, invoices: int) -> list[Check]:
    left = {
        (state.grant.grant_id, state.grant.currency): state.remaining
        for state in credit_store.states(connection)
        if state.is_liability
    }
    liability = {key[1:]: amount for key, amount in ledger_store.balances(connection, [2100]).items()}
    breakage = {key[1:]: amount for key, amount in ledger_store.balances(connection, [2105]).items()}
    on_invoices = invoice_parts.credits_drawn(connection, ISSUED)
    return [
        agreement.credits_owed(left, liability),
        agreement.breakage_expected(expected_as_booked(connection), breakage),
        agreement.credits_drawn(on_invoices, credit_store.drawn(connection), invoices),
        _registered_credits(connection),
    ]


def _registered_credits(connection: Connection) -> Check:
    """Grants, paid or not, and all that moved them are what the memo register has of them (R7)."""
    found = []
    for each in credit_store.not_as_registered(connection):
        what = "granted" if each.movement_no is None else f"{each.kind} {each.movement_no}"
        key = "/".join(filter(None, (each.billing_account, each.grant_id, what, each.field)))
        found.append(Difference(key, each.registered, each.there))
    count = credit_store.registered(connection)
    return Check("credits are as registered", "memo register", "credits and movements", count, tuple(found))


def _invoiced(
    connection: Connection, month: BillingPeriod, own: list[StoredInvoice], invoices: list[StoredInvoice]
) -> Check:
    """Rated lines are on their period's own invoices, or on documents that name it as their original one.

    Of the billing periods that end in a month, and of earlier ones to which something came: that waits until the next
    invoice of its account is drawn up. What comes late to the month waits until that is frozen, and no longer, or is on
    an adjustment invoice that is drawn up at once.
    """
    rated: list[RatedLine] = []
    waiting: list[RatedLine] = []
    late: set[tuple[str, str]] = set()
    billed = _own_lines(own)
    drawn_up = {
        s.invoice.identity.billing_account
        for s in invoices
        if s.frozen_at is None and s.invoice.identity.kind in BILLS_USAGE
    }
    for period in _earlier(connection, month, invoices):
        issued = invoice_store.listed(connection, period=period, kind=InvoiceKind.USAGE, as_stored=True)
        of = {s.invoice.identity.billing_account for s in issued if s.frozen_at is not None}
        of |= {account for account, _ in billed_until_store.closed_without_invoice(connection, [period])}
        came = [each for each in adjustment_store.late_lines(connection, period) if each.line.billing_account in of]
        late |= {(each.line.billing_account, each.line.tax_group) for each in came}
        waiting += [each.line for each in came if each.waits and each.line.billing_account not in drawn_up]
        posted = rated_line_store.posted(connection, period).values()
        rated += [line for listed in posted for line in listed if line.billing_account in of]
        billed += [line for line in _own_lines(issued) if line.billing_account in of]
        billed += [
            line.rated
            for s in invoice_store.listed(connection, adjusts=period, as_stored=True)
            for line in s.invoice.lines
            if line.original_period == period and line.rated.billing_account in of and not s.invoice.in_advance
        ]
    for period in rated_line_store.periods_ending_in(connection, month):
        rated += [line for listed in rated_line_store.posted(connection, period).values() for line in listed]
        came = adjustment_store.late_lines(connection, period)
        late |= {(each.line.billing_account, each.line.tax_group) for each in came}
        naming = invoice_store.listed(connection, adjusts=period, as_stored=True)
        at_once = [s for s in naming if s.frozen_at is None and s.invoice.identity.kind is InvoiceKind.ADJUSTMENT]
        adjusted = {s.invoice.identity.billing_account for s in at_once}
        waiting += [each.line for each in came if each.waits and each.line.billing_account not in adjusted]
        billed += [
            line.rated
            for s in (*at_once, *(s for s in naming if s.frozen_at is not None))
            for line in s.invoice.lines
            if line.original_period == period
        ]
    return agreement.rated_is_invoiced(rated, waiting, billed, late)


def _own_lines(invoices: Iterable[StoredInvoice]) -> list[RatedLine]:
    """The lines of invoices that are of their own period, but for fees in advance."""
    return [
        line.rated
        for s in invoices
        for line in s.invoice.lines
        if line.original_period is None and not s.invoice.in_advance
    ]


def _earlier(connection: Connection, month: BillingPeriod, invoices: Iterable[StoredInvoice]) -> list[BillingPeriod]:
    """The periods that ended before a month and that its documents are about, or of which something was rated since."""
    named = {line.original_period for s in invoices for line in s.invoice.lines if line.original_period is not None}
    named |= set(adjustment_store.periods_with_late_lines(connection, month.start))
    return sorted(period for period in named if period.end <= month.start)


def _numbers(connection: Connection) -> Check:
    """Each series counts from 1 without a gap, and each document bears its number (docs/spec/money.md 8)."""
    found = number_store.numbers(connection)
    counters: dict[str, Value] = {}
    issued: dict[str, Value] = {}
    for series, (last, count, highest) in found.items():
        counters |= {f"{series}/how many": last, f"{series}/last": last}
        issued |= {f"{series}/how many": count, f"{series}/last": highest}
    check = compare("numbers have no gaps", "counters", "numbers issued", counters, issued)
    others = [Difference(*each) for each in number_store.miswritten(connection)]
    missing = [Difference(each, "issued", None) for each in number_store.missing(connection)]
    return replace(check, differences=(*check.differences, *missing, *others))


def _invoices(invoices: list[StoredInvoice]) -> list[Check]:
    documents = [stored.invoice for stored in invoices]
    said, summed = agreement.invoice_sums(documents)
    drawn_up: dict[str, Value] = {}
    stands: dict[str, Value] = {}
    for s in invoices:
        drawn_up |= {f"{s.stored_id}/identity": str(s.stored_id), f"{s.stored_id}/lines": s.stored_lines_hash}
        stands |= {
            f"{s.stored_id}/identity": str(s.invoice.invoice_id),
            f"{s.stored_id}/lines": s.invoice.lines_hash,
        }
    return [
        compare("invoices are as drawn up", "id and hash", "identity and lines", drawn_up, stands),
        compare("invoices add up", "invoice totals", "sums of their lines", said, summed),
    ]  # fmt: skip


def _issued(invoices: list[StoredInvoice], *, ended: bool) -> Check:
    """Once the month has ended no draft is left, none waits for approval, and none is parked."""
    open_ = [s for s in invoices if s.state not in ISSUED or s.parked_because is not None] if ended else []
    found = [
        Difference(
            f"{s.stored_id} of {s.invoice.identity.billing_account}", "issued", s.parked_because or s.state.value
        )
        for s in open_
    ]
    return Check("invoices are issued", "a month that has ended", "invoices' states", len(invoices), tuple(found))


def _suspense(connection: Connection) -> Check:
    """Money of nobody waits in 1090 until two people have posted it where it belongs (docs/spec/money.md 9)."""
    left = returns_store.suspense(connection)
    found = [Difference(f"{each.legal_entity}/{each.name}/{each.currency}", None, each.amount) for each in left]
    return Check("money is somebody's", "what people posted", "ledger 1090", 1 + len(left), tuple(found))


def _trial_balance(connection: Connection) -> Check:
    totals = trial_balance(connection, use_snapshots=False).totals
    debit = {currency: debit for currency, (debit, _) in totals.items()}
    credit = {currency: credit for currency, (_, credit) in totals.items()}
    return compare("the books balance", "debit", "credit", debit, credit)
