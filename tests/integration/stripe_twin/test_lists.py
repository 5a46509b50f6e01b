"""Pagination and expansion through the real SDK."""

from __future__ import annotations

import pytest
import stripe

Client = stripe.StripeClient


def test_the_sdk_walks_all_pages_newest_first(client: Client) -> None:
    made = [client.v1.customers.create({"description": str(n)}).id for n in range(23)]
    first = client.v1.customers.list()
    assert (len(first.data), first.has_more, first.url) == (10, True, "/v1/customers")
    walked = [c.id for c in client.v1.customers.list({"limit": 7}).auto_paging_iter()]
    assert walked == made[::-1]
    whole = client.v1.customers.list({"limit": 100})
    assert (len(whole.data), whole.has_more) == (23, False)


def test_pages_go_backward_too(client: Client) -> None:
    made = [client.v1.customers.create({}).id for _ in range(8)][::-1]
    page = client.v1.customers.list({"ending_before": made[6], "limit": 4})
    assert ([c.id for c in page.data], page.has_more) == (made[2:6], True)
    page = client.v1.customers.list({"ending_before": made[2], "limit": 4})
    assert ([c.id for c in page.data], page.has_more) == (made[:2], False)
    backward = client.v1.customers.list({"ending_before": made[7], "limit": 3})
    assert [c.id for c in backward.auto_paging_iter()] == made[:7][::-1]


def test_objects_made_while_walking_do_not_disturb_the_walk(client: Client) -> None:
    made = [client.v1.customers.create({}).id for _ in range(6)]
    walked = []
    for customer in client.v1.customers.list({"limit": 2}).auto_paging_iter():
        walked.append(customer.id)
        client.v1.customers.create({})
    assert walked == made[::-1]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 101}, "limit"),
        ({"starting_after": "cus_none"}, "starting_after"),
        ({"starting_after": "cus_a", "ending_before": "cus_b"}, "ending_before"),
    ],
)
def test_bad_pages_are_refused(client: Client, params: dict, param: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        client.v1.customers.list(params)
    assert (caught.value.http_status, caught.value.param) == (400, param)


def test_references_are_expanded_on_request(client: Client, customer: stripe.Customer, draft: stripe.Invoice) -> None:
    assert draft.customer == customer.id
    read = client.v1.invoices.retrieve(draft.id, {"expand": ["customer", "lines"]})
    assert isinstance(read.customer, stripe.Customer)
    assert read.customer.email == customer.email
    listed = client.v1.invoices.list({"expand": ["data.customer"]}).data[0]
    assert isinstance(listed.customer, stripe.Customer)
    item = client.v1.invoice_items.create(
        {"customer": customer.id, "invoice": draft.id, "amount": 1, "expand": ["invoice.customer"]}
    )
    assert isinstance(item.invoice, stripe.Invoice)
    assert isinstance(item.invoice.customer, stripe.Customer)


@pytest.mark.parametrize("path", ["nonsense", "customer.nonsense", "status", "a.b.c.d.e"])
def test_what_cannot_be_expanded_is_refused(client: Client, draft: stripe.Invoice, path: str) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="expand"):
        client.v1.invoices.retrieve(draft.id, {"expand": [path]})


def test_a_write_with_a_bad_expansion_writes_nothing(client: Client) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="expand"):
        client.v1.customers.create({"expand": ["nonsense"]})
    assert client.v1.customers.list().data == []
