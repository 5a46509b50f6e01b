"""Months at Stripe for tests: finalized invoices, taking in what came, what the books say then."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from billing.commands.send_invoices import Outcome
from billing.commands.sync_stripe import StripeSynced, sync_stripe
from billing.commands.trial_balance import trial_balance
from billing.stripe.stripe_accounts import Stripe
from billing.stripe.stripe_gateway import StripeGateway
from tests.integration.billing.conftest import World


def finalized(world: World, gateway: StripeGateway, *names: str) -> dict[str, str]:
    """An invoice of 20.00 for each account, finalized: their ids in Stripe."""
    world.customers(*names)
    for name in names:
        world.use(name, output_tokens=10_000)
    world.rate()
    world.draft()
    done = world.send(gateway)
    assert {i.outcome for i in done.invoices} == {Outcome.FINALIZED}
    return {i.billing_account: str(i.stripe_invoice_id) for i in done.invoices}


def sync(world: World, gateway: Stripe, **changed: Any) -> StripeSynced:
    """Take in what Stripe has."""
    return sync_stripe(world.engine, gateway=gateway, now=datetime.now(UTC), **changed)


def books(world: World) -> dict[int, Decimal]:
    """The balance of each account, debit positive."""
    balance = trial_balance(world.engine)
    assert balance.balanced
    return {row.code: row.debit - row.credit for row in balance.rows}
