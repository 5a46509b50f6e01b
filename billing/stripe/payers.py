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


def payer(connection: Connection, customer: str | None, whose: str) -> tuple[str | None, str]:
    """The billing account of a customer, and to whose books its money goes.

    In an entity's own account of Stripe's (`whose`) all money is that entity's, or of one that shares the account: what
    no customer of theirs has paid is nobody's that we know.
    """
    account = returns_store.account_of_customer(connection, customer) if customer else None
    if account is None:
        return None, whose
    entity = account_store.accounts(connection, [account])[account].legal_entity
    if returns_store.paid_to(connection, entity) not in (None, whose):
        return None, whose
    return account, entity
