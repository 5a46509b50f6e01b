"""The outbox of alerts: raised in the transaction that finds something, delivered to Kafka afterwards, at least once.

An alert's id is derived from what it is about, so that whoever finds the same thing again, or at the same time, raises
nothing new, and whoever receives it twice can tell.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
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
    """Something a person should look at. `key`, by which the topic is keyed: a tenant, replica or partition."""

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


class AlertMessage(msgspec.Struct):
    """An alert as a message of `tollbook.alerts.v1`, delivered at least once: `alert_id` tells repetitions."""

    alert_id: UUID
    kind: str
    key: str
    subject: dict[str, Any]
    detail: str
    raised_at: Annotated[datetime, msgspec.Meta(tz=True)]


def encode(alert: Alert) -> bytes:
    """The alert as the message of `tollbook.alerts.v1`."""
    detail = shortened(alert.detail, DETAIL_CHARS)
    return msgspec.json.encode(
        AlertMessage(alert.alert_id, alert.kind, alert.key, alert.subject, detail, alert.raised_at)
    )


def json_schema() -> dict[str, object]:
    """The message's JSON Schema (2020-12): `schemas/alert.v1.json`."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "alert.v1.json",
        "title": "Tollbook alert, version 1",
        **msgspec.json.schema(AlertMessage),
    }


if __name__ == "__main__":
    print(msgspec.json.format(msgspec.json.encode(json_schema()), indent=2).decode())
