"""The whole matrix of webhooks (`python -m tests.simulation.stripe.run --webhooks` prints it), and a random month."""

from __future__ import annotations

from billing.stripe.stripe_gateway import StripeGateway
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import World
from tests.simulation.stripe import months, webhooks
from tests.simulation.stripe.webhooks import HANDLED, MISHAPS, STORIES


def test_whatever_becomes_of_webhooks_each_account_stands_the_same_in_the_end(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    found = webhooks.run(world, gateway, stripe_twin)
    assert found.wrong == []
    assert found.right.total() == (len(MISHAPS) + 1) * len(STORIES)
    assert found.received > len(STORIES), "some are lost, some come twice, most come"
    assert found.kinds >= HANDLED, HANDLED - found.kinds


def test_in_a_random_month_with_faults_ledger_and_stripe_agree_whenever_all_is_taken_in(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    assert months.run(world, gateway, stripe_twin, seed=2, steps=60) == []
