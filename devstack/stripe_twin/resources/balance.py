"""The account's balance: all that moved, by currency. Money settles at once here, so that none of it is pending.

Source: docs.stripe.com/api/balance/balance_object.
"""

from __future__ import annotations

from typing import Any

from stripe.params._balance_retrieve_params import BalanceRetrieveParams

from devstack.stripe_twin.routing import Call, Route


def retrieve(call: Call) -> dict[str, Any]:
    """What is there in each currency that something moved in, and in the account's own."""
    sums = {"usd": 0} | payments(call)
    return {
        "object": "balance",
        "available": [
            {"amount": amount, "currency": currency, "source_types": {"card": amount}}
            for currency, amount in sorted(sums.items())
        ],
        "livemode": False,
        "pending": [
            {"amount": 0, "currency": currency, "source_types": {"card": 0}} for currency in sorted(sums)
        ],
    }  # fmt: skip


def payments(call: Call) -> dict[str, int]:
    """By currency what the payments balance came to: what is held in reserve is none of it."""
    return call.session.sums_by("balance_transaction", "net", "currency", balance_type="payments")


ROUTES = (Route("GET", "/v1/balance", retrieve, BalanceRetrieveParams),)
