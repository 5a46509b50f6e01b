"""The registers of a close from the database: what its other files do not say is read here, and never changes there."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import Connection

from billing.commands.show_invoices import documents_of
from billing.invoicing import invoice_store, number_store
from billing.invoicing.invoices import InvoiceKind
from billing.periods import BillingPeriod, rfc3339
from billing.posting import proposal_store
from billing.usage import unbillable_store
from reconciliation.close.close_store import APPROVED
from reconciliation.close.contents import NOT_YET
from reconciliation.close.evidence import registers
from reconciliation.close.evidence.pack_files import table
from reconciliation.close.evidence.registers import Row

TOLD_LATER: Final = frozenset(NOT_YET) - {"number", "issue_date", "due_date"}
"""What of a document that no approval was for may still change: Stripe is told of it in its own time."""


def other_documents(connection: Connection, booked: Iterable[str]) -> list[dict[str, Any]]:
    """Of the documents that are booked those that a close does not approve: fees in advance, top-ups, credit notes."""
    ids = [uuid.UUID(each) for each in sorted(booked)]
    found = [
        stored
        for kind in InvoiceKind
        if kind not in APPROVED
        for stored in invoice_store.listed(connection, invoice_ids=ids, kind=kind)
    ]
    documents = documents_of(connection, sorted(found, key=lambda s: s.invoice.invoice_id))
    return [{name: value for name, value in each.items() if name not in TOLD_LATER} for each in documents]


def register_files(
    connection: Connection,
    month: BillingPeriod,
    accounts: Sequence[Row],
    journals: Mapping[str, Sequence[Row]],
    documents: Sequence[Row],
    *,
    last_unbillable: int | None,
) -> Iterator[tuple[str, bytes]]:
    """The registers as files. `journals`: each legal entity's exported lines; `documents`: as `other_documents` has
    them; `last_unbillable`: the last number of the register of unbillable usage when the books were closed."""
    yield registers.LATE_FILE, table(registers.LATE, registers.late_usage(accounts))
    tenants = {tenant["tenant_id"] for account in accounts for tenant in account["tenants"]}
    unbillable = [
        _unbillable(tenant_id, each)
        for tenant_id, listed in sorted(unbillable_store.of_period(connection, month, tenants).items())
        for each in listed
        if last_unbillable is None or each.unbillable_no <= last_unbillable
    ]
    yield registers.UNBILLABLE_FILE, table(registers.UNBILLABLE, unbillable)
    notes: list[Row] = []
    disputes: list[Row] = []
    by_hand: list[Row] = []
    numbers: list[Row] = []
    people = {each.entry_id: each for each in proposal_store.listed(connection) if each.entry_id is not None}
    for entity, journal in journals.items():
        booked = registers.booked_documents(journal, month.name)
        own = [each for each in documents if each["legal_entity"] == entity]
        notes += registers.credit_notes(own, booked)
        disputes += registers.disputes(journal, month.name)
        for row in registers.manual_journals(journal, month.name):
            proposal = people.get(row["entry_id"])
            by_hand.append(
                row
                | {
                    "proposal_no": proposal and proposal.proposal_no,
                    "proposed_by": proposal and proposal.proposed_by,
                    "approved_by": proposal and proposal.decided_by,
                }
            )
        for issued in number_store.issued_around(connection, entity, map(uuid.UUID, booked)):
            entry = booked.get(str(issued["invoice_id"]))
            numbers.append(issued | {"accounting_period": entry and entry["accounting_period"]})
    yield registers.NOTES_FILE, table(registers.NOTES, notes)
    yield registers.DISPUTES_FILE, table(registers.DISPUTES, disputes)
    yield registers.MANUAL_FILE, table(registers.MANUAL, by_hand)
    yield registers.NUMBERS_FILE, table(registers.NUMBERS, numbers)


def _unbillable(tenant_id: str, each: unbillable_store.UnbillableEvent) -> dict[str, Any]:
    usage, quantity = each.usage, each.usage.quantity
    return {
        "billing_account": each.billing_account, "tenant_id": tenant_id, "completed_at": rfc3339(usage.completed_at),
        "request_id": usage.request_id, "attempt": usage.attempt, "kind": each.kind,
        "correction_no": each.correction_no, "model": quantity.model, "input_tokens": quantity.input_tokens,
        "cache_hit_tokens": quantity.cache_hit_tokens, "output_tokens": quantity.output_tokens,
        "horizon_days": each.horizon_days, "billed_to": rfc3339(each.billed_to), "approved_by": each.approved_by,
        "reason": each.reason,
    }  # fmt: skip
