"""From an object as stored to an object as Stripe shows it."""

from __future__ import annotations

from typing import Any

from devstack.stripe_twin.resources import credit_note_object, customer_object, invoice_item_object, invoice_object
from devstack.stripe_twin.routing import Call
from devstack.stripe_twin.rules.pagination import list_object, page_of
from devstack.stripe_twin.session import Session, State

_RENDERERS = {
    "credit_note": credit_note_object.render,
    "customer": customer_object.render,
    "invoice": invoice_object.render,
    "invoiceitem": invoice_item_object.render,
}


def render(session: Session, state: State) -> dict[str, Any]:
    """Stripe's shape of ``state``, whatever its type; types without a rule of their own lose private names."""
    renderer = _RENDERERS.get(state["object"])
    return renderer(session, state) if renderer else public(state)


def public(state: State) -> dict[str, Any]:
    return {name: value for name, value in state.items() if not name.startswith("_")}


def rendered_page(call: Call, kind: str, filters: dict[str, Any], url: str) -> dict[str, Any]:
    """One page of ``kind`` as a list object, by the call's pagination parameters."""
    states, has_more = call.session.page(kind, filters, page_of(call.params))
    return list_object(url, [render(call.session, state) for state in states], has_more)
