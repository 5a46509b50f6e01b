"""Invoices for people and machines: one as a document, or a list of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import date
from typing import Any, Final

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.invoicing import invoice_store, party_store
from billing.invoicing.dunning import Standing, dunning
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoice_states import InvoiceState
from billing.invoicing.invoices import Invoice, InvoiceLine
from billing.invoicing.parties import party_document
from billing.invoicing.party_store import Sides
from billing.money import plain
from billing.periods import BillingPeriod, rfc3339
from billing.stripe import standing_store
from billing.usage import usage_digest_store
from billing.usage.usage_digest_store import UsageCounted

NOT_IN_STRIPE: Final = {
    InvoiceState.ZERO: "zero: nothing is due",
    InvoiceState.ISSUED_LOCALLY: "issued here: Stripe is not told of it yet, or has no invoice that it could lower",
    InvoiceState.CARRIED_BELOW_MINIMUM: "below the minimum that Stripe charges: carried to the next invoice",
}


def invoice_document(engine: Engine, reference: str, *, today: date | None = None) -> dict[str, Any]:
    """One invoice by id, number or Stripe id, in the shape of `invoice show --json`. Raises UnknownInvoice.

    How its collection stands is in it as of `today`, if given.
    """
    with transaction(engine) as connection:
        return shown(connection, [invoice_store.find(connection, reference)], today)[0]


def invoice_list(
    engine: Engine,
    *,
    period: BillingPeriod | None = None,
    within: BillingPeriod | None = None,
    billing_account: str | None = None,
    states: Collection[InvoiceState] | None = None,
    of_month: BillingPeriod | None = None,
    today: date | None = None,
) -> list[dict[str, Any]]:
    """Invoices in the same shape: of a period, of every service period within one, or those that a month bills."""
    with transaction(engine) as connection:
        found = invoice_store.listed(
            connection,
            period=period,
            within=within,
            billing_account=billing_account,
            states=states,
            of_month=of_month,
        )
        return shown(connection, found, today)


def shown(connection: Connection, found: Sequence[StoredInvoice], today: date | None) -> list[dict[str, Any]]:
    """Stored invoices as documents, with how their collection stands `today`, if given."""
    documents = documents_of(connection, found)
    if today is None:
        return documents
    standings = standing_store.standings(connection, [stored.invoice.invoice_id for stored in found])
    return [
        document | _collection(stored, standings.get(stored.invoice.invoice_id), today)
        for document, stored in zip(documents, found, strict=True)
    ]


def documents_of(connection: Connection, found: Sequence[StoredInvoice]) -> list[dict[str, Any]]:
    """Stored invoices as documents, without how their collection stands."""
    ids = [stored.invoice.invoice_id for stored in found]
    digests = usage_digest_store.of_invoices(connection, ids)
    sides = party_store.on_documents(connection, {s.invoice.invoice_id: s.invoice.identity for s in found})
    originals = invoice_store.headers(connection, [s.invoice.credits_invoice_id for s in found])
    return [
        document_of(stored, sides[i], digests.get(i), originals.get(stored.invoice.credits_invoice_id))
        for i, stored in zip(ids, found, strict=True)
    ]


def _collection(stored: StoredInvoice, standing: Standing | None, today: date) -> dict[str, Any]:
    """How the collection of an invoice stands: minor units, as Stripe had them when it was looked at last."""
    state = dunning(stored.state, standing, stored.due_date, today)
    factor = stored.invoice.identity.money.stripe_factor
    return {
        "dunning": state and state.value,
        "paid": None if standing is None else standing.amount_paid // factor,
        "remaining": None if standing is None else standing.amount_remaining // factor,
        "payment_failed_at": standing and standing.failed_at and rfc3339(standing.failed_at),
    }


def document_of(
    stored: StoredInvoice,
    sides: Sides,
    counted: UsageCounted | None = None,
    original: tuple[str | None, date | None] | None = None,
) -> dict[str, Any]:
    """A stored invoice as a document. Minor amounts are integers, exact ones decimal strings, times RFC 3339 UTC.

    `original`: number and issue date of the invoice that a credit note takes back from.
    """
    invoice = stored.invoice
    identity = invoice.identity
    tenants = sorted({line.rated.identity.tenant_id for line in invoice.lines})
    return {
        "invoice_id": str(invoice.invoice_id),
        "number": stored.number,
        "legal_entity": identity.legal_entity,
        "billing_account": identity.billing_account,
        "tenant_id": tenants[0] if len(tenants) == 1 else None,
        "kind": identity.kind.value,
        "period": identity.period.name,
        "service_start": rfc3339(identity.period.start),
        "service_end": rfc3339(identity.period.end),
        "revision": identity.revision,
        "currency": identity.currency,
        "credits_invoice": original and {"number": original[0], "issue_date": _day(original[1])},
        "state": stored.state.value,
        "issue_date": _day(stored.issue_date),
        "due_date": _day(stored.due_date),
        "payment_terms_days": sides.payment_terms_days,
        "purchase_order": sides.buyer.purchase_order or None,
        "seller": party_document(sides.seller),
        "buyer": party_document(sides.buyer),
        "lines": [_line(invoice, line) for line in invoice.lines],
        "net": invoice.net_minor,
        "tax_mode": invoice.tax_mode.value,
        "tax": [
            {
                "tax_group": r.group,
                "mode": invoice.tax_mode.value,
                "rate": plain(r.rate),
                "base": r.base_minor,
                "amount": r.tax_minor,
            }
            for r in invoice.taxes
        ],
        "credits": [
            {
                "credit_id": c.grant_id,
                "kind": c.kind.value,
                "tax_treatment": c.treatment.value,
                "pays": c.pays,
                "amount": c.amount_minor,
                "amount_exact": plain(c.amount),
                "left": plain(c.left),
            }
            for c in invoice.credits
        ],
        "carried": [{"number": c.number, "amount": c.amount_minor} for c in invoice.carried],
        "received": invoice.received_minor,
        "carried_in": sum(c.amount_minor for c in invoice.carried),
        "total": invoice.total_minor,
        "amount_due": invoice.amount_due_minor,
        "exact_total": plain(invoice.exact_total),
        "rounding": plain(invoice.rounding),
        "stripe_invoice_id": stored.stripe_invoice_id,
        "stripe_customer_id": stored.stripe_customer_id,
        "hosted_invoice_url": stored.hosted_invoice_url,
        "reason_not_in_stripe": NOT_IN_STRIPE.get(stored.state),
        "parked_because": stored.parked_because,
        "usage_digest": None if counted is None else counted.digest,
        "usage": None if counted is None else [tenant.document() for tenant in counted.tenants],
    }


def _line(invoice: Invoice, line: InvoiceLine) -> dict[str, Any]:
    rated = line.rated
    model, adapter, region, tier = rated.where
    return {
        "line_key": line.line_key,
        "kind": rated.identity.kind,
        "tenant_id": rated.identity.tenant_id,
        "model": model,
        "adapter": adapter,
        "region": region,
        "tier": tier,
        "token_class": str(rated.metric),
        "plan": rated.identity.plan,
        "charge": rated.identity.charge_key,
        "segment": rated.identity.segment_no,
        "tier_no": rated.identity.tier_no,
        "price_version": rated.identity.version,
        "service_period": BillingPeriod(rated.service_start, rated.service_end).name,
        "original_period": (line.original_period or invoice.identity.period).name,
        "counted": plain(rated.counted),
        "quantity": plain(rated.quantity),
        "unit_price": None if rated.unit_price is None else plain(rated.unit_price),
        "amount_exact": plain(rated.amount),
        "amount": line.amount_minor,
        "tax_group": line.tax_group,
    }


def _day(on: date | None) -> str | None:
    return on.isoformat() if on is not None else None
