"""Events: what happened to an object, with the object as it was then.

Source: docs.stripe.com/api/events (shape, kept for 30 days), docs.stripe.com/webhooks (unordered, repeated, signed).
"""

from __future__ import annotations

from typing import Any

from devstack.stripe_twin.authentication import API_VERSION
from devstack.stripe_twin.routing import Call

KEPT_SECONDS = 30 * 24 * 60 * 60


def emit(call: Call, kind: str, shown: dict[str, Any]) -> None:
    """Record that something happened to an object, in the transaction in which it does."""
    event = {
        "id": call.ids.new("evt"),
        "object": "event",
        "api_version": API_VERSION,
        "created": call.told_at,
        "data": {"object": shown},
        "livemode": False,
        "pending_webhooks": 0,
        "request": {"id": call.request_id, "idempotency_key": call.idempotency_key},
        "type": kind,
    }
    call.session.insert(event, call.told_at)
    call.session.events.append(event)
