"""The account that a key is: its id, and little else.

Source: docs.stripe.com/api/accounts/retrieve (without an id: of the key itself).
"""

from __future__ import annotations

from typing import Any

from stripe.params._account_retrieve_current_params import AccountRetrieveCurrentParams

from devstack.stripe_twin.routing import Call, Route


def retrieve(call: Call) -> dict[str, Any]:
    """The account of the request's key."""
    return {
        "id": call.session.account,
        "object": "account",
        "charges_enabled": True,
        "country": "US",
        "default_currency": "usd",
        "payouts_enabled": True,
        "type": "standard",
    }


ROUTES = (Route("GET", "/v1/account", retrieve, AccountRetrieveCurrentParams),)
