"""Lines and invoice items through the real SDK."""

from __future__ import annotations

from decimal import Decimal

import pytest
import stripe

Client = stripe.StripeClient


def totals(client: Client, invoice_id: str) -> tuple[int, int]:
    """The invoice's total, and the sum of its lines as listed."""
    lines = client.v1.invoices.line_items.list(invoice_id, {"limit": 100}).auto_paging_iter()
    return client.v1.invoices.retrieve(invoice_id).total, sum(line.amount for line in lines)


def test_lines_are_added_in_order_and_read_back_whole(client: Client, draft: stripe.Invoice) -> None:
    sent = [
        {
            "amount": 100 + n,
            "description": f"line {n}",
            "discountable": False,
            "metadata": {"line_key": f"k{n}"},
            "period": {"start": 1_700_000_000, "end": 1_700_086_399},
        }
        for n in range(23)
    ]
    first = client.v1.invoices.add_lines(draft.id, {"lines": sent[:15], "invoice_metadata": {"a": "1"}})
    assert first.metadata is not None
    assert first.metadata["a"] == "1"
    second = client.v1.invoices.add_lines(draft.id, {"lines": sent[15:]})
    assert (len(second.lines.data), second.lines.has_more, second.lines.total_count) == (10, True, 23)
    assert second.total == sum(line["amount"] for line in sent)

    for lines in (
        list(client.v1.invoices.line_items.list(draft.id, {"limit": 4}).auto_paging_iter()),
        list(second.lines.auto_paging_iter()),
    ):
        assert [line.amount for line in lines] == [line["amount"] for line in sent]
        assert [line.metadata["line_key"] for line in lines] == [f"k{n}" for n in range(23)]
    line = lines[3]
    assert line.id.startswith("il_")
    assert (line.currency, line.discountable, line.quantity, line.quantity_decimal) == ("usd", False, 1, Decimal(1))
    assert (line.period.start, line.period.end) == (1_700_000_000, 1_700_086_399)
    assert (line.taxes, line.discounts, line.discount_amounts, line.invoice) == ([], [], [], draft.id)
    assert line.parent is not None
    assert line.parent.invoice_item_details is not None
    item = client.v1.invoice_items.retrieve(line.parent.invoice_item_details.invoice_item)
    assert (item.amount, item.invoice, item.description) == (line.amount, draft.id, line.description)


def test_lines_are_changed_and_removed_in_bulk(client: Client, draft: stripe.Invoice) -> None:
    invoice = client.v1.invoices.add_lines(
        draft.id, {"lines": [{"amount": n, "metadata": {"n": str(n)}} for n in (100, 200, 300, -50)]}
    )
    a, b, c, _ = invoice.lines.data
    changed = client.v1.invoices.update_lines(
        draft.id, {"lines": [{"id": a.id, "amount": 111, "metadata": {"x": "y"}}, {"id": c.id, "description": "c"}]}
    )
    assert changed.total == 561
    assert changed.lines.data[0].metadata.to_dict() == {"n": "100", "x": "y"}
    assert changed.lines.data[2].description == "c"
    left = client.v1.invoices.remove_lines(
        draft.id, {"lines": [{"id": b.id, "behavior": "delete"}, {"id": c.id, "behavior": "unassign"}]}
    )
    assert [line.amount for line in left.lines.data] == [111, -50]
    assert totals(client, draft.id) == (61, 61)
    pending = client.v1.invoice_items.list({"pending": True}).data
    assert [(item.amount, item.invoice) for item in pending] == [(300, None)]
    back = client.v1.invoices.add_lines(draft.id, {"lines": [{"invoice_item": pending[0].id}]})
    assert (back.total, back.lines.data[-1].amount) == (361, 300)
    one = client.v1.invoices.line_items.update(draft.id, back.lines.data[-1].id, {"amount": 5})
    assert one.amount == 5
    assert totals(client, draft.id) == (66, 66)


