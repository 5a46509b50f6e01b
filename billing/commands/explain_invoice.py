"""The events that an invoice bills: counted towards its lines, and as an export that can be checked elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from billing.commands.digest_usage import cut_by_account, passed_over_in, read_billed, read_changed
from billing.commands.show_invoices import shown
from billing.database import raw, transaction
from billing.errors import UnknownInvoice
from billing.invoicing import credit_store, invoice_store, rated_line_store
from billing.invoicing.billed_documents import billed_period
from billing.invoicing.explained import Explained, Explanation, Share
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoices import InvoiceKind
from billing.periods import BillingPeriod
from billing.plans import account_store, plan_store
from billing.plans.price_plans import PriceAt
from billing.plans.subscriptions import Piece, priced_at_start
from billing.rating import RatedLine
from billing.usage import unbillable_store, usage_digest_store
from billing.usage.billed_events import Billed
from billing.usage.usage_digest_store import UsageCounted
from streams.usage.event_reader import positions

if TYPE_CHECKING:
    from streams.retention.archive_files import Archive


@dataclass(frozen=True, slots=True)
class InvoiceExplained:
    """An invoice's document, those of its lines that were asked for, and what fills them."""

    document: dict[str, Any]
    lines: list[dict[str, Any]]
    counters: list[Explained]

    @property
    def agrees(self) -> bool:
        """Whether the events make what the lines stand for."""
        return all(explained.agrees for explained in self.counters)


def explain_invoice(
    engine: Engine,
    open_archive: Callable[[], Archive],
    reference: str,
    each: Callable[[Share], None],
    line_no: int | None = None,
    today: date | None = None,
) -> InvoiceExplained:
    """An invoice's lines (or one, counted from 1) down to the hours; `each` is told every event's share as it passes.

    Lines of an earlier period, also of a credit note, are explained by the events that came to bill since that period's
    own invoice, or no longer do: together with the other documents that change it, and with what waits for one.

    The document says how its collection stands `today`, if given. Raises UnknownInvoice, and what reading the archive
    raises.
    """
    with transaction(engine) as connection:
        stored = invoice_store.find(connection, reference)
        found = shown(connection, [stored], today)[0]
        lines = found["lines"] if line_no is None else found["lines"][line_no - 1 : line_no]
        if not lines:
            raise UnknownInvoice(f"{reference} has {len(found['lines'])} lines: there is no line {line_no}")
        keys = {line["line_key"] for line in lines}
        period, plans = stored.invoice.identity.period, plan_store.plans(connection)

        def priced_by(billed: Billed) -> Piece:
            held = billed.piece
            if held.subscription.terms.price_at is not PriceAt.START:
                return held
            return priced_at_start(held, billed.started_at, plans[held.subscription.plan].versions, period)

        metrics = {name: plan.declared_metrics for name, plan in plans.items()}
        own = [line for line in stored.invoice.lines if line.original_period is None]
        explanation = Explanation(period, own, priced_by, metrics)
        for billed in _billed(connection, open_archive, stored):
            for share in explanation.add(billed):
                if line_no is None or keys & set(explanation.counters[share.counter].lines):
                    each(share)
        counters = [e for e in explanation.counters.values() if line_no is None or keys & set(e.lines)]
        for period in sorted({line.original_period for line in stored.invoice.lines if line.original_period}):
            late = [line for line in stored.invoice.lines if line.original_period == period]
            explanation = Explanation(period, late, priced_by, metrics)
            for billed, sign in _changed(connection, open_archive, stored, period, explanation):
                for share in explanation.add(billed, sign):
                    if keys & set(explanation.counters[share.counter].lines):
                        each(share)
            counters += [e for e in explanation.counters.values() if keys & set(e.lines)]
    return InvoiceExplained(found, lines, counters)


def _changed(
    connection: Connection,
    open_archive: Callable[[], Archive],
    stored: StoredInvoice,
    period: BillingPeriod,
    explanation: Explanation,
) -> Iterator[tuple[Billed, int]]:
    """What came to bill of a period since its own invoice (all of it, where that was closed without one), or does no
    longer; `explanation` is told what else changes the period. Nothing where what that invoice counted is not kept."""
    account = stored.invoice.identity.billing_account
    listed = invoice_store.listed(connection, billing_account=account)
    this = stored.invoice.invoice_id
    documents = [s.invoice for s in listed if s.frozen_at is not None or s.invoice.invoice_id == this]
    grants = {s.grant.grant_id: s.grant for s in credit_store.states(connection, accounts=[account])}
    billed = billed_period(documents, period, grants)
    own: list[RatedLine] = []
    lines = [line.rated for d in documents for line in d.lines if line.original_period == period]
    since = UsageCounted(())
    if billed is not None:
        counted = usage_digest_store.of_invoices(connection, [billed.invoice.invoice_id])
        if not counted:
            return
        own = [line.rated for line in billed.invoice.lines if line.original_period is None]
        lines, since = list(billed.lines), counted[billed.invoice.invoice_id]
    posted = rated_line_store.posted(connection, period, billing_account=account)
    explanation.of_earlier(own, lines, [line for each in posted.values() for line in each])
    payers = account_store.subscriptions_in(connection, period)
    cut = cut_by_account(connection, period, payers).get(account, {})
    too_old = {
        (tenant_id, *each.key)
        for tenant_id, listed in unbillable_store.of_period(connection, period).items()
        for each in listed
    }
    passed_over = passed_over_in(connection, period, payers)
    for found, sign in read_changed(connection, open_archive, period, cut, since, passed_over):
        of = found.event
        if (of.tenant_id, of.request_id, of.attempt, of.kind, of.correction_no) not in too_old:
            yield found, sign


def export_billed_events(
    engine: Engine, open_archive: Callable[[], Archive], reference: str, write: Callable[[bytes], object]
) -> int:
    """Write every event that an invoice bills as a line of JSON, in the digest's order; how many there are."""
    count = 0
    with transaction(engine) as connection:
        for billed in _billed(connection, open_archive, invoice_store.find(connection, reference)):
            write(billed.event.line)
            count += 1
    return count


def _billed(connection: Connection, open_archive: Callable[[], Archive], stored: StoredInvoice) -> Iterator[Billed]:
    """As they were counted when the invoice was drawn up; where that is not kept, as they are now.

    Fees, and what changes an earlier period's lines (credit notes, adjustment invoices), bill no events of their own.
    """
    if stored.invoice.identity.kind is not InvoiceKind.USAGE:
        return
    identity, invoice_id = stored.invoice.identity, stored.invoice.invoice_id
    payers = account_store.subscriptions_in(connection, identity.period)
    counted = usage_digest_store.of_invoices(connection, [invoice_id]).get(invoice_id)
    below = positions(raw(connection)) if counted is None else counted.below
    passed_over = passed_over_in(connection, identity.period, payers) if counted is None else counted.passed_over
    cut = cut_by_account(connection, identity.period, payers).get(identity.billing_account, {})
    yield from read_billed(connection, open_archive, identity.period, cut, below, passed_over)
