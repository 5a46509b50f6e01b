"""An invoice's life through the real SDK: draft, lines, finalize, and the states after it."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

Client = stripe.StripeClient


def refusal(code: str | None = None) -> pytest.RaisesExc:
    return pytest.RaisesExc(stripe.InvalidRequestError, check=lambda error: error.code == code)


def finalized(client: Client, draft: stripe.Invoice, amount: int = 12_345) -> stripe.Invoice:
    client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": amount, "description": "usage"}]})
    return client.v1.invoices.finalize_invoice(draft.id, {"auto_advance": False})


def test_a_draft_as_the_project_makes_it(client: Client, customer: stripe.Customer) -> None:
    draft = client.v1.invoices.create(
        {
            "customer": customer.id,
            "currency": "eur",
            "auto_advance": False,
            "pending_invoice_items_behavior": "exclude",
            "collection_method": "send_invoice",
            "days_until_due": 30,
            "discounts": "",
            "automatic_tax": {"enabled": False},
            "description": "October",
            "footer": "f",
            "metadata": {"period": "2026-10", "revision": "0"},
        }
    )
    assert draft.id.startswith("in_")
    assert (draft.status, draft.currency, draft.auto_advance, draft.number) == ("draft", "eur", False, None)
    assert (draft.total, draft.amount_due, draft.starting_balance, draft.ending_balance) == (0, 0, 0, None)
    assert draft.due_date == draft.created + 30 * 86_400
    assert (draft.automatic_tax.enabled, draft.default_tax_rates, draft.discounts) == (False, [], [])
    assert (draft.lines.data, draft.lines.has_more, draft.lines.total_count) == ([], False, 0)
    assert (draft.customer_name, draft.customer_email) == (customer.name, customer.email)
    assert (draft.hosted_invoice_url, draft.invoice_pdf, draft.effective_at) == (None, None, None)
    assert draft.metadata is not None
    assert draft.metadata.to_dict() == {"period": "2026-10", "revision": "0"}
    assert client.v1.customers.retrieve(customer.id).currency == "eur"
    assert client.v1.invoices.retrieve(draft.id).to_dict() == draft.to_dict()


def test_finalizing_freezes_numbers_and_dates_the_invoice(client: Client, draft: stripe.Invoice) -> None:
    done = finalized(client, draft)
    assert (done.status, done.total, done.subtotal, done.amount_due, done.amount_remaining) == (
        "open",
        12_345,
        12_345,
        12_345,
        12_345,
    )
    assert (done.starting_balance, done.ending_balance, done.amount_paid) == (0, 0, 0)
    assert done.status_transitions.finalized_at is not None
    assert done.effective_at == done.status_transitions.finalized_at
    assert done.number is not None
    assert done.number.endswith("-0001")
    assert done.hosted_invoice_url is not None
    assert done.id in done.hosted_invoice_url
    assert done.invoice_pdf is not None
    assert isinstance(draft.customer, str)
    client.v1.customers.update(draft.customer, {"name": "Renamed", "email": "new@x.example"})
    assert client.v1.invoices.retrieve(done.id).customer_name == "Acme"
    with refusal("invoice_not_editable"):
        client.v1.invoices.finalize_invoice(done.id)


def test_a_draft_follows_its_customer(client: Client, draft: stripe.Invoice) -> None:
    assert isinstance(draft.customer, str)
    client.v1.customers.update(draft.customer, {"name": "Renamed", "balance": 40})
    read = client.v1.invoices.retrieve(draft.id)
    assert (read.customer_name, read.starting_balance) == ("Renamed", 40)


def test_what_can_change_depends_on_the_state(client: Client, draft: stripe.Invoice) -> None:
    changed = client.v1.invoices.update(
        draft.id, {"description": "d", "days_until_due": 10, "metadata": {"a": "1"}, "number": "N-1"}
    )
    assert (changed.description, changed.number) == ("d", "N-1")
    assert changed.due_date == draft.created + 10 * 86_400
    finalized(client, draft)
    for params in ({"number": "N-2"}, {"days_until_due": 5}, {"footer": "f"}, {"metadata": {"b": "2"}, "footer": "f"}):
        with refusal("invoice_not_editable"):
            client.v1.invoices.update(draft.id, params)
    assert client.v1.invoices.update(draft.id, {"description": "memo", "metadata": {"b": "2"}}).description == "memo"
    client.v1.invoices.void_invoice(draft.id)
    with refusal("invoice_not_editable"):
        client.v1.invoices.update(draft.id, {"description": "late"})
    last = client.v1.invoices.update(draft.id, {"metadata": {"a": "", "c": "3"}})
    assert last.metadata is not None
    assert last.metadata.to_dict() == {"b": "2", "c": "3"}


def test_lines_and_items_of_a_finalized_invoice_are_fixed(client: Client, draft: stripe.Invoice) -> None:
    done = finalized(client, draft)
    line = done.lines.data[0]
    item = client.v1.invoice_items.list({"invoice": done.id}).data[0]
    assert isinstance(done.customer, str)
    for change in (
        lambda: client.v1.invoices.add_lines(done.id, {"lines": [{"amount": 1}]}),
        lambda: client.v1.invoices.update_lines(done.id, {"lines": [{"id": line.id, "amount": 1}]}),
        lambda: client.v1.invoices.remove_lines(done.id, {"lines": [{"id": line.id, "behavior": "delete"}]}),
        lambda: client.v1.invoices.line_items.update(done.id, line.id, {"amount": 1}),
        lambda: client.v1.invoice_items.update(item.id, {"amount": 1}),
        lambda: client.v1.invoice_items.delete(item.id),
        lambda: client.v1.invoice_items.create({"customer": str(done.customer), "invoice": done.id, "amount": 1}),
        lambda: client.v1.invoices.delete(done.id),
    ):
        with refusal("invoice_not_editable"):
            change()
    assert client.v1.invoices.retrieve(done.id).total == 12_345


def test_deleting_a_draft(client: Client, customer: stripe.Customer) -> None:
    """What was pending before is pending again; what was made on the draft goes with it."""
    pending = client.v1.invoice_items.create({"customer": customer.id, "amount": 100, "currency": "usd"})
    draft = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    client.v1.invoices.update(draft.id, {"number": "N-1"})
    own = client.v1.invoice_items.create({"customer": customer.id, "invoice": draft.id, "amount": 200})
    gone = client.v1.invoices.delete(draft.id)
    assert gone.to_dict() == {"id": draft.id, "object": "invoice", "deleted": True}
    for call in (lambda: client.v1.invoices.retrieve(draft.id), lambda: client.v1.invoices.delete(draft.id)):
        with refusal("resource_missing"):
            call()
    assert client.v1.invoice_items.retrieve(pending.id).invoice is None
    with refusal("resource_missing"):
        client.v1.invoice_items.retrieve(own.id)
    again = client.v1.invoices.create({"customer": customer.id, "number": "N-1"})
    assert again.number == "N-1"


def test_void_and_uncollectible(client: Client, draft: stripe.Invoice) -> None:
    finalized(client, draft)
    marked = client.v1.invoices.mark_uncollectible(draft.id)
    assert marked.status == "uncollectible"
    assert marked.status_transitions.marked_uncollectible_at is not None
    voided = client.v1.invoices.void_invoice(draft.id)
    assert voided.status == "void"
    assert voided.status_transitions.voided_at is not None
    for call in (client.v1.invoices.void_invoice, client.v1.invoices.mark_uncollectible):
        with refusal():
            call(draft.id)


def test_a_draft_can_neither_be_voided_nor_written_off(client: Client, draft: stripe.Invoice) -> None:
    for call in (client.v1.invoices.void_invoice, client.v1.invoices.mark_uncollectible):
        with refusal():
            call(draft.id)
    assert client.v1.invoices.retrieve(draft.id).status == "draft"


def test_paying_out_of_band(client: Client, draft: stripe.Invoice) -> None:
    finalized(client, draft)
    with refusal():
        client.v1.invoices.pay(draft.id)
    paid = client.v1.invoices.pay(draft.id, {"paid_out_of_band": True})
    assert (paid.status, paid.amount_paid, paid.amount_remaining, paid.amount_due) == ("paid", 12_345, 0, 12_345)
    assert paid.amount_paid_off_stripe == 12_345
    assert paid.status_transitions.paid_at is not None
    with refusal():
        client.v1.invoices.pay(draft.id, {"paid_out_of_band": True})
    with refusal():
        client.v1.invoices.void_invoice(draft.id)


def test_paying_a_draft_finalizes_it(client: Client, draft: stripe.Invoice) -> None:
    client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 500}]})
    with refusal():
        client.v1.invoices.pay(draft.id)
    assert client.v1.invoices.retrieve(draft.id).status == "draft", "a refused payment undoes the finalization"
    paid = client.v1.invoices.pay(draft.id, {"paid_out_of_band": True})
    assert (paid.status, paid.amount_paid) == ("paid", 500)
    assert paid.status_transitions.finalized_at is not None


def test_sending_needs_the_method_and_an_address(client: Client) -> None:
    customer = client.v1.customers.create({})
    charged = client.v1.invoices.create({"customer": customer.id})
    with refusal():
        client.v1.invoices.send_invoice(charged.id)
    method: Any = {"collection_method": "send_invoice", "days_until_due": 1}
    for call in (
        lambda: client.v1.invoices.create({"customer": customer.id, **method}),
        lambda: client.v1.invoices.update(charged.id, method),
    ):
        with pytest.raises(stripe.InvalidRequestError, match="Missing email"):
            call()
    client.v1.customers.update(customer.id, {"email": "a@b.example"})
    sent = client.v1.invoices.create({"customer": customer.id, **method})
    client.v1.invoices.add_lines(sent.id, {"lines": [{"amount": 500}]})
    client.v1.customers.update(customer.id, {"email": ""})
    with pytest.raises(stripe.InvalidRequestError, match="Missing email"):
        client.v1.invoices.send_invoice(sent.id)
    client.v1.customers.update(customer.id, {"email": "a@b.example"})
    assert client.v1.invoices.send_invoice(sent.id).status == "open"


def test_numbers_are_given_per_customer_and_stay_unique(client: Client) -> None:
    customer = client.v1.customers.create({"invoice_prefix": "ACME", "next_invoice_sequence": 7})
    taken = client.v1.invoices.create({"customer": customer.id, "number": "ACME-0008"})
    numbers = []
    for _ in range(2):
        invoice = client.v1.invoices.create({"customer": customer.id})
        numbers.append(client.v1.invoices.finalize_invoice(invoice.id).number)
    assert numbers == ["ACME-0007", "ACME-0009"]
    assert client.v1.customers.retrieve(customer.id).next_invoice_sequence == 10
    other = client.v1.invoices.create({"customer": client.v1.customers.create({}).id})
    for call in (
        lambda: client.v1.invoices.update(other.id, {"number": "ACME-0008"}),
        lambda: client.v1.invoices.create({"customer": customer.id, "number": "ACME-0007"}),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            call()
        assert caught.value.param == "number"
    assert client.v1.invoices.update(taken.id, {"number": "ACME-0008"}).number == "ACME-0008"
    assert client.v1.invoices.update(taken.id, {"number": ""}).number is None


def test_invoices_are_listed_by_customer_status_and_time(client: Client, draft: stripe.Invoice) -> None:
    assert isinstance(draft.customer, str)
    other = client.v1.invoices.create({"customer": client.v1.customers.create({}).id})
    finalized(client, draft)

    def ids(**params: object) -> list[str]:
        return [invoice.id for invoice in client.v1.invoices.list(params).data]

    assert ids() == [other.id, draft.id]
    assert ids(customer=draft.customer) == [draft.id]
    assert ids(status="draft") == [other.id]
    assert ids(status="open", customer=draft.customer) == [draft.id]
    assert ids(collection_method="send_invoice") == [draft.id]
    assert ids(created={"gt": draft.created + 60}) == []
    assert ids(due_date={"gte": draft.created + 30 * 86_400}) == [draft.id]
    assert ids(customer="cus_none") == []
    with refusal():
        ids(status="lost")


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"collection_method": "send_invoice"}, "days_until_due"),
        ({"days_until_due": 3}, "days_until_due"),
        ({"collection_method": "send_invoice", "days_until_due": 3, "due_date": 5}, "days_until_due"),
        ({"currency": "xxx"}, "currency"),
        ({"pending_invoice_items_behavior": "include"}, "customer"),
        ({"automatic_tax": {"enabled": True}}, "automatic_tax[enabled]"),
        ({"discounts": [{"coupon": "c"}]}, "discounts"),
        ({"subscription": "sub_1"}, "subscription"),
    ],
)
def test_drafts_that_are_refused(client: Client, customer: stripe.Customer, params: dict, param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.invoices.create({"customer": customer.id, **params})
    assert caught.value.param == param
    assert client.v1.invoices.list().data == []


def test_an_invoice_needs_a_customer_that_exists(client: Client) -> None:
    with refusal("parameter_missing"):
        client.v1.invoices.create({})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.invoices.create({"customer": "cus_none"})
    assert (caught.value.http_status, caught.value.code, caught.value.param) == (400, "resource_missing", "customer")
