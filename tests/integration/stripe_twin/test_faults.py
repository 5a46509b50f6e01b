"""What can be made to go wrong: what is done then, what is stored under the key, what a client sees."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import stripe

from devstack.stripe_twin.faults import FaultKind
from tests.fixtures_stripe_twin import StripeTwin, TwinProcess, control


def customers(twin: StripeTwin) -> int:
    return len(twin.client().v1.customers.list({"limit": 100}).data)


@pytest.mark.parametrize(
    ("kind", "status", "done", "repeated"),
    [
        (FaultKind.REFUSE, None, 0, 200),
        (FaultKind.TIMEOUT, None, 0, 200),
        (FaultKind.LOSE_REPLY, None, 1, 200),
        (FaultKind.ERROR, 500, 0, 200),
        (FaultKind.ERROR_STORED, 500, 0, 500),
        (FaultKind.ERROR_COMMITTED, 500, 1, 500),
        (FaultKind.REFUSED, 400, 0, 400),
        (FaultKind.CONFLICT, 409, 0, 200),
        (FaultKind.RATE_LIMIT, 429, 0, 200),
        (FaultKind.LOCK_TIMEOUT, 429, 0, 200),
        (FaultKind.SLOW, 200, 1, 200),
    ],
)
def test_each_fault_does_what_it_says_and_the_key_repeats_what_was_stored(
    stripe_twin: StripeTwin, kind: FaultKind, status: int | None, done: int, repeated: int
) -> None:
    control(stripe_twin, "faults", kind=kind, key=stripe_twin.key, method="POST", path="/v1/customers", seconds=0.01)

    def create() -> int | None:
        try:
            stripe_twin.client().v1.customers.create({"name": "x"}, {"idempotency_key": "k"})
        except stripe.StripeError as error:
            return error.http_status
        return 200

    assert create() == status
    assert customers(stripe_twin) == done
    assert create() == repeated, "the key repeats what was stored under it, and nothing else"
    assert customers(stripe_twin) == (1 if done or repeated == 200 else 0)


def test_what_commits_late_holds_its_key_until_then_and_is_done_once(stripe_twin: StripeTwin) -> None:
    hold = stripe_twin.hold("before_execute", "POST", "/v1/customers")
    control(stripe_twin, "faults", kind="commit_late", key=stripe_twin.key, method="POST", path="/v1/customers")

    def create() -> int | None:
        try:
            stripe_twin.client().v1.customers.create({"name": "x"}, {"idempotency_key": "k"})
        except stripe.StripeError as error:
            return error.http_status
        return 200

    assert create() is None, "the client waits no longer"
    hold.wait()
    assert (create(), customers(stripe_twin)) == (409, 0)
    hold.release()
    while stripe_twin.call("GET", "/_twin/faults")[2]["under_way"]:
        time.sleep(0.01)
    assert (create(), customers(stripe_twin)) == (200, 1)


def test_a_fault_skips_and_counts_and_meets_its_own_account_alone(stripe_twin: StripeTwin) -> None:
    control(stripe_twin, "faults", kind="error_500", key=stripe_twin.key, path="/v1/c*", skip=1, times=2)
    other = StripeTwin(stripe_twin.url)
    statuses = [stripe_twin.call("GET", "/v1/customers")[0] for _ in range(4)]
    assert [other.call("GET", "/v1/customers")[0], *statuses] == [200, 200, 500, 500, 200]


def test_more_requests_than_the_limit_are_refused(make_stripe_twin: Callable[[], TwinProcess]) -> None:
    twin = make_stripe_twin().start()
    control(twin, "limits", all_per_s=5, endpoint_per_s=0.001)  # one, and no second one while this test lasts
    assert [twin.call("GET", "/v1/customers")[0] for _ in range(4)] == [200, 429, 429, 429]
    status, _, said = twin.call("GET", "/v1/customers")
    assert (status, said["error"]["code"]) == (429, "rate_limit")


def test_the_clock_goes_forward_also_over_a_restart_and_keys_grow_old_by_it(
    make_stripe_twin: Callable[[], TwinProcess],
) -> None:
    process = make_stripe_twin()
    twin = process.start()
    first = twin.client().v1.customers.create({"name": "x"}, {"idempotency_key": "k"})
    now = control(twin, "clock", advance=24 * 3600)["now"]
    process.kill()
    twin = StripeTwin(process.start().url, twin.key)
    again = twin.client().v1.customers.create({"name": "x"}, {"idempotency_key": "k"})
    assert (again.id != first.id, again.created >= now) == (True, True)
    assert twin.call("POST", "/_twin/clock", json.dumps({"advance": -1}))[0] == 400
    # Search shows what was a minute ago.
    customers = twin.client().v1.customers
    customers.update(first.id, {"metadata": {"tenant": "acme"}})
    customers.update(again.id, {"name": "y", "metadata": {"tenant": "acme"}})

    def found(query: str) -> list[str]:
        return [each.id for each in customers.search({"query": query, "limit": 1}).auto_paging_iter()]

    assert found("name:'x'") == [first.id], "the other one was made just now"
    assert found("-name:'x' OR metadata['tenant']:'acme'") == []
    control(twin, "clock", advance=61)
    assert (found("name:'x'"), found("name:'y'"), found("metadata['tenant']:'acme' AND name~'x'")) == (
        [first.id], [again.id], [first.id],
    )  # fmt: skip
    assert found(f"created>={now} metadata['tenant']:'acme'") == [again.id]


@pytest.fixture
def endpoint() -> Iterator[tuple[str, queue.Queue[tuple[bytes, str]]]]:
    """An address that takes webhooks, and what came."""
    came: queue.Queue[tuple[bytes, str]] = queue.Queue()

    class Take(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            came.put((body, self.headers["stripe-signature"]))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", came
    server.shutdown()
    server.server_close()


def test_webhooks_come_signed_and_repeated_and_what_is_lost_is_listed(
    make_stripe_twin: Callable[[], TwinProcess], endpoint: tuple[str, queue.Queue[tuple[bytes, str]]]
) -> None:
    twin = make_stripe_twin().start()
    client = twin.client()
    url, came = endpoint
    made = client.v1.webhook_endpoints.create({"url": url, "enabled_events": ["customer.created"]})
    assert made.secret is not None
    control(twin, "webhooks", repeat=1.0)
    customer = client.v1.customers.create({"name": "x"})
    for _ in range(2):
        body, header = came.get(timeout=60)
        event = stripe.Webhook.construct_event(body, header, made.secret)
        assert (event.type, event.data.object["id"]) == ("customer.created", customer.id)
    control(twin, "webhooks", lose=1.0)
    client.v1.customers.create({"name": "y"})
    client.v1.customers.update(customer.id, {"name": "z"})
    assert [event.type for event in client.v1.events.list().data] == [
        "customer.updated", "customer.created", "customer.created",
    ]  # fmt: skip
    assert came.empty()
