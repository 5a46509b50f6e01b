"""Customers through the real SDK."""

from __future__ import annotations

import pytest
import stripe

from tests.fixtures_stripe_twin import StripeTwin, new_test_key

Client = stripe.StripeClient


def test_a_customer_is_created_read_changed_and_deleted(client: Client) -> None:
    created = client.v1.customers.create(
        {
            "name": "Åcme & Söhne",
            "email": "a@b.example",
            "description": "x=1&y[]=2",
            "metadata": {"billing_account": "ba_1", "empty": ""},
            "address": {"city": "Berlin", "country": "DE", "line1": ""},
            "invoice_settings": {"footer": "Thanks"},
        }
    )
    assert created.id.startswith("cus_")
    assert created.object == "customer"
    assert created.livemode is False
    read = client.v1.customers.retrieve(created.id)
    assert read.to_dict() == created.to_dict()
    assert read.name == "Åcme & Söhne"
    assert read.description == "x=1&y[]=2"
    assert read.metadata is not None
    assert read.metadata.to_dict() == {"billing_account": "ba_1"}
    assert read.address is not None
    assert (read.address.city, read.address.line1) == ("Berlin", None)

    changed = client.v1.customers.update(created.id, {"name": "B", "description": "", "metadata": {"more": "1"}})
    assert (changed.name, changed.description) == ("B", None)
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"billing_account": "ba_1", "more": "1"}

    gone = client.v1.customers.delete(created.id)
    assert gone.to_dict() == {"id": created.id, "object": "customer", "deleted": True}
    assert client.v1.customers.retrieve(created.id).to_dict() == gone.to_dict()
    assert client.v1.customers.list().data == []
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.customers.update(created.id, {"name": "C"})
    assert (caught.value.http_status, caught.value.code) == (404, "resource_missing")


def test_customers_are_listed_by_email_and_time(client: Client) -> None:
    made = [client.v1.customers.create({"email": f"{name}@x.example"}) for name in ("a", "b", "a")]
    assert [c.id for c in client.v1.customers.list({"email": "a@x.example"}).data] == [made[2].id, made[0].id]
    assert client.v1.customers.list({"email": "A@x.example"}).data == []
    now = made[0].created
    assert len(client.v1.customers.list({"created": {"gte": now}}).data) == 3
    assert client.v1.customers.list({"created": {"lt": now}}).data == []


def test_each_key_is_an_account_of_its_own(stripe_twin: StripeTwin, client: Client) -> None:
    mine = client.v1.customers.create({})
    other = stripe_twin.client(new_test_key())
    assert other.v1.customers.list().data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        other.v1.customers.retrieve(mine.id)


def test_a_balance_that_is_set_is_explained_by_transactions(client: Client) -> None:
    customer = client.v1.customers.create({"balance": -500})
    client.v1.customers.update(customer.id, {"balance": 200})
    client.v1.customers.balance_transactions.create(
        customer.id, {"amount": -50, "currency": "usd", "description": "goodwill"}
    )
    client.v1.customers.balance_transactions.create(customer.id, {"amount": -70, "currency": "eur"})
    moves = client.v1.customers.balance_transactions.list(customer.id).data
    assert [(m.type, m.amount, m.currency, m.ending_balance) for m in moves] == [
        ("adjustment", -70, "eur", -70),
        ("adjustment", -50, "usd", 150),
        ("adjustment", 700, "usd", 200),
        ("initial", -500, "usd", -500),
    ]
    read = client.v1.customers.retrieve(customer.id, {"expand": ["invoice_credit_balance"]})
    assert (read.currency, read.balance) == ("usd", 150)
    assert read.invoice_credit_balance is not None
    assert read.invoice_credit_balance.to_dict() == {"usd": -150, "eur": 70}
    assert client.v1.customers.balance_transactions.retrieve(customer.id, moves[0].id).amount == -70


def test_deleting_a_customer_deletes_its_pending_items_and_keeps_its_invoices(client: Client) -> None:
    customer = client.v1.customers.create({})
    invoice = client.v1.invoices.create({"customer": customer.id})
    item = client.v1.invoice_items.create({"customer": customer.id, "amount": 100, "currency": "usd"})
    client.v1.customers.delete(customer.id)
    with pytest.raises(stripe.InvalidRequestError, match="No such invoiceitem"):
        client.v1.invoice_items.retrieve(item.id)
    assert client.v1.invoices.retrieve(invoice.id).customer == customer.id
    with pytest.raises(stripe.InvalidRequestError, match="No such customer"):
        client.v1.invoices.finalize_invoice(invoice.id)
    assert client.v1.invoices.retrieve(invoice.id).status == "draft"


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"email": "no-at-sign"}, "email_invalid", "email"),
        ({"invoice_prefix": "ab"}, None, "invoice_prefix"),
        ({"metadata": {"k" * 41: "v"}}, None, "metadata"),
        ({"metadata": {"k": "v" * 501}}, None, "metadata[k]"),
        ({"metadata": {str(n): "v" for n in range(51)}}, None, "metadata"),
        ({"name": "x" * 257}, None, "name"),
    ],
)
def test_values_that_stripe_refuses(client: Client, params: dict, code: str | None, param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.customers.create(params)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert client.v1.customers.list().data == []
