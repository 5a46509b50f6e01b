"""Test clocks, payment methods, cash balances, search, webhook endpoints: with the real SDK."""

from __future__ import annotations

import time

import pytest
import stripe

from tests.fixtures_stripe_twin import ActRefused, StripeTwin, act

Client = stripe.StripeClient
HOUR, DAY = 3600, 86_400
THEN = 1_700_000_000


def told(client: Client, since: int = 0) -> list[str]:
    """The types of all events, the oldest first."""
    return [event.type for event in client.v1.events.list({"limit": 100}).auto_paging_iter()][::-1][since:]


def finalized(client: Client, customer: str, amount: int = 2000) -> stripe.Invoice:
    draft = client.v1.invoices.create({"customer": customer, "currency": "usd"})
    client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": amount}]})
    return client.v1.invoices.finalize_invoice(draft.id)


def test_under_a_test_clock_time_stands_still_until_it_is_advanced(client: Client) -> None:
    clocks = client.v1.test_helpers.test_clocks
    clock = clocks.create({"frozen_time": THEN, "name": "october"})
    assert (clock.status, clock.frozen_time, clock.deletes_after - clock.created) == ("ready", THEN, 30 * DAY)
    customer = client.v1.customers.create({"name": "Acme", "email": "a@acme.example", "test_clock": clock.id})
    assert (customer.created, customer.test_clock) == (THEN, clock.id)
    assert client.v1.customers.list().data == [], "lists leave them out, unless the clock is named"
    assert [c.id for c in client.v1.customers.list({"test_clock": clock.id}).data] == [customer.id]
    due = {"collection_method": "send_invoice", "days_until_due": 30}
    alone = client.v1.invoices.create({"customer": customer.id, "auto_advance": True, **due})  # type: ignore[typeddict-item]
    kept = client.v1.invoices.create({"customer": customer.id, **due})  # type: ignore[typeddict-item]
    assert (alone.created, alone.due_date, alone.automatically_finalizes_at) == (THEN, THEN + 30 * DAY, THEN + HOUR)
    assert kept.automatically_finalizes_at is None
    client.v1.invoices.add_lines(alone.id, {"lines": [{"amount": 500}]})

    clocks.advance(clock.id, {"frozen_time": THEN + HOUR - 1})
    assert client.v1.invoices.retrieve(alone.id).status == "draft"
    before = len(told(client))
    advancing = clocks.advance(clock.id, {"frozen_time": THEN + DAY})
    assert advancing.status_details.advancing is not None
    assert (advancing.status, advancing.status_details.advancing.target_frozen_time) == ("advancing", THEN + DAY)
    after = clocks.retrieve(clock.id)
    assert (after.status, after.frozen_time) == ("ready", THEN + DAY)
    names = [f"test_helpers.test_clock.{name}" for name in ("advancing", "ready")]
    assert told(client, before) == [names[0], "invoice.finalized", names[1]]
    done = client.v1.invoices.retrieve(alone.id)
    assert (done.status, done.status_transitions.finalized_at) == ("open", THEN + HOUR)
    assert client.v1.invoices.retrieve(kept.id).status == "draft"
    client.v1.invoices.void_invoice(alone.id)
    assert client.v1.invoices.retrieve(alone.id).status_transitions.voided_at == THEN + DAY
    (newest,) = client.v1.events.list({"limit": 1}).data
    assert newest.created > THEN + DAY, "events are told when they are told"

    for wrong in (THEN + DAY, THEN + 1000 * DAY):
        with pytest.raises(stripe.InvalidRequestError, match=r"after the clock's|two years"):
            clocks.advance(clock.id, {"frozen_time": wrong})
    for _ in range(2):
        client.v1.customers.create({"test_clock": clock.id})
    with pytest.raises(stripe.InvalidRequestError, match="up to 3 customers"):
        client.v1.customers.create({"test_clock": clock.id})
    assert [each.id for each in clocks.list().data] == [clock.id]
    assert clocks.delete(clock.id).deleted
    assert client.v1.customers.retrieve(customer.id).deleted
    assert abs(client.v1.customers.create({}).created - time.time()) < 300


def test_an_invoice_is_paid_with_a_payment_method_and_a_declined_charge_stays(client: Client) -> None:
    customer = client.v1.customers.create({"name": "Acme"})
    invoice = finalized(client, customer.id)
    with pytest.raises(stripe.InvalidRequestError, match="no `default_payment_method` set"):
        client.v1.invoices.pay(invoice.id)
    bad = client.v1.payment_methods.attach("pm_card_chargeCustomerFail", {"customer": customer.id})
    good = client.v1.payment_methods.create({"type": "card", "card": {"token": "tok_visa"}})
    client.v1.payment_methods.attach(good.id, {"customer": customer.id})
    assert {m.id for m in client.v1.payment_methods.list({"customer": customer.id}).data} == {good.id, bad.id}
    with pytest.raises(stripe.CardError) as caught:
        client.v1.invoices.pay(invoice.id, {"payment_method": bad.id})
    assert (caught.value.http_status, caught.value.code) == (402, "card_declined")
    assert told(client)[-3:] == ["charge.failed", "payment_intent.payment_failed", "invoice.payment_failed"]
    assert client.v1.invoices.retrieve(invoice.id).attempt_count == 1
    client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": good.id}})
    paid = client.v1.invoices.pay(invoice.id)
    assert (paid.status, paid.amount_paid, paid.attempt_count) == ("paid", 2000, 2)
    intent, failed = client.v1.payment_intents.list({"customer": customer.id}).data
    assert (intent.status, intent.amount_received, intent.payment_method) == ("succeeded", 2000, good.id)
    assert (failed.status, failed.amount_received) == ("requires_payment_method", 0)
    charge = client.v1.charges.retrieve(str(intent.latest_charge), {"expand": ["payment_intent"]})
    assert isinstance(charge.payment_intent, stripe.PaymentIntent)
    assert charge.payment_intent.id == client.v1.payment_intents.retrieve(intent.id).id
    assert client.v1.payment_methods.detach(good.id).customer is None
    assert client.v1.payment_methods.retrieve(good.id).card is not None


