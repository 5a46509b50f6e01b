"""Idempotency keys through the real SDK: replay, refusal, conflict, and what is not stored.

Source of each expectation: docs.stripe.com/api/idempotent_requests and docs.stripe.com/error-low-level.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import stripe

from tests.fixtures_stripe_twin import StripeTwin, new_test_key

Client = stripe.StripeClient
KEY: stripe.RequestOptions = {"idempotency_key": "op-1"}


def count(client: Client) -> int:
    return len(list(client.v1.customers.list({"limit": 100}).auto_paging_iter()))


def test_the_same_request_is_answered_from_the_first_reply(client: Client) -> None:
    params: stripe.params.CustomerCreateParams = {"name": "A", "metadata": {"a": "1", "b": "2"}}
    first = client.v1.customers.create(params, KEY)
    client.v1.customers.update(first.id, {"name": "changed since"})
    again = client.v1.customers.create({"metadata": {"b": "2", "a": "1"}, "name": "A"}, KEY)
    assert again.to_dict() == first.to_dict(), "as it was answered, not as it is now; the order does not matter"
    assert count(client) == 1
    assert first.last_response is not None
    assert again.last_response is not None
    before, after = first.last_response.headers, again.last_response.headers
    assert "idempotent-replayed" not in before
    assert after["idempotent-replayed"] == "true"
    assert before["idempotency-key"] == after["idempotency-key"] == "op-1"
    assert after["original-request"] == before["request-id"] == before["original-request"]
    assert after["request-id"] != before["request-id"]


def test_the_bytes_of_a_replay_are_the_same(stripe_twin: StripeTwin) -> None:
    replies = [stripe_twin.client().raw_request("post", "/v1/customers", name="A", idempotency_key="k") for _ in "12"]
    assert replies[0].body == replies[1].body


@pytest.mark.parametrize("params", [{"name": "B"}, {}, {"name": "A", "metadata": {"x": "1"}}])
def test_other_parameters_under_the_same_key_are_refused(client: Client, params: dict) -> None:
    client.v1.customers.create({"name": "A"}, KEY)
    with pytest.raises(stripe.IdempotencyError, match="same parameters") as caught:
        client.v1.customers.create(params, KEY)
    assert caught.value.http_status == 400
    assert count(client) == 1
    assert client.v1.customers.create({"name": "A"}, KEY).name == "A", "the refusal does not spoil the key"


def test_another_endpoint_under_the_same_key_is_refused(client: Client) -> None:
    customer = client.v1.customers.create({}, KEY)
    for call in (
        lambda: client.v1.invoices.create({"customer": customer.id}, KEY),
        lambda: client.v1.customers.update(customer.id, {}, KEY),
    ):
        with pytest.raises(stripe.IdempotencyError, match="same endpoint"):
            call()


def test_the_same_key_while_the_first_still_runs_conflicts(stripe_twin: StripeTwin) -> None:
    """The first is held between taking its key and running; the conflict is not stored."""
    client = stripe_twin.client()
    customer = client.v1.customers.create({})
    path = f"/v1/customers/{customer.id}"
    hold = stripe_twin.hold("before_execute", "POST", path)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.v1.customers.update, customer.id, {"name": "first"}, KEY)
        try:
            hold.wait()
            for params in ({"name": "first"}, {"name": "other"}):
                with pytest.raises(stripe.APIError) as caught:
                    stripe_twin.client().v1.customers.update(customer.id, params, KEY)
                assert caught.value.http_status == 409
                assert caught.value.error is not None
                assert caught.value.error.code == "idempotency_key_in_use"
                assert caught.value.headers is not None
                assert caught.value.headers["stripe-should-retry"] == "true"
            stranger = stripe_twin.client(new_test_key())
            assert stranger.v1.customers.create({}, KEY).id, "keys are the account's own"
            assert client.v1.customers.retrieve(customer.id).name is None
        finally:
            hold.release()
        assert first.result(timeout=60).name == "first"
    assert client.v1.customers.update(customer.id, {"name": "first"}, KEY).name == "first"


def test_a_retrying_client_gets_the_first_reply_after_a_conflict(stripe_twin: StripeTwin) -> None:
    """The SDK retries a 409 by itself; the first request is let go once the conflict has happened."""
    client = stripe_twin.client()
    customer = client.v1.customers.create({})
    hold = stripe_twin.hold("before_execute", "POST", f"/v1/customers/{customer.id}")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.v1.customers.update, customer.id, {"name": "A"}, KEY)
        hold.wait()
        patient = stripe_twin.client(max_network_retries=10)
        second = pool.submit(patient.v1.customers.update, customer.id, {"name": "A"}, KEY)
        hold.release()
        assert first.result(timeout=60).to_dict() == second.result(timeout=60).to_dict()


def test_many_at_once_make_one_object(stripe_twin: StripeTwin) -> None:
    client = stripe_twin.client()
    with ThreadPoolExecutor(16) as pool:
        made = list(
            pool.map(
                lambda _: stripe_twin.client(max_network_retries=10).v1.customers.create({"name": "A"}, KEY).id,
                range(32),
            )
        )
    assert len(set(made)) == 1
    assert count(client) == 1


def test_a_reply_that_is_slow_is_already_stored(stripe_twin: StripeTwin) -> None:
    """Committed and not yet answered: the same key is replayed, not refused."""
    client = stripe_twin.client()
    customer = client.v1.customers.create({})
    hold = stripe_twin.hold("after_commit", "POST", f"/v1/customers/{customer.id}")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.v1.customers.update, customer.id, {"name": "A"}, KEY)
        try:
            hold.wait()
            again = client.v1.customers.update(customer.id, {"name": "A"}, KEY)
        finally:
            hold.release()
        assert first.result(timeout=60).to_dict() == again.to_dict()
    assert again.last_response is not None
    assert again.last_response.headers["idempotent-replayed"] == "true"


def test_a_failure_that_ran_is_stored(client: Client) -> None:
    """The number is taken when asked first; the stored refusal stays although it would work now."""
    draft = client.v1.invoices.create({"customer": client.v1.customers.create({}).id})
    params: stripe.params.InvoiceUpdateParams = {"number": "N-1"}
    other = client.v1.invoices.create({"customer": str(draft.customer), "number": "N-1"})
    for _ in range(2):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            client.v1.invoices.update(draft.id, params, KEY)
        assert caught.value.param == "number"
        client.v1.invoices.update(other.id, {"number": ""})
    assert caught.value.headers is not None
    assert caught.value.headers["idempotent-replayed"] == "true"
    assert caught.value.headers["stripe-should-retry"] == "false"
    assert client.v1.invoices.update(draft.id, params, {"idempotency_key": "op-2"}).number == "N-1"


@pytest.mark.parametrize("bad", [{"nam": "A"}, {"balance": "x"}, {"metadata": {"k": "v" * 501}}, {"source": "tok_1"}])
def test_a_request_that_fails_validation_does_not_use_up_the_key(client: Client, bad: dict) -> None:
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.customers.create(bad, KEY)
    assert client.v1.customers.create({"name": "A"}, KEY).name == "A"


def test_a_refused_key_does_not_use_up_the_idempotency_key(stripe_twin: StripeTwin) -> None:
    with pytest.raises(stripe.AuthenticationError):
        stripe_twin.client("sk_live_x").v1.customers.create({}, KEY)
    assert stripe_twin.client().v1.customers.create({}, KEY).id


def test_keys_belong_to_an_account(stripe_twin: StripeTwin) -> None:
    one = stripe_twin.client().v1.customers.create({"name": "A"}, KEY)
    two = stripe_twin.client(new_test_key()).v1.customers.create({"name": "B"}, KEY)
    assert one.id != two.id


def test_keys_are_at_most_255_characters(client: Client) -> None:
    assert client.v1.customers.create({}, {"idempotency_key": "k" * 255}).id
    with pytest.raises(stripe.InvalidRequestError, match="255 characters"):
        client.v1.customers.create({}, {"idempotency_key": "k" * 256})
    assert count(client) == 1


def test_get_and_delete_ignore_keys(stripe_twin: StripeTwin) -> None:
    client = stripe_twin.client()
    customer = client.v1.customers.create({})
    header = {"Idempotency-Key": "k"}
    for path in (f"/v1/customers/{customer.id}", "/v1/customers"):
        status, headers, _ = stripe_twin.call("GET", path, headers=header)
        assert (status, "idempotency-key" in headers) == (200, False)
    for expected in (200, 404):
        status, _, _ = stripe_twin.call("DELETE", f"/v1/customers/{customer.id}", headers=header)
        assert status == expected


def test_each_step_of_an_invoice_can_be_sent_twice(client: Client, customer: stripe.Customer) -> None:
    """Create, lines, number and finalize, each sent twice: one invoice with its lines once."""

    def key(step: str) -> stripe.RequestOptions:
        return {"idempotency_key": f"tb:acme:2026-10:r0:{step}"}

    for _ in range(2):
        draft = client.v1.invoices.create({"customer": customer.id, "auto_advance": False}, key("create"))
        for chunk in range(3):
            lines = [{"amount": 100, "metadata": {"line_key": f"{chunk}-{n}"}} for n in range(20)]
            client.v1.invoices.add_lines(draft.id, {"lines": lines}, key(f"lines{chunk}"))
        client.v1.invoices.update(draft.id, {"number": "T-1"}, key("number"))
        client.v1.invoices.finalize_invoice(draft.id, {"auto_advance": False}, key("finalize"))
    invoices = client.v1.invoices.list({"customer": customer.id}).data
    assert [(i.status, i.total, i.number, i.lines.total_count) for i in invoices] == [("open", 6000, "T-1", 60)]
