"""Fees in advance from what is due to finalized invoices. Running it again resumes, and bills nothing twice."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Engine

from billing.commands.bill_in_advance import AdvanceBilled, bill_in_advance
from billing.commands.send_invoices import InvoiceSent, InvoicesSent, Outcome, send_invoices
from billing.invoicing.invoice_rows import StoredInvoice
from billing.stripe.stripe_accounts import Stripe


@dataclass(frozen=True, slots=True)
class AdvanceInvoiced:
    """What was due in advance, and what became of its invoices."""

    billed: AdvanceBilled
    sent: InvoicesSent

    @property
    def problems(self) -> list[str]:
        """What waits for a person or a later run, each in a line."""
        return list(self._problems())

    def _problems(self) -> Iterator[str]:
        for _, reason in self.billed.blocked:
            yield reason
        for invoice in (*self.sent.having(Outcome.PARKED), *self.sent.having(Outcome.LATER)):
            yield f"advance invoice of {invoice.billing_account}: {invoice.outcome.value}: {invoice.reason}"


NOTHING_IN_ADVANCE: Final = AdvanceInvoiced(AdvanceBilled((), ()), InvoicesSent(()))


def invoice_in_advance(
    engine: Engine,
    *,
    until: datetime,
    gateway: Stripe,
    now: datetime,
    actor: str,
    dry_run: bool = False,
    adjust: Collection[str] = (),
) -> AdvanceInvoiced:
    """Invoice the fees in advance that become due until a moment, but not after `now`; each account's in their order.

    `adjust`: as of `bill_in_advance`. Raises what sending raises.
    """
    sent: dict[uuid.UUID, InvoiceSent] = {}
    notes: list[StoredInvoice] = []
    while True:
        billed = bill_in_advance(engine, until=until, now=now, actor=actor, dry_run=dry_run, adjust=adjust)
        notes += billed.notes
        ids = [invoice.invoice_id for invoice in billed.drafts if invoice.invoice_id not in sent]
        if not ids:
            return AdvanceInvoiced(replace(billed, notes=tuple(notes)), InvoicesSent(tuple(sent.values())))
        found = send_invoices(engine, invoice_ids=ids, gateway=gateway, now=now, actor=actor, dry_run=dry_run)
        sent |= {each.invoice_id: each for each in found.invoices}
        if dry_run:
            return AdvanceInvoiced(billed, found)
