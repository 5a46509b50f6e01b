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
from stripe.params._payout_list_params import PayoutListParams
from stripe.params._payout_retrieve_params import PayoutRetrieveParams
from stripe.params._refund_create_params import RefundCreateParams
from stripe.params._refund_list_params import RefundListParams
from stripe.params._refund_retrieve_params import RefundRetrieveParams

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.events import KEPT_SECONDS, emit
from devstack.stripe_twin.resources import money_objects
from devstack.stripe_twin.resources.attributes import PAGE_PARAMS, filters
from devstack.stripe_twin.resources.rendering import render, rendered_page
from devstack.stripe_twin.routing import Call, Handler, Route
from devstack.stripe_twin.rules.metadata import merge


def _retrieve(kind: str) -> Handler:
    return lambda call: render(call.session, call.session.get(kind, call.target["id"]))


def _list(kind: str, names: frozenset[str], url: str) -> Handler:
    return lambda call: rendered_page(call, kind, filters(call.params, names), url)


def create_refund(call: Call) -> dict[str, Any]:
    """Of a charge, all that is left of it or ``amount``; the fee of the charge is kept."""
    if "charge" not in call.params:
        raise invalid("The twin refunds charges: name one.", "charge", "parameter_missing")
    charge = call.session.get("charge", call.params["charge"], "charge")
    left = charge["amount_captured"] - charge["amount_refunded"] - charge["_disputed_amount"]
    if left <= 0:
        raise invalid(f"Charge {charge['id']} has already been refunded.", "charge", "charge_already_refunded")
    amount = call.params.get("amount", left)
    if not 0 < amount <= left:
        raise invalid(f"Refund amount ({amount}) is greater than unrefunded amount on charge ({left})", "amount")
    metadata = merge({}, call.params.get("metadata"))
    refund = money_objects.new_refund(call, charge, amount, call.params.get("reason"), metadata)
    moved = money_objects.add_balance_transaction(call, "refund", "refund", refund["id"], -amount, refund["currency"])
    refund["balance_transaction"] = moved["id"]
    charge["amount_refunded"] += amount
    charge["refunded"] = charge["amount_refunded"] == charge["amount"]
    call.session.insert(refund, call.now)
    call.session.update(charge)
    emit(call, "charge.refunded", money_objects.public(charge))
    return render(call.session, refund)


def update_dispute(call: Call) -> dict[str, Any]:
    """Evidence is kept until it is submitted, and then with the bank."""
    dispute = call.session.get("dispute", call.target["id"])
    if dispute["status"] != "needs_response":
        raise invalid(f"This dispute is {dispute['status']}: evidence is not taken any more.")
    dispute["metadata"] = merge(dispute["metadata"], call.params.get("metadata"))
    dispute["evidence"] |= call.params.get("evidence") or {}
    dispute["evidence_details"]["has_evidence"] = bool(dispute["evidence"])
    if call.params.get("submit"):
        dispute["evidence_details"]["submission_count"] += 1
        dispute["status"] = "under_review"
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
    *_reads("refund", "/v1/refunds", RefundListParams, RefundRetrieveParams, _CREATED | {"charge"}),
    *_reads("dispute", "/v1/disputes", DisputeListParams, DisputeRetrieveParams, _CREATED | {"charge"}),
    *_reads("payout", "/v1/payouts", PayoutListParams, PayoutRetrieveParams, _CREATED | {"status"}),
    *_reads(
        "balance_transaction", "/v1/balance_transactions", BalanceTransactionListParams,
        BalanceTransactionRetrieveParams, _CREATED | {"currency", "source", "type"},
    ),
    *_reads("event", "/v1/events", EventListParams, EventRetrieveParams, _CREATED | {"type"}, list_events),
    Route(
        "POST", "/v1/refunds", create_refund, RefundCreateParams, frozenset({"charge", "amount", "reason", "metadata"}),
        event="refund.created",
    ),
    Route(
        "POST", "/v1/disputes/{id}", update_dispute, DisputeUpdateParams, frozenset({"evidence", "metadata", "submit"}),
        event="charge.dispute.updated",
    ),
    Route("POST", "/v1/disputes/{id}/close", close_dispute, DisputeCloseParams, event="charge.dispute.closed"),
)  # fmt: skip
