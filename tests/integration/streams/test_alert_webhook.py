"""Alerts to a webhook: signed, each until it is taken, then no more."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import psycopg
import pytest

from streams import alerts
from streams.alert_webhook import Webhook, WebhookMisconfigured, WebhookNotTaken, deliver
from streams.alerts import Alert

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()


class Receiver(HTTPServer):
    """Notes what is posted; answers as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.refuses = b"\0"
        """What it will not have in a body: 422."""
        self.received: list[tuple[dict[str, str], bytes]] = []


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.received.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.send_response(422 if self.server.refuses in body else self.server.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def used(percent: int) -> Alert:
    return Alert("quota_threshold", "t1", {"percent": percent}, "used", datetime.now(UTC))


def test_each_alert_is_told_signed_until_it_is_taken(connection: psycopg.Connection, receiver: Receiver) -> None:
    address = f"http://127.0.0.1:{receiver.server_port}/hook?x=1"
    webhook = Webhook.from_environment({"TOLLBOOK_ALERT_WEBHOOK": address, "TOLLBOOK_ALERT_WEBHOOK_SECRET": SECRET})
    assert webhook is not None
    raised = [used(percent) for percent in (80, 90)]
    alerts.raise_all(connection, raised)
    receiver.status = 500
    with pytest.raises(WebhookNotTaken):
        deliver(connection, webhook)
    receiver.status = 204
    assert deliver(connection, webhook) == (2, 0, 0)
    assert deliver(connection, webhook) == (0, 0, 0)
    assert [headers["webhook-id"] for headers, _ in receiver.received[1:]] == [str(each.alert_id) for each in raised]
    for headers, body in receiver.received:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.digest(KEY, signed, hashlib.sha256)).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert json.loads(body)["kind"] == "quota_threshold"


def test_an_alert_that_is_refused_keeps_no_other_waiting(
    connection: psycopg.Connection, owner: psycopg.Connection, receiver: Receiver
) -> None:
    webhook = Webhook("http", "127.0.0.1", receiver.server_port, "/", KEY)
    receiver.refuses = b'"percent":80'
    alerts.raise_all(connection, [used(percent) for percent in (80, 90, 100)])
    assert deliver(connection, webhook) == (2, 1, 422)
    assert deliver(connection, webhook) == (0, 0, 0)  # it rests
    owner.execute("alter table usage.alert_webhook_refusals disable trigger append_only")
    owner.execute("update usage.alert_webhook_refusals set refused_at = now() - interval '2 minutes'")
    receiver.refuses = b"\0"
    assert deliver(connection, webhook) == (1, 0, 0)


@pytest.mark.parametrize(
    "environ",
    [{"TOLLBOOK_ALERT_WEBHOOK": "http://example.org/"}, {"TOLLBOOK_ALERT_WEBHOOK": "https://a:b@example.org/"},
     {"TOLLBOOK_ALERT_WEBHOOK_SECRET": "whsec_c2hvcnQ="}, {"TOLLBOOK_ALERT_WEBHOOK_SECRET": "x"}],
)  # fmt: skip
def test_what_is_not_safe_is_refused(environ: dict[str, str]) -> None:
    good = {"TOLLBOOK_ALERT_WEBHOOK": "https://example.org/", "TOLLBOOK_ALERT_WEBHOOK_SECRET": SECRET}
    assert Webhook.from_environment(good) is not None
    with pytest.raises(WebhookMisconfigured):
        Webhook.from_environment(good | environ)
