"""Credit notes and refunds: what they take off before payment and after it, and what Stripe refuses."""

from __future__ import annotations

from typing import Any

import pytest
import stripe

from tests.fixtures_stripe_twin import StripeTwin, act

Client = stripe.StripeClient


@pytest.fixture
def invoice(client: Client, draft: stripe.Invoice) -> stripe.Invoice:
    """An open invoice of 20.00 USD in two lines."""
    client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 1500}, {"amount": 500}]})
    return client.v1.invoices.finalize_invoice(draft.id)


def custom(amount: int) -> list[Any]:
    return [{"type": "custom_line_item", "description": "less", "quantity": 1, "unit_amount": amount}]


def events(client: Client) -> list[str]:
    return [event.type for event in client.v1.events.list({"limit": 100}).data]


def test_before_payment_a_note_lowers_what_is_due_and_can_be_voided(client: Client, invoice: stripe.Invoice) -> None:
    note = client.v1.credit_notes.create(
        {"invoice": invoice.id, "lines": custom(300), "memo": "m", "metadata": {"a": "b"}, "email_type": "none"}
    )
    assert (note.total, note.pre_payment_amount, note.post_payment_amount, note.type) == (300, 300, 0, "pre_payment")
    assert (note.status, note.number) == ("issued", f"{invoice.number}-CN-01")
    now = client.v1.invoices.retrieve(invoice.id)
    assert (now.total, now.amount_due, now.amount_remaining, now.pre_payment_credit_notes_amount) == (
        2000, 1700, 1700, 300,
    )  # fmt: skip
    assert [n.id for n in client.v1.credit_notes.list({"invoice": invoice.id}).data] == [note.id]
    assert [line.amount for line in client.v1.credit_notes.line_items.list(note.id).data] == [300]
    assert client.v1.credit_notes.update(note.id, {"memo": "n"}).memo == "n"
    assert client.v1.credit_notes.void_credit_note(note.id).status == "void"
    assert client.v1.invoices.retrieve(invoice.id).amount_due == 2000
    assert events(client)[:2] == ["credit_note.voided", "invoice.updated"]
    assert "credit_note.created" in events(client)


def test_a_note_over_all_that_remains_pays_the_invoice(client: Client, invoice: stripe.Invoice) -> None:
    line = client.v1.invoices.line_items.list(invoice.id).data[0]
    by_line: Any = [{"type": "invoice_line_item", "invoice_line_item": line.id}]
    assert client.v1.credit_notes.create({"invoice": invoice.id, "lines": by_line}).total == line.amount
    client.v1.credit_notes.create({"invoice": invoice.id, "amount": 2000 - line.amount})
    now = client.v1.invoices.retrieve(invoice.id)
    assert (now.status, now.amount_due, now.amount_paid) == ("paid", 0, 0)
    assert "invoice.paid" in events(client)


