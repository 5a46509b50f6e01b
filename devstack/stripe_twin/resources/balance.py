"""The account's balance: all that moved, by currency. Money settles at once here, so that none of it is pending.

Source: docs.stripe.com/api/balance/balance_object.
"""

from __future__ import annotations

from typing import Any

from stripe.params._balance_retrieve_params import BalanceRetrieveParams

from devstack.stripe_twin.routing import Call, Route


def retrieve(call: Call) -> dict[str, Any]:
    """What is there in each currency that something moved in, and in the account's own."""
    sums = {"usd": 0} | call.session.sums_by("balance_transaction", "net", "currency")
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


ROUTES = (Route("GET", "/v1/balance", retrieve, BalanceRetrieveParams),)
