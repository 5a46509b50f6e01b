"""A part of the matrix of webhooks (all of it: `python -m tests.simulation.stripe.run --webhooks`), and a month."""

from __future__ import annotations

from billing.stripe.event_handlers import HANDLERS
from billing.stripe.returns_store import UNREADABLE
from billing.stripe.stripe_gateway import StripeGateway
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import World
from tests.simulation.stripe import months, webhooks
from tests.simulation.stripe.webhooks import HANDLED, STORIES


def test_whatever_becomes_of_webhooks_each_account_stands_the_same_in_the_end(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    found = webhooks.run(world, gateway, stripe_twin, mishaps=("as told", "backwards"), kills_max=0)
    assert found.wrong == []
    assert found.right.total() == 4 * len(STORIES)
    # What cannot be read comes by Stripe's lists alone
    assert {kind for kind, _ in found.killed} == set(HANDLERS) - {UNREADABLE}, "each handler is killed"
    assert found.killed["dispute", 1] == found.killed["dispute", 2] == 1
    assert found.received > len(STORIES), "some are lost, some come twice, most come"
    assert found.kinds >= HANDLED, HANDLED - found.kinds


def test_in_a_random_month_with_faults_ledger_and_stripe_agree_whenever_all_is_taken_in(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    assert months.run(world, gateway, stripe_twin, seed=2, steps=60) == []
