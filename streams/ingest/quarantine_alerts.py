"""Alerts about what goes into quarantine: one per tenant or source, reason and hour, however many messages.

The hour is that in which the broker received the message: whoever applies it, and however often it is tried, the alert
is the same. A tenant that is not registered is any text that somebody sent: then the source is named, so that nobody
can raise alerts without end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Final

import psycopg

from streams import alerts, tenants
from streams.alerts import Alert
from streams.rules.chunks import Refused

KIND: Final = "quarantine"


def raise_for(connection: psycopg.Connection, source: str, refused: Sequence[Refused]) -> None:
    """Raise what is new about these messages, in the transaction that refuses them."""
    named = {message.tenant_id for message in refused if message.tenant_id is not None}
    known = tenants.known_among(connection, sorted(named)) if named else set()
    alerts.raise_all(connection, alerts_of(source, refused, known, datetime.now(UTC)))


def alerts_of(source: str, refused: Iterable[Refused], known: AbstractSet[str], now: datetime) -> list[Alert]:
    """An alert for each (tenant or source, reason, hour) of these messages, about the first of them.

    `known` are the registered tenants among those that the messages name.
    """
    found: dict[tuple[str, str, datetime], Alert] = {}
    for message in refused:
        about, whose = ("tenant_id", message.tenant_id) if message.tenant_id in known else ("source", source)
        assert whose is not None, "None is no registered tenant"
        hour = message.record.appended_at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        if (whose, message.reason, hour) not in found:
            subject = {about: whose, "reason": message.reason, "hour": hour.isoformat()}
            detail = (
                f"messages of {whose} are in quarantine as {message.reason}; the first is {source} position"
                f" {message.record.position}: {message.detail}"
            )
            found[whose, message.reason, hour] = Alert(KIND, whose, subject, detail, now)
    return list(found.values())