def test_a_bulk_request_is_applied_whole_or_not_at_all(client: Client, draft: stripe.Invoice) -> None:
    line = client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 100}]}).lines.data[0]
    for call in (
        lambda: client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 1}, {"amount": 100_000_000}]}),
        lambda: client.v1.invoices.update_lines(
            draft.id, {"lines": [{"id": line.id, "amount": 7}, {"id": "il_none", "amount": 7}]}
        ),
        lambda: client.v1.invoices.remove_lines(
            draft.id,
            {"lines": [{"id": line.id, "behavior": "delete"}, {"id": line.id, "behavior": "delete"}]},
        ),
    ):
        with pytest.raises(stripe.InvalidRequestError):
            call()
    assert totals(client, draft.id) == (100, 100)


def test_250_items_are_the_limit(client: Client, customer: stripe.Customer, draft: stripe.Invoice) -> None:
    full = client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 1} for _ in range(249)]})
    assert full.lines.total_count == 249
    for extra in (2, 250):
        with pytest.raises(stripe.InvalidRequestError, match="250"):
            client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 1} for _ in range(extra)]})
    client.v1.invoice_items.create({"customer": customer.id, "invoice": draft.id, "amount": 1})
    with pytest.raises(stripe.InvalidRequestError, match="250"):
        client.v1.invoice_items.create({"customer": customer.id, "invoice": draft.id, "amount": 1})
    assert totals(client, draft.id) == (250, 250)
    line = full.lines.data[0]
    client.v1.invoices.remove_lines(draft.id, {"lines": [{"id": line.id, "behavior": "delete"}]})
    client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 1}]})
    assert totals(client, draft.id) == (250, 250)


def test_pending_items_stay_out_unless_included(client: Client, customer: stripe.Customer) -> None:
    for amount, currency in ((1, "usd"), (2, "usd"), (4, "eur"), (3, "usd")):
        client.v1.invoice_items.create({"customer": customer.id, "amount": amount, "currency": currency})
    without = client.v1.invoices.create({"customer": customer.id})
    assert without.lines.data == []
    swept = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    client.v1.invoices.add_lines(swept.id, {"lines": [{"amount": 10}, {"amount": 11}]})
    lines = client.v1.invoices.line_items.list(swept.id).data
    assert [line.amount for line in lines] == [3, 2, 1, 10, 11], "pending newest first, then as added"
    assert [item.amount for item in client.v1.invoice_items.list({"pending": True}).data] == [4]


def test_more_than_250_pending_items_are_left_for_the_next_invoice(client: Client, customer: stripe.Customer) -> None:
    for _ in range(252):
        client.v1.invoice_items.create({"customer": customer.id, "amount": 1, "currency": "usd"})
    first = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    second = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    assert (first.lines.total_count, second.lines.total_count) == (250, 2)


