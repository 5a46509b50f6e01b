"""What Stripe may answer, as our errors: a definite no, try again, or unknown. Over HTTP, with the real SDK."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from billing.errors import (
    StripeAccessRefused,
    StripeBusy,
    StripeError,
    StripeOutcomeUnknown,
    StripeRefused,
    StripeServerError,
)
from billing.invoicing.sending import customer_request
from billing.settings import StripeSettings
from billing.stripe import stripe_gateway
from billing.stripe.stripe_gateway import StripeGateway
from tests.fixtures_stripe_twin import StripeTwin

Serve = Callable[[int, object], tuple[StripeGateway, list[dict[str, str]]]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A server that gives one answer to everything, and the headers that it saw. 0 closes without an answer."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int, body: object) -> tuple[StripeGateway, list[dict[str, str]]]:
        seen: list[dict[str, str]] = []

        class Answer(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                seen.append({name.lower(): value for name, value in self.headers.items()})
                if status == 0:
                    return
                if status == 1:
                    time.sleep(1)
                    return
                self.send_response(status)
                self.send_header("Request-Id", "req_1")
                self.end_headers()
                self.wfile.write(body.encode() if isinstance(body, str) else json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        settings = StripeSettings("sk_test_1", f"http://127.0.0.1:{server.server_port}")
        return StripeGateway(settings), seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def error(kind: str, code: str | None = None) -> dict[str, object]:
    return {"error": {"type": kind, "code": code, "message": "no", "param": "name"}}


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, error("invalid_request_error", "parameter_unknown"), StripeRefused),
        (400, error("idempotency_error"), StripeRefused),
        (402, error("card_error", "card_declined"), StripeRefused),
        (404, error("invalid_request_error", "resource_missing"), StripeRefused),
        (401, error("invalid_request_error"), StripeAccessRefused),
        (403, error("invalid_request_error"), StripeAccessRefused),
        (409, error("idempotency_error", "idempotency_key_in_use"), StripeBusy),
        (409, error("api_error"), StripeBusy),
        (429, error("invalid_request_error", "rate_limit"), StripeBusy),
        (500, error("api_error"), StripeServerError),
        (503, error("api_error"), StripeServerError),
        (502, "<html>bad gateway</html>", StripeServerError),
        (200, "<html>a proxy</html>", StripeOutcomeUnknown),
        (0, None, StripeOutcomeUnknown),
        (1, None, StripeOutcomeUnknown),
    ],
)
def test_every_answer_is_told_apart(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, status: int, body: object, expected: type[StripeError]
) -> None:
    monkeypatch.setattr(stripe_gateway, "TIMEOUT_S", (0.5, 0.3))
    gateway, seen = serve(status, body)
    with pytest.raises(StripeError) as caught:
        gateway.create_customer(customer_request("default", "acme", {"name": "Acme"}))
    assert type(caught.value) is expected
    assert str(caught.value).startswith("Stripe: ")
    assert len(seen) == 1, "the SDK must not repeat anything by itself"


def test_each_change_carries_our_key_and_the_pinned_version(serve: Serve) -> None:
    gateway, seen = serve(200, {"id": "cus_1", "object": "customer"})
    request = customer_request("default", "acme", {"name": "Acme"})
    assert gateway.create_customer(request) == "cus_1"
    assert seen[0]["idempotency-key"] == request.idempotency_key == "tollbook:default:acme:customer:e0"
    assert seen[0]["stripe-version"] == stripe_gateway.API_VERSION


def test_what_stripe_said_is_kept_with_its_code_and_request_id(serve: Serve) -> None:
    gateway, _ = serve(400, error("invalid_request_error", "parameter_unknown"))
    with pytest.raises(StripeRefused) as caught:
        gateway.create_customer(customer_request("default", "acme", {"name": "Acme"}))
    assert (caught.value.code, caught.value.request_id) == ("parameter_unknown", "req_1")


def test_lists_are_read_to_their_end(stripe_twin: StripeTwin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stripe_gateway, "PAGE", 2)
    client = stripe_twin.client()
    customers = [client.v1.customers.create({"name": name}).id for name in "ab"]
    made = [client.v1.invoices.create({"customer": customers[n % 2]}).id for n in range(5)]
    gateway = StripeGateway(StripeSettings(stripe_twin.key, stripe_twin.url))
    assert [invoice.invoice_id for invoice in gateway.invoices()] == made[::-1]
    assert [invoice.invoice_id for invoice in gateway.invoices(customer=customers[0])] == made[::-2]
