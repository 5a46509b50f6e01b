"""The events that an invoice bills: counted towards its lines, and as an export that can be checked elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine

from billing.commands.digest_usage import cut_by_account, passed_over_in, read_billed
from billing.commands.show_invoices import shown
from billing.database import raw, transaction
from billing.errors import UnknownInvoice
from billing.invoicing import invoice_store
from billing.invoicing.explained import Explained, Explanation, Share
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoices import InvoiceKind
from billing.plans import account_store, plan_store
from billing.plans.price_plans import PriceAt
from billing.plans.subscriptions import Piece, priced_at_start
from billing.usage import usage_digest_store
from billing.usage.billed_events import Billed
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
        explanation = Explanation(stored.invoice.lines, priced_by, metrics)
        for billed in _billed(connection, open_archive, stored):
            for share in explanation.add(billed):
                if line_no is None or keys & set(explanation.counters[share.counter].lines):
                    each(share)
    counters = [e for e in explanation.counters.values() if line_no is None or keys & set(e.lines)]
    return InvoiceExplained(found, lines, counters)


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
