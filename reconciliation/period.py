"""Reconcile one billing period: read every record of it and compare stage by stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import psycopg
from sqlalchemy import Connection, Engine

from billing import account_store, invoice_store, ledger_store, plan_store, rated_line_store
from billing.commands.trial_balance import trial_balance
from billing.database import raw, transaction
from billing.invoice_store import StoredInvoice
from billing.invoices import InvoiceState
from billing.money import to_stripe
from billing.periods import BillingPeriod
from billing.rating import RatedLine
from billing.stripe_gateway import StripeGateway, StripeInvoice
from reconciliation import agreement
from reconciliation.agreement import Check, compare
from reconciliation.comparison import Difference, Value, multiset_differences
from streams import sources, usage_store
from streams.sources import Log

ISSUED = frozenset(InvoiceState) - {InvoiceState.DRAFT, InvoiceState.APPROVED, InvoiceState.PREVIEW}
"""States in which an invoice is in the journal."""
IN_STRIPE = ISSUED - {InvoiceState.ZERO, InvoiceState.CARRIED_BELOW_MINIMUM}
"""States in which Stripe must have it, finalized."""


@dataclass(frozen=True, slots=True)
class PeriodReport:
    """The checks of one period, in the order in which usage becomes money."""

    period: BillingPeriod
    checks: tuple[Check, ...]

    @property
    def agrees(self) -> bool:
        """Whether no check found a difference."""
        return all(check.agrees for check in self.checks)


def reconcile_period(
    engine: Engine, *, period: BillingPeriod, gateway: StripeGateway | None, log: Log | None
) -> PeriodReport:
    """Compare every record of a period. Without `gateway` or `log`, Stripe or Kafka's end is left out."""
    with transaction(engine) as connection:
        usage = raw(connection)
        lines = [line for posted in rated_line_store.posted(connection, period).values() for line in posted]
        invoices = invoice_store.listed(connection, period=period)
        checks = [
            *([_log_end(usage, log)] if log else []),
            agreement.positions(sources.extents(usage), sources.chunks(usage)),
            _stored(usage),
            *_windows(usage, period),
            _rated(connection, period, lines),
            *_ledger(connection, period, lines, invoices),
            *_invoices(lines, invoices),
        ]
    checks.append(_trial_balance(engine))
    if gateway is not None:
        checks.append(_stripe(gateway, period, invoices))
    return PeriodReport(period, tuple(checks))


def _log_end(usage: psycopg.Connection, log: Log) -> Check:
    stored = sources.states(usage, log.topic)
    ends = {sources.source_name(log.topic, p): end for p, end in log.ends.items()}
    applied = {
        sources.source_name(log.topic, p): stored[p].next_position if p in stored else log.begins[p] for p in log.ends
    }
    return compare("everything in Kafka is applied", "Kafka's end", "positions", ends, applied)


def _stored(usage: psycopg.Connection) -> Check:
    recorded, there = sources.counted_outcomes(usage), sources.stored_counts(usage)
    return compare("what was counted is stored", "chunks", "events and quarantine", _pairs(recorded), _pairs(there))


def _pairs(counts: Mapping[str, tuple[int, int]]) -> dict[str, Value]:
    events: dict[str, Value] = {f"{source}/events": applied for source, (applied, _) in counts.items()}
    return events | {f"{source}/quarantine": held for source, (_, held) in counts.items()}


def _windows(usage: psycopg.Connection, period: BillingPeriod) -> list[Check]:
    events = agreement.usage_by_key(usage_store.raw_quantities(usage, period.start, period.end))
    minutes = agreement.usage_by_key(usage_store.minute_quantities(usage, period.start, period.end))
    hours = agreement.usage_by_key(usage_store.rating_quantities(usage, period.start, period.end))
    return [
        compare("events are in their minute", "raw events", "1-minute windows", events, minutes),
        compare("events are in their hour", "raw events", "1-hour windows", events, hours),
    ]


def _rated(connection: Connection, period: BillingPeriod, lines: Iterable[RatedLine]) -> Check:
    subscribed = account_store.subscriptions_in(connection, period)
    plans = plan_store.plans(connection)
    statuses = {t: frozenset(s for sub in subs for s in sub.bill_statuses) for t, subs in subscribed.items()}
    priced = {
        tenant: frozenset(m.value for sub in subs for v in plans[sub.plan].versions for m in v.metrics)
        for tenant, subs in subscribed.items()
    }
    usage = usage_store.raw_quantities(raw(connection), period.start, period.end)
    billable = agreement.billable_by_metric(usage, statuses, priced)
    return compare("usage is rated", "billable events", "rated quantities", billable, agreement.rated_by_metric(lines))


