"""Sent, paid and back again, end to end: against the twin in every run, against Stripe itself by `make test-stripe`.

The latter with a test key of an account that is for tests alone. What it leaves there: two customers, a paid invoice
and a void one, named by the run. Skipped without TOLLBOOK_TEST_STRIPE_KEY, which only `make test-stripe` sets.
"""

from __future__ import annotations

import os
import secrets
from decimal import Decimal

import pytest
import stripe

from billing.commands.send_invoices import Outcome
from billing.commands.show_invoices import invoice_list
from billing.database import transaction
from billing.settings import StripeSettings
from billing.stripe import returns_store
from billing.stripe.stripe_gateway import API_VERSION, StripeGateway
from tests.integration.billing.conftest import Crash, World, crash_at
from tests.integration.billing.stripe_months import sync

KEY = os.environ.get("TOLLBOOK_TEST_STRIPE_KEY", "")
ITSELF = pytest.mark.skipif(not KEY.startswith(("sk_test_", "rk_test_")), reason="no test key of Stripe itself")


@pytest.fixture(params=["twin", pytest.param("stripe", marks=ITSELF)])
def settings(request: pytest.FixtureRequest) -> StripeSettings:
    """The twin, or Stripe itself."""
    if request.param == "stripe":
        return StripeSettings(KEY)
    twin = request.getfixturevalue("stripe_twin")
    return StripeSettings(twin.key, twin.url)


def test_invoices_arrive_also_when_the_sender_is_killed_and_what_is_paid_comes_back_to_the_cent(
    world: World, settings: StripeSettings
) -> None:
    run = secrets.token_hex(4)
    names = [f"tollbook-{run}-{n}" for n in range(2)]
    # Stripe takes each number once in the life of an account.
    world.as_owner(
        "alter table ledger.number_series disable trigger guard_number_series",
        f"update ledger.number_series set prefix = 'T-{run}-'",
        "alter table ledger.number_series enable trigger guard_number_series",
    )
    gateway = StripeGateway(settings)
    world.customers(*names)
    for name in names:
        world.use(name, input_tokens=1000, cache_hit_tokens=400, output_tokens=2500)
    world.rate()
    world.draft()
    for name, point in zip(names, ("unrecorded lines 0", "unrecorded finalize 0"), strict=True):
        with pytest.raises(Crash):
            world.send(gateway, billing_accounts=[name], checkpoint=crash_at(point))
    sent = world.send(gateway)
    addresses = {"api": settings.api.rstrip("/")} if settings.api else {}
    client = stripe.StripeClient(settings.key, stripe_version=API_VERSION, base_addresses=addresses)  # type: ignore[arg-type]
    left = {i.billing_account: str(i.stripe_invoice_id) for i in sent.invoices if i.stripe_invoice_id}
    try:
        assert {i.outcome for i in sent.invoices} == {Outcome.FINALIZED}, [i.reason for i in sent.invoices]
        for ours in sent.invoices:
            theirs, lines = gateway.invoice(str(ours.stripe_invoice_id))
            assert (theirs.seen.status, theirs.seen.total, theirs.seen.number) == ("open", 580, ours.number)
            assert {line.line_key: line.amount for line in lines} == {"cached": 20, "in": 60, "out": 500}
            listed = list(gateway.invoices(customer=theirs.seen.customer))
            assert [each.invoice_id for each in listed] == [ours.stripe_invoice_id]
        paid, _ = gateway.invoice(left[names[0]])
        card = client.v1.payment_methods.attach("pm_card_visa", {"customer": paid.seen.customer})
        client.v1.invoices.pay(left.pop(names[0]), {"payment_method": card.id})
        sync(world, gateway)
        states = {i["billing_account"]: i["state"] for i in invoice_list(world.engine)}
        assert states == {names[0]: "paid", names[1]: "finalized"}
        owed = world.rows(
            "select a.subledger, sum(p.amount) from ledger.postings p join ledger.accounts a using (account_id)"
            " where a.code = 1100 group by 1 order by 1"
        )
        assert owed == [(names[0], Decimal(0)), (names[1], Decimal("5.80"))]
        (moved,) = world.rows(
            "select transaction_id, amount, net from ledger.stripe_balance_transactions where stripe_customer_id = :c",
            c=paid.seen.customer,
        )
        theirs_of_it = client.v1.balance_transactions.retrieve(str(moved[0]))
        assert moved[1:] == (theirs_of_it.amount, theirs_of_it.net)
        with transaction(world.engine) as connection:
            assert returns_store.booked_nets(connection)[str(moved[0])] == theirs_of_it.net
    finally:
        for each in left.values():
            client.v1.invoices.void_invoice(each)
