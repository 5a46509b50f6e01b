"""Whose money it is that moved in Stripe."""

from __future__ import annotations

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.plans import account_store
from billing.stripe import returns, returns_store
from billing.stripe.stripe_gateway import StripeGateway


def customer_who_paid(engine: Engine, gateway: StripeGateway, charge_id: str | None) -> str | None:
    """Who paid the charge that a refund or a dispute is about."""
    if charge_id is None:
        return None
    with transaction(engine) as connection:
        known = returns_store.customer_of_source(connection, charge_id)
    return known or returns.customer_of_charge(gateway, charge_id)


def payer(connection: Connection, customer: str | None) -> tuple[str | None, str]:
    """The billing account of a customer, and whose books its money goes to."""
    account = returns_store.account_of_customer(connection, customer) if customer else None
    if account is None:
        return None, account_store.DEFAULT_LEGAL_ENTITY
    return account, account_store.accounts(connection, [account])[account].legal_entity