def test_a_cash_balance_pays_invoices_and_is_no_part_of_stripes_balance_before(
    client: Client, stripe_twin: StripeTwin
) -> None:
    customer = client.v1.customers.create({"name": "Acme"})
    first, exact = (finalized(client, customer.id, amount) for amount in (2000, 700))

    def fund(amount: int) -> str:
        helper = client.v1.test_helpers.customers
        return helper.fund_cash_balance(customer.id, {"amount": amount, "currency": "usd"}).type

    def cash() -> int | None:
        available = client.v1.customers.cash_balance.retrieve(customer.id).available
        return None if available is None else available["usd"]

    assert cash() is None
    assert fund(700) == "funded"
    assert (client.v1.invoices.retrieve(exact.id).status, cash()) == ("paid", 0)
    fund(500)
    assert client.v1.invoices.retrieve(first.id).amount_remaining == 1500
    client.v1.customers.cash_balance.update(customer.id, {"settings": {"reconciliation_mode": "manual"}})
    fund(1900)
    assert cash() == 1900
    moved = client.v1.balance_transactions.list().data
    assert {(m.type, m.reporting_category) for m in moved} == {("payment", "charge")}
    assert sum(m.amount for m in moved) == 1200
    with pytest.raises(ActRefused, match="Only open invoices"):
        act(stripe_twin, "apply_cash", invoice=exact.id, amount=100)
    act(stripe_twin, "apply_cash", invoice=first.id, amount=1000)
    act(stripe_twin, "return_cash", customer=customer.id, amount=150)
    with pytest.raises(ActRefused, match="not so much"):
        act(stripe_twin, "return_cash", customer=customer.id, amount=751)
    act(stripe_twin, "transfer_cash", customer=customer.id)
    (newest, *_) = client.v1.balance_transactions.list({"expand": ["data.source"]}).data
    assert (newest.reporting_category, newest.amount) == ("unreconciled_customer_funds", 750)
    assert isinstance(newest.source, stripe.CustomerCashBalanceTransaction)
    listed = client.v1.customers.cash_balance_transactions.list(customer.id).data[::-1]
    assert [(each.type, each.net_amount, each.ending_balance) for each in listed] == [
        ("funded", 700, 700), ("applied_to_payment", -700, 0),
        ("funded", 500, 500), ("applied_to_payment", -500, 0),
        ("funded", 1900, 1900), ("applied_to_payment", -1000, 900),
        ("return_initiated", -150, 750), ("transferred_to_balance", -750, 0),
    ]  # fmt: skip
    again = client.v1.customers.cash_balance_transactions.retrieve(customer.id, listed[1].id)
    assert again.applied_to_payment is not None
    assert told(client).count("customer_cash_balance_transaction.created") == 8
    with pytest.raises(stripe.InvalidRequestError, match="with a cash balance"):
        client.v1.customers.delete(customer.id)


def test_search_does_not_show_what_was_written_just_now_and_refuses_what_it_does_not_understand(client: Client) -> None:
    invoice = finalized(client, client.v1.customers.create({"name": "Acme"}).id)
    assert client.v1.invoices.search({"query": "status:'open' AND total>=2000"}).data == []
    for wrong in ("state:'open'", "status='open'", "status:'open' AND total:1 OR total:2", ""):
        with pytest.raises(stripe.InvalidRequestError):
            client.v1.invoices.search({"query": wrong})
    assert client.v1.invoices.retrieve(invoice.id).status == "open"


def test_a_webhook_endpoint_can_be_changed_and_disabled(client: Client) -> None:
    made = client.v1.webhook_endpoints.create({"url": "http://127.0.0.1:9/a", "enabled_events": ["*"]})
    changed = client.v1.webhook_endpoints.update(
        made.id, {"url": "http://127.0.0.1:9/b", "disabled": True, "metadata": {"a": "b"}}
    )
    assert (changed.url, changed.status, changed.metadata["a"]) == ("http://127.0.0.1:9/b", "disabled", "b")
    assert [each.status for each in client.v1.webhook_endpoints.list().data] == ["disabled"]
    with pytest.raises(stripe.InvalidRequestError, match="explicit scheme"):
        client.v1.webhook_endpoints.update(made.id, {"url": "b"})
