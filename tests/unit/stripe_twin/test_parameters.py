"""The parameter check against the SDK's own typed parameters."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from stripe.params._customer_list_params import CustomerListParams
from stripe.params._customer_update_params import CustomerUpdateParams
from stripe.params._invoice_add_lines_params import InvoiceAddLinesParams
from stripe.params._invoice_create_params import InvoiceCreateParams
from stripe.params._invoice_item_create_params import InvoiceItemCreateParams

from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.resources import ROUTES
from devstack.stripe_twin.rules.forms import decode
from devstack.stripe_twin.rules.parameters import check, shape_of


def refusal(typed_dict: type, text: str, required: tuple[str, ...] = ()) -> StripeError:
    with pytest.raises(StripeError) as caught:
        check(typed_dict, decode(text), required)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("typed_dict", "text", "expected"),
    [
        (InvoiceCreateParams, "auto_advance=false&days_until_due=30", {"auto_advance": False, "days_until_due": 30}),
        (InvoiceCreateParams, "discounts=", {"discounts": ""}),
        (InvoiceCreateParams, "automatic_tax[enabled]=false", {"automatic_tax": {"enabled": False}}),
        (InvoiceCreateParams, "metadata[a]=1&metadata[0]=2", {"metadata": {"a": "1", "0": "2"}}),
        (InvoiceItemCreateParams, "unit_amount_decimal=0.000000000001", {"unit_amount_decimal": Decimal("1e-12")}),
        (InvoiceAddLinesParams, "lines[1][amount]=2&lines[0][amount]=-1", {"lines": [{"amount": -1}, {"amount": 2}]}),
        (InvoiceAddLinesParams, "lines[][amount]=1&lines[][amount]=2", {"lines": [{"amount": 1}, {"amount": 2}]}),
        (CustomerListParams, "created=5&limit=3", {"created": 5, "limit": 3}),
        (CustomerListParams, "created[gte]=5", {"created": {"gte": 5}}),
        (CustomerUpdateParams, "description=&expand[]=x", {"description": "", "expand": ["x"]}),
    ],
)
def test_values_get_their_types(typed_dict: type, text: str, expected: Any) -> None:
    assert check(typed_dict, decode(text)) == expected


@pytest.mark.parametrize(
    ("typed_dict", "text", "code", "param"),
    [
        (InvoiceCreateParams, "custmer=cus_1", "parameter_unknown", "custmer"),
        (InvoiceCreateParams, "automatic_tax[enabld]=true", "parameter_unknown", "automatic_tax[enabld]"),
        (InvoiceCreateParams, "automatic_tax[liability][type]=self", "parameter_missing", "automatic_tax[enabled]"),
        (InvoiceAddLinesParams, "lines[0][amout]=1", "parameter_unknown", "lines[0][amout]"),
        (InvoiceAddLinesParams, "", "parameter_missing", "lines"),
        (InvoiceCreateParams, "days_until_due=thirty", "parameter_invalid_integer", "days_until_due"),
        (InvoiceCreateParams, "days_until_due=1.5", "parameter_invalid_integer", "days_until_due"),
        (InvoiceCreateParams, "days_until_due=", "parameter_invalid_empty", "days_until_due"),
        (InvoiceCreateParams, "auto_advance=yes", None, "auto_advance"),
        (InvoiceCreateParams, "collection_method=fax", None, "collection_method"),
        (InvoiceCreateParams, "automatic_tax=1", None, "automatic_tax"),
        (InvoiceCreateParams, "customer[a]=1", None, "customer"),
        (InvoiceAddLinesParams, "lines=1", None, "lines"),
        (InvoiceCreateParams, "metadata[a][b]=1", None, "metadata[a]"),
        (InvoiceItemCreateParams, "unit_amount_decimal=1e5", None, "unit_amount_decimal"),
        (InvoiceItemCreateParams, "unit_amount_decimal=0.0000000000001", None, "unit_amount_decimal"),
        # Of the call, not of the request: the SDK never sends them.
        (InvoiceCreateParams, "api_key=sk", "parameter_unknown", "api_key"),
        (InvoiceCreateParams, "idempotency_key=k", "parameter_unknown", "idempotency_key"),
    ],
)
def test_what_stripe_refuses_is_refused(typed_dict: type, text: str, code: str | None, param: str) -> None:
    error = refusal(typed_dict, text)
    assert (error.code, error.param) == (code, param)


def test_a_near_name_is_suggested() -> None:
    assert refusal(InvoiceCreateParams, "custmer=cus_1").message.endswith("Did you mean customer?")


def test_what_the_sdk_marks_optional_can_be_required() -> None:
    assert refusal(InvoiceCreateParams, "", ("customer",)).code == "parameter_missing"


def test_choices_are_listed() -> None:
    message = refusal(InvoiceCreateParams, "pending_invoice_items_behavior=all").message
    assert message == "Invalid pending_invoice_items_behavior: must be one of exclude or include"


def test_long_strings_are_refused() -> None:
    assert refusal(InvoiceCreateParams, f"description={'x' * 5001}").param == "description"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_supports_only_names_that_stripe_has(route: Any) -> None:
    fields = shape_of(route.params).fields
    assert fields is not None
    assert route.supports <= fields.keys()
    assert set(route.requires) <= route.supports
