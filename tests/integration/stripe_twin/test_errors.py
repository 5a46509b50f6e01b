"""Errors: the SDK raises its own right classes, and the bodies have Stripe's shape."""

from __future__ import annotations

import base64
from typing import Any

import pytest
import stripe

from tests.fixtures_stripe_twin import StripeTwin


def test_the_sdk_raises_its_own_classes(stripe_twin: StripeTwin) -> None:
    client = stripe_twin.client()
    client.v1.customers.create({}, {"idempotency_key": "k"})
    for call, kind, status in (
        (lambda: client.v1.customers.retrieve("cus_none"), stripe.InvalidRequestError, 404),
        (lambda: client.v1.customers.create({"nam": "A"}), stripe.InvalidRequestError, 400),
        (lambda: client.v1.customers.create({"name": "A"}, {"idempotency_key": "k"}), stripe.IdempotencyError, 400),
        (lambda: stripe_twin.client("nonsense").v1.customers.list(), stripe.AuthenticationError, 401),
    ):
        with pytest.raises(stripe.StripeError) as caught:
            call()
        assert type(caught.value) is kind
        assert caught.value.http_status == status
        assert caught.value.request_id is not None
        assert caught.value.request_id.startswith("req_")


def test_an_error_has_stripes_attributes(stripe_twin: StripeTwin) -> None:
    status, headers, body = stripe_twin.call("GET", "/v1/customers/cus_none")
    assert status == 404
    assert headers["stripe-version"] == stripe.api_version
    assert headers["content-type"] == "application/json"
    error = body["error"]
    assert error == {
        "code": "resource_missing",
        "doc_url": "https://stripe.com/docs/error-codes/resource-missing",
        "message": "No such customer: 'cus_none'",
        "param": "id",
        "request_log_url": f"{stripe_twin.url}/_twin/requests?id={headers['request-id']}",
        "type": "invalid_request_error",
    }
    _, _, log = stripe_twin.call("GET", error["request_log_url"].removeprefix(stripe_twin.url))
    assert [entry["status"] for entry in log["data"]] == [404]


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        ("", "did not provide an API key"),
        ("Bearer ", "did not provide an API key"),
        ("Basic !!!", "did not provide an API key"),
        ("Bearer pk_test_1", "Invalid API Key"),
        ("Bearer sk_test_", "Invalid API Key"),
        ("Bearer sk_live_51abcdefghijklmnop", "LIVE key"),
        ("Bearer rk_live_51abcdefghijklmnop", "LIVE key"),
    ],
)
def test_without_a_test_key_nothing_is_answered(stripe_twin: StripeTwin, authorization: str, message: str) -> None:
    status, _, body = stripe_twin.call("GET", "/v1/customers", headers={"Authorization": authorization})
    assert (status, body["error"]["type"]) == (401, "invalid_request_error")
    assert message in body["error"]["message"]
    assert "abcdefgh" not in body["error"]["message"]


def test_the_key_may_come_as_basic_auth(stripe_twin: StripeTwin) -> None:
    made = stripe_twin.client().v1.customers.create({})
    basic = base64.b64encode(f"{stripe_twin.key}:".encode()).decode()
    _, _, body = stripe_twin.call("GET", "/v1/customers", headers={"Authorization": f"Basic {basic}"})
    assert [customer["id"] for customer in body["data"]] == [made.id]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Stripe-Version": str(stripe.api_version)}, 200),
        ({"Stripe-Version": "2024-06-20"}, 400),
        ({"Stripe-Account": "acct_1"}, 400),
    ],
)
def test_one_api_version_and_one_account(stripe_twin: StripeTwin, headers: dict[str, str], status: int) -> None:
    assert stripe_twin.call("GET", "/v1/customers", headers=headers)[0] == status


def test_the_sdk_of_this_project_asks_for_the_pinned_version() -> None:
    assert stripe.api_version == "2026-10-28.endive"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/nonsense"),
        ("PUT", "/v1/customers"),
        ("GET", "/v2/core/events"),
        ("GET", "/v1/subscriptions"),
        ("GET", "/v1/invoices/"),
    ],
)
def test_unknown_addresses_are_named(stripe_twin: StripeTwin, method: str, path: str) -> None:
    headers = {"Authorization": f"Bearer {stripe_twin.key}"}
    status, _, body = stripe_twin.call(method, path, headers=headers)
    assert status == 404
    assert f"Unrecognized request URL ({method}: {path})" in body["error"]["message"]


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        ('{"name": "A"}', "application/json", "content type"),
        ("name=%FF", "application/x-www-form-urlencoded", "UTF-8"),
        ("name=a&name[b]=c", "application/x-www-form-urlencoded", "both"),
        ("a" + "[b]" * 40 + "=1", "application/x-www-form-urlencoded", "nested too deeply"),
    ],
)
def test_bodies_that_are_no_form_are_refused(
    stripe_twin: StripeTwin, body: str, content_type: str, message: str
) -> None:
    status, _, answer = stripe_twin.call("POST", "/v1/customers", body, {"Content-Type": content_type})
    assert status == 400
    assert message in answer["error"]["message"]


def test_arrays_and_hashes_in_every_spelling(stripe_twin: StripeTwin) -> None:
    """What curl users write: arrays with and without indexes, nested."""

    def post(path: str, body: str) -> Any:
        status, _, answer = stripe_twin.call("POST", path, body)
        assert status == 200, answer
        return answer

    customer = post("/v1/customers", "metadata[a]=1&preferred_locales[]=de&preferred_locales[]=en")
    assert customer["preferred_locales"] == ["de", "en"]
    invoice = post("/v1/invoices", f"customer={customer['id']}")
    path = f"/v1/invoices/{invoice['id']}/add_lines"
    post(path, "lines[][amount]=1&lines[][description]=x&lines[][amount]=2")
    total = post(path, "lines[1][amount]=20&lines[0][amount]=10&expand[0]=customer")
    assert [line["amount"] for line in total["lines"]["data"]] == [1, 2, 10, 20]
    assert total["customer"]["id"] == customer["id"]


def test_what_the_twin_lacks_is_said_and_not_ignored(stripe_twin: StripeTwin) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        stripe_twin.client().v1.customers.create({"payment_method": "pm_1"})
    assert (caught.value.code, caught.value.param) == ("twin_unsupported", "payment_method")
