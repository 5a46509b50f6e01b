"""The same against Stripe itself: `make test-stripe`, with a test key of an account that is for tests alone.

What it leaves there: two customers and two void invoices, named by the run. Skipped without TOLLBOOK_TEST_STRIPE_KEY,
which only `make test-stripe` sets.
"""

from __future__ import annotations

import os
import secrets

import pytest
import stripe

from billing.commands.send_invoices import Outcome
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import API_VERSION, StripeGateway
from tests.integration.billing.conftest import Crash, World, crash_at

KEY = os.environ.get("TOLLBOOK_TEST_STRIPE_KEY", "")
pytestmark = pytest.mark.skipif(not KEY.startswith(("sk_test_", "rk_test_")), reason="no test key of Stripe itself")


def test_invoices_arrive_in_stripe_itself_also_when_the_sender_is_killed(world: World) -> None:
    run = secrets.token_hex(4)
    names = [f"tollbook-{run}-{n}" for n in range(2)]
    # Stripe takes each number once in the life of an account.
    world.as_owner(
        "alter table ledger.number_series disable trigger guard_number_series",
        f"update ledger.number_series set prefix = 'T-{run}-'",
        "alter table ledger.number_series enable trigger guard_number_series",
    )
    gateway = StripeGateway(StripeSettings(KEY))
    world.customers(*names)
    for name in names:
        world.use(name, input_tokens=1000, cache_hit_tokens=400, output_tokens=2500)
    world.rate()
    world.draft()
    for name, point in zip(names, ("unrecorded lines 0", "unrecorded finalize 0"), strict=True):
        with pytest.raises(Crash):
            world.send(gateway, billing_accounts=[name], checkpoint=crash_at(point))
    sent = world.send(gateway)
    client = stripe.StripeClient(KEY, stripe_version=API_VERSION)
    try:
        assert {i.outcome for i in sent.invoices} == {Outcome.FINALIZED}, [i.reason for i in sent.invoices]
        for ours in sent.invoices:
            theirs, lines = gateway.invoice(str(ours.stripe_invoice_id))
            assert (theirs.seen.status, theirs.seen.total, theirs.seen.number) == ("open", 580, ours.number)
            assert {line.line_key: line.amount for line in lines} == {"cached": 20, "in": 60, "out": 500}
            listed = list(gateway.invoices(customer=theirs.seen.customer))
            assert [each.invoice_id for each in listed] == [ours.stripe_invoice_id]
    finally:
        for ours in sent.invoices:
            if ours.stripe_invoice_id:
                client.v1.invoices.void_invoice(ours.stripe_invoice_id)