def test_after_payment_a_note_says_where_its_amount_goes(
    client: Client, stripe_twin: StripeTwin, invoice: stripe.Invoice, customer: stripe.Customer
) -> None:
    act(stripe_twin, "pay", invoice=invoice.id, amount=1500)
    (payment,) = client.v1.invoice_payments.list({"invoice": invoice.id, "status": "paid"}).data
    assert payment.amount_paid == 1500
    wanted: Any = {"invoice": invoice.id, "amount": 1000}
    with pytest.raises(stripe.InvalidRequestError, match=r"must equal the post payment amount \(500\)"):
        client.v1.credit_notes.create(wanted)
    preview = client.v1.credit_notes.preview({**wanted, "out_of_band_amount": 500})
    assert (preview.pre_payment_amount, preview.post_payment_amount) == (500, 500)
    refund = client.v1.refunds.create({"payment_intent": str(payment.payment.payment_intent), "amount": 200})
    linked: Any = [{"type": "refund", "refund": refund.id, "amount_refunded": 200}]
    note = client.v1.credit_notes.create(
        {**wanted, "refunds": linked, "refund_amount": 100, "credit_amount": 150, "out_of_band_amount": 50}
    )
    assert (note.type, note.pre_payment_amount, note.post_payment_amount) == ("mixed", 500, 500)
    assert [each.amount_refunded for each in note.refunds] == [200, 100]
    now = client.v1.invoices.retrieve(invoice.id)
    assert (now.status, now.post_payment_credit_notes_amount) == ("paid", 500)
    assert client.v1.customers.retrieve(customer.id).balance == -150
    assert sum(r.amount for r in client.v1.refunds.list().data) == 300
    with pytest.raises(stripe.InvalidRequestError, match="pre-payment credit note of an open"):
        client.v1.credit_notes.void_credit_note(note.id)
    with pytest.raises(stripe.InvalidRequestError, match=r"creditable amount \(1000\)"):
        client.v1.credit_notes.create({"invoice": invoice.id, "amount": 1001, "out_of_band_amount": 1001})


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"amount": 1, "creditamount": 1}, "parameter_unknown", "creditamount"),
        ({"amount": 1, "lines": custom(1)}, "parameters_exclusive", "amount"),
        ({}, "parameter_missing", "amount"),
        ({"lines": [{"type": "custom_line_item", "unitamount": 5}]}, "parameter_unknown", "lines[0][unitamount]"),
        ({"lines": [{"type": "custom_line_item", "unit_amount": 5}]}, "parameter_missing", "lines[0][description]"),
        ({"amount": 1, "shipping_cost": {"shipping_rate": "shr_1"}}, "twin_unsupported", "shipping_cost"),
    ],
)
def test_parameters_are_those_that_stripe_has(
    client: Client, invoice: stripe.Invoice, params: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.raw_request("post", "/v1/credit_notes", invoice=invoice.id, **params)
    assert (refused.value.code, refused.value.param) == (code, param)


def test_misspelt_parameters_of_payments_and_evidence_are_refused(
    client: Client, stripe_twin: StripeTwin, invoice: stripe.Invoice
) -> None:
    charge = act(stripe_twin, "pay", invoice=invoice.id)
    inquiry = act(stripe_twin, "dispute", charge=charge["id"], inquiry=True)
    for path, wrong in (
        ("/v1/refunds", {"charge": charge["id"], "amout": 1}),
        (f"/v1/disputes/{inquiry['id']}", {"evidence": {"product_descripton": "x"}}),
    ):
        with pytest.raises(stripe.InvalidRequestError, match="unknown parameter"):
            client.raw_request("post", path, **wrong)
    with pytest.raises(stripe.InvalidRequestError, match="unknown parameter"):
        client.raw_request("get", "/v1/invoice_payments", invoce=invoice.id)


def test_an_inquiry_moves_nothing_and_evidence_is_submitted_unless_it_is_staged(
    client: Client, stripe_twin: StripeTwin, invoice: stripe.Invoice
) -> None:
    charge = act(stripe_twin, "pay", invoice=invoice.id)
    inquiry = act(stripe_twin, "dispute", charge=charge["id"], inquiry=True)["id"]
    assert len(client.v1.balance_transactions.list().data) == 1
    staged = client.v1.disputes.update(inquiry, {"evidence": {"uncategorized_text": "x" * 20_000}, "submit": False})
    assert (staged.status, staged.evidence_details.submission_count) == ("warning_needs_response", 0)
    sent = client.v1.disputes.update(inquiry, {"evidence": {"product_description": "tokens"}})
    assert (sent.status, sent.evidence_details.submission_count) == ("warning_under_review", 1)
    assert act(stripe_twin, "decide", dispute=inquiry, won=True)["status"] == "warning_closed"


def test_what_is_paid_too_much_is_the_customers_and_other_currencies_are_settled_at_a_rate(
    client: Client, stripe_twin: StripeTwin, invoice: stripe.Invoice, customer: stripe.Customer
) -> None:
    charge = act(stripe_twin, "pay", invoice=invoice.id, amount=2500, overpay=True, settle="eur", rate="0.9")
    now = client.v1.invoices.retrieve(invoice.id)
    assert (now.status, now.amount_paid, now.amount_overpaid) == ("paid", 2000, 500)
    assert client.v1.customers.retrieve(customer.id).balance == -500
    client.v1.refunds.create({"charge": charge["id"], "amount": 100})
    moved = client.v1.balance_transactions.list().data
    assert [(m.amount, m.currency, m.exchange_rate) for m in moved] == [(-90, "eur", 0.9), (2250, "eur", 0.9)]