def _ledger(
    connection: Connection, period: BillingPeriod, lines: list[RatedLine], invoices: list[StoredInvoice]
) -> list[Check]:
    accrued = {
        f"{subledger}/{currency}": amount
        for (code, subledger, currency), amount in ledger_store.movements(
            connection, kind="accrual", period=period.name
        ).items()
        if code == 1150
    }
    booked = {
        f"{code}/{subledger}/{currency}": amount
        for (code, subledger, currency), amount in ledger_store.movements(
            connection, kind="invoice", period=period.name
        ).items()
    }
    issued = agreement.invoices_in_ledger(i.invoice for i in invoices if i.state in ISSUED)
    return [
        compare("rated lines are accrued", "rated lines", "ledger 1150", agreement.rated_by_tenant(lines), accrued),
        compare("issued invoices are booked", "invoices", "ledger 1100, 1150, 5900", issued, booked),
    ]


def _invoices(lines: list[RatedLine], invoices: list[StoredInvoice]) -> list[Check]:
    documents = [stored.invoice for stored in invoices]
    said, summed = agreement.invoice_sums(documents)
    return [
        compare("rated lines are invoiced", "rated lines", "invoice lines",
                agreement.rated_by_line(lines), agreement.invoiced_by_line(documents)),
        compare("invoices add up", "invoice totals", "sums of their lines", said, summed),
    ]  # fmt: skip


def _trial_balance(engine: Engine) -> Check:
    totals = trial_balance(engine).totals
    debit = {currency: debit for currency, (debit, _) in totals.items()}
    credit = {currency: credit for currency, (_, credit) in totals.items()}
    return compare("the books balance", "debit", "credit", debit, credit)


def _stripe(gateway: StripeGateway, period: BillingPeriod, invoices: Iterable[StoredInvoice]) -> Check:
    """Both ways: each of ours is in Stripe as it should be, and Stripe has no other that claims to be of the period."""
    ours = {str(i.invoice.invoice_id): i for i in invoices if i.state in IN_STRIPE}
    found: list[Difference] = []
    claimed: Counter[str] = Counter()
    for theirs in gateway.invoices():
        if theirs.seen.metadata.get("period") != period.name or theirs.seen.status == "void":
            continue
        claim = theirs.seen.metadata.get("invoice_id", "")
        claimed[claim] += 1
        if claim not in ours or claimed[claim] > 1:
            found.append(Difference(f"{theirs.invoice_id} ({claim or 'without our id'})", None, theirs.seen.status))
        else:
            found += _stripe_differences(gateway, ours[claim], theirs)
    found += [Difference(key, stored.stripe_invoice_id, None) for key, stored in ours.items() if not claimed[key]]
    return Check(
        "finalized invoices are in Stripe", "invoices", "Stripe", len(ours.keys() | claimed.keys()), tuple(found)
    )


def _stripe_differences(gateway: StripeGateway, stored: StoredInvoice, theirs: StripeInvoice) -> list[Difference]:
    invoice, money = stored.invoice, stored.invoice.identity.money
    expected: dict[str, Value] = {
        "id": stored.stripe_invoice_id or "",
        "number": stored.number or "",
        "currency": invoice.identity.currency.lower(),
        "total": to_stripe(invoice.total_minor, money),
        "finalized": "True",
    }
    seen: dict[str, Value] = {
        "id": theirs.invoice_id,
        "number": theirs.seen.number or "",
        "currency": theirs.seen.currency,
        "total": theirs.seen.total,
        "finalized": str(theirs.seen.status != "draft"),
    }
    key = f"{theirs.invoice_id}"
    found = [Difference(f"{key}/{d.key}", d.left, d.right) for d in compare("", "", "", expected, seen).differences]
    lines = theirs.lines if theirs.lines is not None else gateway.invoice(theirs.invoice_id)[1]
    our_lines = Counter(f"{line.line_key} {to_stripe(line.amount_minor, money)}" for line in invoice.lines)
    return found + multiset_differences(key, our_lines, Counter(f"{line.line_key} {line.amount}" for line in lines))
