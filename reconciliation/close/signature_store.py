"""Signatures that were given before an account was reopened, with what was issued under them, from the database."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import ARRAY, UUID, Connection, any_, cast, select

from billing import tables
from billing.commands.show_invoices import documents_of
from billing.invoicing import invoice_store
from billing.invoicing.invoice_states import ISSUED
from billing.invoicing.invoices import InvoiceKind
from billing.periods import BillingPeriod
from reconciliation.agreement import Check
from reconciliation.close import close_store, signatures
from reconciliation.close.close_store import Content
from reconciliation.close.signatures import Signature, Signed


def of_reopened(connection: Connection, month: BillingPeriod) -> list[Signature]:
    """Of the accounts that were reopened after something was issued: `signatures.of_reopened`."""
    steps = close_store.history(connection, month.name, reopened=True)
    return signatures.of_reopened((each.billing_account, each.event, each.detail) for each in steps)


def texts(connection: Connection, month: BillingPeriod, of: Collection[Signature]) -> dict[tuple[str, str], str]:
    """What was signed, by account and hash, in the order in which it was put before a person."""
    if not of:
        return {}
    contents = tables.close_contents
    query = (
        select(contents.c.billing_account, contents.c.hash, contents.c.content)
        .where(contents.c.month == month.name, contents.c.hash.in_({each.hash for each in of}))
        .order_by(contents.c.content_no)
    )
    return {(account, digest): text for account, digest, text in connection.execute(query)}


def as_signed(connection: Connection, month: BillingPeriod) -> Check:
    """R5a: what was issued before an account was reopened is what was signed then."""
    of = of_reopened(connection, month)
    signed = _read(texts(connection, month, of))
    return signatures.as_signed(of, signed, _issued(connection, signed))


def since_signed(connection: Connection, month: BillingPeriod) -> list[dict[str, str]]:
    """What has become of reopened accounts since their first signature: rows of `signatures.SINCE`."""
    of = of_reopened(connection, month)
    if not of:
        return []
    signed = _read(texts(connection, month, of))
    accounts = {each.billing_account for each in of}
    now = {
        each.billing_account: json.loads(each.content)
        for each in close_store.latest_contents(connection, month.name, accounts)
    }
    noted = invoice_store.listed(
        connection, billing_accounts=accounts, kind=InvoiceKind.CREDIT_NOTE, states=ISSUED, as_stored=True
    )
    notes = documents_of(connection, noted)
    return list(signatures.since_signed(of, signed, now, _issued(connection, signed), notes))


def issued_with(connection: Connection, contents: Iterable[Content]) -> dict[str, dict[str, Any]]:
    """By account what is issued of its content by now, with what no draft has: the detail of a step."""
    of = {
        uuid.UUID(document["invoice_id"]): each.billing_account
        for each in contents
        for document in json.loads(each.content)["documents"]
    }
    table = tables.invoices
    query = select(table.c.invoice_id, *(table.c[name] for name in signatures.TOLD)).where(
        table.c.invoice_id == any_(cast(list(of), ARRAY(UUID))), table.c.state.in_([each.value for each in ISSUED])
    )
    found: dict[str, dict[str, Any]] = {account: {signatures.ISSUED: {}} for account in of.values()}
    for row in connection.execute(query).mappings():
        told = {name: None if row[name] is None else str(row[name]) for name in signatures.TOLD}
        found[of[row["invoice_id"]]][signatures.ISSUED][str(row["invoice_id"])] = told
    return found


def _read(found: Mapping[tuple[str, str], str]) -> Signed:
    return {key: json.loads(text) for key, text in found.items()}


def _issued(connection: Connection, signed: Signed) -> dict[str, dict[str, Any]]:
    ids = {uuid.UUID(each["invoice_id"]) for content in signed.values() for each in content["documents"]}
    stored = [s for s in invoice_store.listed(connection, invoice_ids=ids, as_stored=True) if s.state in ISSUED]
    return {str(s.stored_id): told for s, told in zip(stored, documents_of(connection, stored), strict=True)}