def test_items_are_created_changed_listed_and_deleted(
    client: Client, customer: stripe.Customer, draft: stripe.Invoice
) -> None:
    item = client.v1.invoice_items.create(
        {
            "customer": customer.id,
            "invoice": draft.id,
            "unit_amount_decimal": Decimal("0.15"),
            "quantity": 1_000_003,
            "description": "tokens",
            "metadata": {"a": "1"},
            "period": {"start": 10, "end": 20},
        }
    )
    assert item.id.startswith("ii_")
    assert (item.amount, item.quantity, item.currency, item.invoice) == (150_000, 1_000_003, "usd", draft.id)
    assert item.pricing is not None
    assert item.pricing.unit_amount_decimal == Decimal("0.15")
    changed = client.v1.invoice_items.update(item.id, {"quantity": 10, "metadata": {"b": "2"}})
    assert (changed.amount, changed.metadata and changed.metadata.to_dict()) == (2, {"a": "1", "b": "2"})
    assert totals(client, draft.id) == (2, 2)
    changed = client.v1.invoice_items.update(item.id, {"amount": 77})
    assert (changed.amount, changed.quantity) == (77, 1)
    decimal = client.v1.invoice_items.create(
        {"customer": customer.id, "unit_amount_decimal": Decimal(100), "quantity_decimal": Decimal("2.515")}
    )
    assert (decimal.amount, decimal.quantity, decimal.quantity_decimal) == (252, 2, Decimal("2.515"))
    assert [i.id for i in client.v1.invoice_items.list({"invoice": draft.id}).data] == [item.id]
    assert [i.id for i in client.v1.invoice_items.list({"pending": True}).data] == [decimal.id]
    assert [i.id for i in client.v1.invoice_items.list({"pending": False}).data] == [item.id]
    assert len(client.v1.invoice_items.list({"customer": customer.id}).data) == 2
    gone = client.v1.invoice_items.delete(item.id)
    assert gone.to_dict() == {"id": item.id, "object": "invoiceitem", "deleted": True}
    assert totals(client, draft.id) == (0, 0)
    with pytest.raises(stripe.InvalidRequestError, match="No such invoiceitem"):
        client.v1.invoice_items.delete(item.id)


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({}, "parameter_missing", "amount"),
        ({"quantity": 2}, "parameter_missing", "amount"),
        ({"amount": 1, "quantity": 2}, "parameters_exclusive", "amount"),
        ({"amount": 1, "unit_amount_decimal": "1"}, "parameters_exclusive", "amount"),
        ({"amount": 100_000_000}, "amount_too_large", "amount"),
        ({"unit_amount_decimal": "1", "quantity": -1}, None, "quantity"),
        ({"amount": 1, "currency": "eur"}, None, "currency"),
        ({"amount": 1, "period": {"start": 2, "end": 1}}, None, "period"),
        ({"amount": 1, "period": {"start": 2}}, "parameter_missing", "period[end]"),
        ({"amount": "1.5"}, "parameter_invalid_integer", "amount"),
        ({"amount": 1, "price_data": {"currency": "usd", "product": "p"}}, "twin_unsupported", "price_data"),
        ({"amount": 1, "tax_rates": ["txr_1"]}, "twin_unsupported", "tax_rates"),
        ({"amount": 1, "customer": "cus_none"}, "resource_missing", "customer"),
        ({"amount": 1, "invoice": "in_none"}, "resource_missing", "invoice"),
    ],
)
def test_items_that_are_refused(
    client: Client, customer: stripe.Customer, draft: stripe.Invoice, params: dict, code: str | None, param: str
) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.invoice_items.create({"customer": customer.id, "invoice": draft.id, **params})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert client.v1.invoice_items.list().data == []


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        ({"amout": 1}, "parameter_unknown", "lines[1][amout]"),
        ({"currency": "usd", "amount": 1}, "parameter_unknown", "lines[1][currency]"),
        ({"unit_amount_decimal": "1"}, "parameter_unknown", "lines[1][unit_amount_decimal]"),
        ({"description": "no amount"}, "parameter_missing", "lines[1][amount]"),
        ({"amount": 1, "price_data": {"currency": "usd"}}, "twin_unsupported", "lines[1][price_data]"),
        ({"invoice_item": "ii_none"}, "resource_missing", "lines[1][invoice_item]"),
        ({"invoice_item": "ii_none", "amount": 1}, "parameters_exclusive", "lines[1][invoice_item]"),
    ],
)
def test_lines_that_are_refused(client: Client, draft: stripe.Invoice, line: dict, code: str, param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 1}, line]})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert client.v1.invoices.retrieve(draft.id).total == 0


def test_an_item_of_another_customer_or_currency_cannot_be_assigned(client: Client, draft: stripe.Invoice) -> None:
    assert isinstance(draft.customer, str)
    foreign = client.v1.invoice_items.create(
        {"customer": client.v1.customers.create({}).id, "amount": 1, "currency": "usd"}
    )
    euro = client.v1.invoice_items.create({"customer": draft.customer, "amount": 1, "currency": "eur"})
    own = client.v1.invoice_items.create({"customer": draft.customer, "invoice": draft.id, "amount": 1})
    for item in (foreign, euro, own):
        with pytest.raises(stripe.InvalidRequestError):
            client.v1.invoices.add_lines(draft.id, {"lines": [{"invoice_item": item.id}]})
