"""Reading the quarantine: refused messages, with where they came from and why; whole ones a single one at a time.

A message may have a megabyte: no listing holds any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, Literal, NamedTuple

import psycopg

from streams.rules.chunks import headers_of

Reason = Literal[
    "torn", "invalid", "unsupported", "unknown_tenant", "conflict", "orphan", "future", "bad_time", "too_old",
    "too_large",
]  # fmt: skip
"""Why messages are refused (docs/spec/metering.md 2)."""


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One refused message, without the message itself."""

    quarantine_id: int
    source: str
    position: int
    reason: str
    detail: str
    tenant_id: str | None
    appended_at: datetime
    quarantined_at: datetime
    message_bytes: int
    estimated_value: Decimal | None
    currency: str | None
    not_estimable: str | None
    """Why there is no estimate; None beside one, and for messages from before revision 0066."""
    outcome: str | None
    """None while it waits, `released` or `discarded`."""
    resolved_by: str | None


IDS_A_TIME: Final = 1000
_QUERY: Final = (
    "select q.quarantine_id, q.source, q.position, q.reason, q.detail, q.tenant_id, q.appended_at, q.quarantined_at,"
    " octet_length(q.message), q.estimated_value, q.currency, q.not_estimable, r.outcome, r.actor"
    " from usage.quarantine as q left join usage.quarantine_resolutions as r using (quarantine_id)"
)


def listing(
    connection: psycopg.Connection,
    *,
    reason: str | None = None,
    tenant_id: str | None = None,
    resolved: bool = False,
    limit: int = 100,
) -> list[Quarantined]:
    """The latest refused messages that wait (with `resolved`: all), newest first."""
    rows = connection.execute(
        _QUERY + " where (%(reason)s::text is null or q.reason = %(reason)s)"
        " and (%(tenant)s::text is null or q.tenant_id = %(tenant)s) and (%(resolved)s or r.outcome is null)"
        " order by q.quarantine_id desc limit %(limit)s",
        {"reason": reason, "tenant": tenant_id, "resolved": resolved, "limit": limit},
    )
    return [Quarantined(*row) for row in rows]


def waiting_ids(connection: psycopg.Connection, *, reason: str | None, tenant_id: str | None) -> Iterator[int]:
    """The ids of all messages that wait now, oldest first, read as they are asked for; none that comes later."""
    row = connection.execute("select max(quarantine_id) from usage.quarantine").fetchone()
    after, last = 0, (row[0] if row else None) or 0
    while True:
        ids = connection.execute(
            "select quarantine_id from usage.quarantine as q where quarantine_id > %(after)s"
            " and quarantine_id <= %(last)s and (%(reason)s::text is null or reason = %(reason)s)"
            " and (%(tenant)s::text is null or tenant_id = %(tenant)s) and not exists (select from"
            " usage.quarantine_resolutions as r where r.quarantine_id = q.quarantine_id)"
            " order by quarantine_id limit %(limit)s",
            {"after": after, "last": last, "reason": reason, "tenant": tenant_id, "limit": IDS_A_TIME},
        ).fetchall()
        for (quarantine_id,) in ids:
            yield quarantine_id
        if len(ids) < IDS_A_TIME:
            return
        after = ids[-1][0]


class WholeMessage(NamedTuple):
    """What Kafka held. A message without a value is told from an empty one."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    """In order; a name may stand there twice."""


def get(connection: psycopg.Connection, quarantine_id: int) -> tuple[Quarantined, WholeMessage] | None:
    """One refused message, and what it was."""
    row = connection.execute(_QUERY + " where q.quarantine_id = %s", (quarantine_id,)).fetchone()
    whole = connection.execute(
        "select message_key, case when not is_null then message end, header_names, header_values"
        " from usage.quarantine where quarantine_id = %s",
        (quarantine_id,),
        binary=True,
    ).fetchone()
    if row is None or whole is None:
        return None
    key, value, names, values = whole
    return Quarantined(*row), WholeMessage(key, value, headers_of(names, values))


def counts(connection: psycopg.Connection) -> dict[str, int]:
    """How many messages wait in quarantine, by reason."""
    rows = connection.execute(
        "select reason, count(*) from usage.quarantine as q where not exists (select from"
        " usage.quarantine_resolutions as r where r.quarantine_id = q.quarantine_id) group by reason order by reason"
    )
    return dict(rows.fetchall())
