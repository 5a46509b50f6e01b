"""Between drafting and freezing nothing that a bill follows from slips by: a draft that is out of date is parked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from billing.bills.tax import TaxMode, TaxRules
from billing.commands.change_subscription import change_subscription
from billing.commands.send_invoices import Outcome
from billing.commands.set_tax import set_tax
from billing.database import transaction
from billing.invoicing import billed_until_store
from billing.invoicing.tax_store import DatedTaxRules
from billing.stripe.stripe_gateway import StripeGateway
from tests.billing_builders import OCTOBER, PLAN
from tests.integration.billing.conftest import World

MIDDLE = OCTOBER.start + timedelta(days=15)


def vat(world: World, rate: str, since: datetime) -> None:
    rules = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal(rate)})
    set_tax(world.engine, DatedTaxRules("acme", rules, since, ""), actor="ada")


def untaxed_to_taxed(world: World) -> None:
    vat(world, "0.20", MIDDLE)


def another_rate(world: World) -> None:
    vat(world, "0.20", OCTOBER.end - timedelta(microseconds=1))


def another_plan(world: World) -> None:
    world.plan(PLAN.replace("plan: p", "plan: dear").replace('"0.002"', '"2"'))
    change_subscription(world.engine, tenant_id="acme", plan="dear", at=MIDDLE, actor="ada")


def another_price(world: World) -> None:
    out = '      - {key: out, model: per_unit, metric: output, price: "2"}\n'
    world.plan(PLAN + f"  - version: v2\n    from: {MIDDLE:%Y-%m-%d}\n    charges:\n" + out)


def a_corrected_price(world: World) -> None:
    world.plan(PLAN.replace("v1", "v1-fixed").replace('"0.002"', '"2"'))


def another_tenant(world: World) -> None:
    world.tenant("beta")
    world.subscribe("beta", starts_at=MIDDLE, billing_account="acme")
    world.use("beta", at=MIDDLE, output_tokens=999_000)


@pytest.mark.parametrize(
    ("taxed", "change", "told", "due"),
    [
        (None, untaxed_to_taxed, "tax rules", 240),
        ("0.10", another_rate, "tax rules", 240),
        (None, another_plan, "rate it", 200_000),
        (None, another_price, "rate it", 200_000),
        (None, a_corrected_price, "rate it", 200_000),
        (None, another_tenant, "tenant beta", 200_000),
    ],
)
def test_a_change_after_drafting_parks_the_draft_until_it_is_drawn_up_again(
    world: World, gateway: StripeGateway, taxed: str | None, change: Callable[[World], None], told: str, due: int
) -> None:
    world.customers("acme")
    if taxed is not None:
        vat(world, taxed, OCTOBER.start)
    world.use("acme", at=MIDDLE, output_tokens=1000)
    world.rate()
    world.draft()
    change(world)
    world.draft() if told == "rate it" else None
    (parked,) = world.send(gateway).invoices
    assert parked.outcome is Outcome.PARKED
    assert told in str(parked.reason)
    world.rate()
    world.draft()
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.amount_due_minor) == (Outcome.FINALIZED, due)


def test_who_changes_what_bills_follow_from_and_who_freezes_wait_for_each_other(world: World) -> None:
    with transaction(world.engine) as freezing, transaction(world.engine) as changing:
        billed_until_store.hold_terms(freezing)
        changing.execute(text("set local lock_timeout = '20ms'"))
        with pytest.raises(OperationalError, match="lock timeout"):
            billed_until_store.frozen_until(changing, ["acme"])
