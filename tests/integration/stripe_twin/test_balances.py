"""What finalizing does with amounts that cannot be charged, and with the customer's balance."""

from __future__ import annotations

import pytest
import stripe

Client = stripe.StripeClient


def invoice(client: Client, customer: stripe.Customer, *amounts: int, currency: str = "usd") -> stripe.Invoice:
    draft = client.v1.invoices.create({"customer": customer.id, "currency": currency})
    if amounts:
        client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": amount} for amount in amounts]})
    return client.v1.invoices.finalize_invoice(draft.id)


def moves(client: Client, customer: stripe.Customer) -> list[tuple[str, int, int]]:
    listed = client.v1.customers.balance_transactions.list(customer.id).data[::-1]
    return [(move.type, move.amount, move.ending_balance) for move in listed]


@pytest.mark.parametrize("amounts", [(), (0,), (500, -500)])
def test_a_zero_total_is_paid_at_once(client: Client, customer: stripe.Customer, amounts: tuple[int, ...]) -> None:
    done = invoice(client, customer, *amounts)
    assert (done.status, done.total, done.amount_due, done.amount_paid) == ("paid", 0, 0, 0)
    assert done.status_transitions.paid_at == done.status_transitions.finalized_at
    assert moves(client, customer) == []


def test_a_negative_total_becomes_credit_and_pays_the_next_invoice(client: Client, customer: stripe.Customer) -> None:
    credit = invoice(client, customer, 200, -1200)
    assert (credit.status, credit.total, credit.amount_due, credit.ending_balance) == ("paid", -1000, 0, -1000)
    following = invoice(client, customer, 1500)
    assert (following.starting_balance, following.total, following.amount_due, following.ending_balance) == (
        -1000,
        1500,
        500,
        0,
    )
    assert following.status == "open"
    assert moves(client, customer) == [("applied_to_invoice", -1000, -1000), ("applied_to_invoice", 1000, 0)]


def test_below_the_minimum_the_debt_moves_to_the_next_invoice(client: Client, customer: stripe.Customer) -> None:
    small = invoice(client, customer, 49)
    assert (small.status, small.total, small.amount_due, small.amount_paid, small.ending_balance) == (
        "paid",
        49,
        0,
        0,
        49,
    )
    assert client.v1.customers.retrieve(customer.id).balance == 49
    following = invoice(client, customer, 1)
    assert (following.status, following.starting_balance, following.amount_due) == ("open", 49, 50)
    assert moves(client, customer) == [("invoice_too_small", 49, 49), ("applied_to_invoice", -49, 0)]


def test_exactly_the_minimum_is_charged(client: Client, customer: stripe.Customer) -> None:
    assert invoice(client, customer, 50).status == "open"


def test_above_the_maximum_the_debt_moves_to_the_balance(client: Client, customer: stripe.Customer) -> None:
    assert invoice(client, customer, 99_999_999).status == "open"
    large = invoice(client, customer, 99_999_999, 1)
    assert (large.status, large.total, large.amount_due, large.ending_balance) == ("paid", 100_000_000, 0, 100_000_000)
    assert moves(client, customer)[-1] == ("invoice_too_large", 100_000_000, 100_000_000)


def test_voiding_gives_the_applied_balance_back(client: Client, customer: stripe.Customer) -> None:
    client.v1.customers.update(customer.id, {"balance": -300})
    done = invoice(client, customer, 1000)
    assert done.amount_due == 700
    client.v1.invoices.void_invoice(done.id)
    assert client.v1.customers.retrieve(customer.id).balance == -300
    assert moves(client, customer)[-1] == ("unapplied_from_invoice", -300, -300)


def test_each_currency_has_a_balance_of_its_own(client: Client, customer: stripe.Customer) -> None:
    invoice(client, customer, -400)
    euro = invoice(client, customer, 1000, currency="eur")
    assert (euro.currency, euro.starting_balance, euro.amount_due) == ("eur", 0, 1000)
    yen = invoice(client, customer, 49, currency="jpy")
    assert (yen.status, yen.ending_balance) == ("paid", 49)
    read = client.v1.customers.retrieve(customer.id, {"expand": ["invoice_credit_balance"]})
    assert (read.currency, read.balance) == ("usd", -400)
    assert read.invoice_credit_balance is not None
    assert read.invoice_credit_balance.to_dict() == {"usd": 400, "jpy": -49}


def test_the_sum_of_balance_transactions_is_the_balance(client: Client, customer: stripe.Customer) -> None:
    for amounts in ((-700,), (30,), (649,), (60,), (-10,), (20,), (5,)):
        invoice(client, customer, *amounts)
    listed = moves(client, customer)
    running = 0
    for _, amount, ending in listed:
        running += amount
        assert ending == running
    assert client.v1.customers.retrieve(customer.id).balance == running
