"""Alerts to a webhook, signed: each until it is taken, under the id that it has everywhere. One that the receiver
refuses keeps no other waiting.

Signed as Standard Webhooks (standardwebhooks.com, version 1.0.0) says: `webhook-id`, `webhook-timestamp`, and
`webhook-signature: v1,` + base64 of the HMAC-SHA256 of `id.timestamp.body`. The body is the message of
`tollbook.alerts.v1`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import psycopg

from streams import alerts
from streams.alerts import Alert
from streams.errors import StreamsError

SECRET_PREFIX: Final = "whsec_"
LEAST_SECRET_BYTES: Final = 24
WITHIN_S: Final = 5.0
AT_A_TIME: Final = 50
"""In one round, so that what else the upkeep does is not put off."""
DELIVERY_LOCK: Final = 0x746F6C6C77656268
ABOUT_ITSELF: Final = (408, 425, 429)
"""4xx answers that say nothing about an alert: it comes too early, or there are too many."""
NOT_OLDER_THAN_DAYS: Final = 7
"""A webhook that is new, or was away for long, is not told everything from the beginning."""


class WebhookNotTaken(StreamsError):
    """The receiver takes nothing now: no answer in time, or one about itself; tried again in the next round."""


class _AlertRefused(StreamsError):
    """The receiver has refused this alert (4xx), whatever it says of others."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the alerts' webhook answers {status}")
        self.status = status


class Delivered(NamedTuple):
    """What became of a round."""

    taken: int
    refused: int
    """Alerts that the receiver has refused; each is told again later, and keeps no other waiting."""
    status: int = 0
    """With which it refused the last one."""


class WebhookMisconfigured(StreamsError):
    """The address or the secret is none."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where alerts go, and what they are signed with."""

    scheme: str
    host: str
    port: int
    path: str
    secret: bytes = field(repr=False)

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> Webhook | None:
        """`TOLLBOOK_ALERT_WEBHOOK` (https, or http on this machine) and `TOLLBOOK_ALERT_WEBHOOK_SECRET` (`whsec_` and
        at least 24 bytes in base64); None without an address. Raises WebhookMisconfigured."""
        address = environ.get("TOLLBOOK_ALERT_WEBHOOK", "")
        if not address:
            return None
        url = urlsplit(address)
        local = url.hostname in ("127.0.0.1", "::1", "localhost")
        if not url.hostname or url.username or not (url.scheme == "https" or (url.scheme == "http" and local)):
            raise WebhookMisconfigured("TOLLBOOK_ALERT_WEBHOOK must be https://HOST/PATH without a user in it")
        given = environ.get("TOLLBOOK_ALERT_WEBHOOK_SECRET", "")
        try:
            secret = base64.b64decode(given.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            secret = b""
        if not given.startswith(SECRET_PREFIX) or len(secret) < LEAST_SECRET_BYTES:
            raise WebhookMisconfigured("TOLLBOOK_ALERT_WEBHOOK_SECRET must be whsec_ and 24 bytes or more in base64")
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        return Webhook(url.scheme, url.hostname, url.port or (443 if url.scheme == "https" else 80), path, secret)

    def signature(self, alert_id: str, at: int, body: bytes) -> str:
        """The signature of a message that is sent at a time (seconds since 1970)."""
        signed = f"{alert_id}.{at}.".encode() + body
        return "v1," + base64.b64encode(hmac.digest(self.secret, signed, hashlib.sha256)).decode()


_WAITING: Final = """
    select a.kind, a.key, a.subject, a.detail, a.raised_at
    from usage.alerts as a
    left join lateral (
        select count(*) as times, max(refused_at) as last_at
        from usage.alert_webhook_refusals as r where r.alert_id = a.alert_id
    ) as refused on true
    where a.raised_at > now() - make_interval(days => %s)
        and not exists (select from usage.alert_webhooks as w where w.alert_id = a.alert_id)
        and (refused.last_at is null
            or now() > refused.last_at
                + least(interval '1 minute' * 2 ^ least(refused.times - 1, 10), interval '1 hour'))
    order by refused.times, a.raised_at limit %s
"""
"""Those that were refused come last: after a minute, then after twice as long each time, an hour at most."""


def deliver(connection: psycopg.Connection, webhook: Webhook) -> Delivered:
    """Tell the webhook what it has not taken yet, oldest first. Raises WebhookNotTaken.

    One worker at a time; a kill between two steps tells the last one again.
    """
    (free,) = connection.execute("select pg_try_advisory_lock(%s)", (DELIVERY_LOCK,)).fetchone() or (False,)
    if not free:
        return Delivered(0, 0)
    try:
        return _deliver(connection, webhook)
    finally:
        connection.execute("select pg_advisory_unlock(%s)", (DELIVERY_LOCK,))


def _deliver(connection: psycopg.Connection, webhook: Webhook) -> Delivered:
    taken = refused = status = 0
    for row in connection.execute(_WAITING, (NOT_OLDER_THAN_DAYS, AT_A_TIME)).fetchall():
        alert = Alert(*row)
        try:
            _post(webhook, alert)
        except _AlertRefused as error:
            refused, status = refused + 1, error.status
            connection.execute(
                "insert into usage.alert_webhook_refusals (alert_id, status) values (%s, %s)", (alert.alert_id, status)
            )
            continue
        taken += 1
        connection.execute(
            "insert into usage.alert_webhooks (alert_id) values (%s) on conflict do nothing", (alert.alert_id,)
        )
    return Delivered(taken, refused, status)


def _post(webhook: Webhook, alert: Alert) -> None:
    body, at, alert_id = alerts.encode(alert), int(time.time()), str(alert.alert_id)
    headers = {
        "content-type": "application/json", "webhook-id": alert_id, "webhook-timestamp": str(at),
        "webhook-signature": webhook.signature(alert_id, at, body),
    }  # fmt: skip
    kind = http.client.HTTPSConnection if webhook.scheme == "https" else http.client.HTTPConnection
    connection = kind(webhook.host, webhook.port, timeout=WITHIN_S)
    try:
        connection.request("POST", webhook.path, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise WebhookNotTaken(f"the alerts' webhook does not answer: {error}") from None
    finally:
        connection.close()
    if 400 <= status < 500 and status not in ABOUT_ITSELF:
        raise _AlertRefused(status)
    if not 200 <= status < 300:
        raise WebhookNotTaken(f"the alerts' webhook answers {status}")
