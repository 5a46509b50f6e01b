"""The outbox of alerts: raised in the transaction that finds something, delivered to Kafka afterwards, at least once.

An alert's id is derived from what it is about, so that whoever finds the same thing again, or at the same time, raises
nothing new, and whoever receives it twice can tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID, uuid5

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from serving_adapter.errors import shortened

DETAIL_CHARS: Final = 2000
"""So much of an alert's detail is delivered, so that Kafka takes each alert, whatever its topic's bounds."""
NAMESPACE: Final = UUID("ac8bd784-8c80-508b-9e2b-0599f41ef948")


@dataclass(frozen=True, slots=True)
class Alert:
    """Something a person should look at. `key` is the tenant or the replica, by which the topic is keyed."""

    kind: str
    key: str
    subject: dict[str, Any]
    """What it is about: what makes it this alert and no other."""
    detail: str
    raised_at: datetime

    @property
    def alert_id(self) -> UUID:
        """UUIDv5 of kind, key and subject."""
        about = msgspec.json.encode([self.kind, self.key, self.subject], order="sorted")
        return uuid5(NAMESPACE, about.decode())


def raise_all(connection: psycopg.Connection, alerts: Iterable[Alert]) -> None:
    """Put alerts into the outbox; one that is there already stays as it is."""
    ordered = sorted(alerts, key=lambda alert: alert.alert_id)  # so that two who raise the same ones cannot deadlock
    rows = [(a.alert_id, a.kind, a.key, Jsonb(a.subject), a.detail, a.raised_at) for a in ordered]
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(
                "insert into usage.alerts (alert_id, kind, key, subject, detail, raised_at)"
                " values (%s, %s, %s, %s, %s, %s) on conflict (alert_id) do nothing",
                rows,
            )


def undelivered(connection: psycopg.Connection, limit: int = 500) -> list[Alert]:
    """The oldest alerts that nobody acknowledged."""
    rows = connection.execute(
        "select kind, key, subject, detail, raised_at from usage.alerts where delivered_at is null"
        " order by raised_at limit %s",
        (limit,),
    )
    return [Alert(*row) for row in rows]


def mark_delivered(connection: psycopg.Connection, alerts: Iterable[Alert]) -> None:
    """Note that Kafka has them."""
    connection.execute(
        "update usage.alerts set delivered_at = clock_timestamp() where alert_id = any(%s) and delivered_at is null",
        ([alert.alert_id for alert in alerts],),
    )


def encode(alert: Alert) -> bytes:
    """The alert as the message of `tollbook.alerts.v1`."""
    return msgspec.json.encode(
        {"alert_id": alert.alert_id, "kind": alert.kind, "key": alert.key, "subject": alert.subject,
         "detail": shortened(alert.detail, DETAIL_CHARS), "raised_at": alert.raised_at}
    )  # fmt: skip
