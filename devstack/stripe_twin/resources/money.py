"""Charges, refunds, disputes, payouts, balance transactions, and events: what a client may ask and do.

Sources: docs.stripe.com/api/charges, /api/refunds, /api/disputes, /api/payouts, /api/balance_transactions, /api/events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stripe.params._balance_transaction_list_params import BalanceTransactionListParams
from stripe.params._balance_transaction_retrieve_params import BalanceTransactionRetrieveParams
from stripe.params._charge_list_params import ChargeListParams
from stripe.params._charge_retrieve_params import ChargeRetrieveParams
from stripe.params._dispute_close_params import DisputeCloseParams
from stripe.params._dispute_list_params import DisputeListParams
from stripe.params._dispute_retrieve_params import DisputeRetrieveParams
from stripe.params._dispute_update_params import DisputeUpdateParams
from stripe.params._event_list_params import EventListParams
from stripe.params._event_retrieve_params import EventRetrieveParams
from stripe.params._invoice_payment_list_params import InvoicePaymentListParams
from stripe.params._invoice_payment_retrieve_params import InvoicePaymentRetrieveParams
from stripe.params._payout_list_params import PayoutListParams
from stripe.params._payout_retrieve_params import PayoutRetrieveParams
from stripe.params._refund_create_params import RefundCreateParams
from stripe.params._refund_list_params import RefundListParams
from stripe.params._refund_retrieve_params import RefundRetrieveParams

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.events import KEPT_SECONDS
from devstack.stripe_twin.resources import money_objects
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, filters
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Handler, Route
from devstack.stripe_twin.rules.metadata import merge
from devstack.stripe_twin.session import State

EVIDENCE_CHARACTERS = 150_000
"""docs.stripe.com/api/disputes/update: all fields together; some of them up to 20,000 each."""
_TAKES_EVIDENCE = {"needs_response": "under_review", "warning_needs_response": "warning_under_review"}


def _retrieve(kind: str) -> Handler:
    return lambda call: render(call.session, call.session.get(kind, call.target["id"]))


def _list(kind: str, names: frozenset[str], url: str) -> Handler:
    return lambda call: rendered_page(call, kind, filters(call.params, names), url)


def create_refund(call: Call) -> dict[str, Any]:
    """Of a charge or its payment intent, all that is left of it or ``amount``; the fee of the charge is kept."""
    charge = _charge(call)
    amount = call.params.get("amount", money_objects.refundable(charge))
    metadata = merge({}, call.params.get("metadata"))
    refund = money_objects.refund_charge(call, charge, amount, call.params.get("reason"), metadata)
    invoice = call.session.find("invoice", charge.get("_invoice") or "")
    if invoice is not None:
        invoice["_refunded"] = invoice.get("_refunded", 0) + amount
        call.session.update(invoice)
    return render(call.session, refund)


def _charge(call: Call) -> State:
    intent = call.params.get("payment_intent")
    if "charge" in call.params:
        return call.session.get("charge", call.params["charge"], "charge")
    if intent is None:
        raise invalid("One of charge or payment_intent is required.", "charge", "parameter_missing")
    found = [each for each in call.session.all("charge") if each["payment_intent"] == intent and each["paid"]]
    if not found:
        raise invalid(f"No such payment_intent: '{intent}'", "payment_intent", "resource_missing")
    return found[0]


def update_dispute(call: Call) -> dict[str, Any]:
    """Evidence is kept until it is submitted, and then with the bank."""
    dispute, given = call.session.get("dispute", call.target["id"]), call.params.get("evidence") or {}
    if dispute["status"] not in _TAKES_EVIDENCE:
        raise invalid(f"This dispute is {dispute['status']}: evidence is not taken any more.")
    if sum(len(text) for text in given.values() if isinstance(text, str)) > EVIDENCE_CHARACTERS:
        raise invalid(f"The evidence has more than {EVIDENCE_CHARACTERS} characters.", "evidence")
    dispute["metadata"] = merge(dispute["metadata"], call.params.get("metadata"))
    dispute["evidence"] |= given
    dispute["evidence_details"]["has_evidence"] = bool(dispute["evidence"])
    if call.params.get("submit", bool(given)):
        dispute["evidence_details"]["submission_count"] += 1
        dispute["status"] = _TAKES_EVIDENCE[dispute["status"]]
    call.session.update(dispute)
    return render(call.session, dispute)


def close_dispute(call: Call) -> dict[str, Any]:
    """Giving in: the dispute is lost."""
    dispute = call.session.get("dispute", call.target["id"])
    if dispute["status"] not in ("needs_response", "under_review"):
        raise invalid(f"This dispute is {dispute['status']} already.")
    dispute["status"] = "lost"
    call.session.update(dispute)
    return render(call.session, dispute)


def list_invoice_payments(call: Call) -> dict[str, Any]:
    chosen = filters(call.params, _CREATED | {"invoice", "status"})
    if "payment" in call.params:
        chosen["payment"] = call.params["payment"].get("payment_intent", "")
    return rendered_page(call, "invoice_payment", chosen, "/v1/invoice_payments")


def list_events(call: Call) -> dict[str, Any]:
    """Of the last 30 days."""
    chosen = filters(call.params, frozenset({"type", "created"}))
    created = chosen.get("created", {})
    if isinstance(created, dict):
        chosen["created"] = {**created, "gt": max(created.get("gt", 0), call.now - KEPT_SECONDS)}
    return rendered_page(call, "event", chosen, "/v1/events")


def _reads(
    kind: str,
    path: str,
    listing: type,
    retrieving: type,
    names: frozenset[str],
    lister: Callable[..., Any] | None = None,
) -> tuple[Route, ...]:
    return (
        Route("GET", path, lister or _list(kind, names, path), listing, names | PAGE_PARAMS),
        Route("GET", f"{path}/{{id}}", _retrieve(kind), retrieving),
    )


_CREATED = frozenset({"created"})

ROUTES = (
    *_reads("charge", "/v1/charges", ChargeListParams, ChargeRetrieveParams, _CREATED | {"customer"}),
    *_reads("refund", "/v1/refunds", RefundListParams, RefundRetrieveParams, _CREATED | {"charge", "payment_intent"}),
    *_reads("dispute", "/v1/disputes", DisputeListParams, DisputeRetrieveParams, _CREATED | {"charge"}),
    *_reads("payout", "/v1/payouts", PayoutListParams, PayoutRetrieveParams, _CREATED | {"status"}),
    *_reads(
        "balance_transaction", "/v1/balance_transactions", BalanceTransactionListParams,
        BalanceTransactionRetrieveParams, _CREATED | {"currency", "source", "type"},
    ),
    *_reads(
        "invoice_payment", "/v1/invoice_payments", InvoicePaymentListParams, InvoicePaymentRetrieveParams,
        _CREATED | {"invoice", "payment", "status"}, list_invoice_payments,
    ),
    *_reads("event", "/v1/events", EventListParams, EventRetrieveParams, _CREATED | {"type"}, list_events),
    Route(
        "POST", "/v1/refunds", create_refund, RefundCreateParams,
        frozenset({"charge", "payment_intent", "amount", "reason", "metadata"}),
        event="refund.created",
    ),
    Route(
        "POST", "/v1/disputes/{id}", update_dispute, DisputeUpdateParams, frozenset({"evidence", "metadata", "submit"}),
        event="charge.dispute.updated",
    ),
    Route("POST", "/v1/disputes/{id}/close", close_dispute, DisputeCloseParams, event="charge.dispute.closed"),
)  # fmt: skip
