"""Findings in the database: written once, a further state where something of them changes, healed or settled once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import psycopg
from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from reconciliation.errors import FindingRefused
from reconciliation.findings.finding import Finding, Kind, is_news
from streams import alerts, audit
from streams.alerts import Alert

LOCK: Final = 0x6669_6E64
"""The letters "find": one look at a time writes."""

_STORED: Final = """
    select f.finding_id, f.finding_no, f.kind, f.subject, f.occurrence, f.found_at, s.state, s.state_no,
        s.at as changed_at, s.begins, s.ends, s.cause, s.size
    from usage.findings as f join lateral (
        select * from usage.finding_states as s where s.finding_id = f.finding_id order by state_no desc limit 1
    ) as s on true
"""


@dataclass(frozen=True, slots=True)
class StoredFinding:
    """A finding as it stands: `size` as `Finding.size` says it."""

    finding_id: UUID
    finding_no: int
    kind: str
    subject: Mapping[str, str]
    occurrence: int
    found_at: datetime
    state: str
    state_no: int
    changed_at: datetime
    begins: datetime | None
    ends: datetime | None
    cause: str
    size: Mapping[str, Any]

    @property
    def key(self) -> str:
        """What it is about, as `Finding.key`."""
        return Finding(Kind(self.kind), self.subject, "").key

    @property
    def is_open(self) -> bool:
        """Whether it is neither healed nor settled."""
        return self.state == "open"


@dataclass(frozen=True, slots=True)
class Written:
    """What a look changed: findings that are new, that changed, and that are healed."""

    new: tuple[Finding, ...]
    changed: tuple[Finding, ...]
    healed: tuple[StoredFinding, ...]


def listed(
    connection: psycopg.Connection, *, healed: bool = False, kind: str | None = None, limit: int = 1000
) -> list[StoredFinding]:  # fmt: skip
    """The open findings, and if asked those that are healed or settled; the newest first."""
    with connection.cursor(row_factory=class_row(StoredFinding)) as cursor:
        return cursor.execute(
            _STORED + " where (%(healed)s or s.state = 'open') and (%(kind)s::text is null or kind = %(kind)s)"
            " order by finding_no desc limit %(limit)s",
            {"healed": healed, "kind": kind, "limit": limit},
        ).fetchall()


def get(connection: psycopg.Connection, finding_no: int) -> StoredFinding | None:
    """One finding."""
    with connection.cursor(row_factory=class_row(StoredFinding)) as cursor:
        return cursor.execute(_STORED + " where finding_no = %s", (finding_no,)).fetchone()


def require(connection: psycopg.Connection, finding_no: int) -> StoredFinding:
    """One finding. Raises FindingRefused where there is none."""
    found = get(connection, finding_no)
    if found is None:
        raise FindingRefused(f"there is no finding {finding_no}: `tollbook reconcile list --all` lists them")
    return found


def history(connection: psycopg.Connection, finding_id: UUID) -> list[tuple[datetime, str, str]]:
    """When it was in which state, and what was said of it."""
    rows = connection.execute(
        "select at, state, cause from usage.finding_states where finding_id = %s order by state_no", (finding_id,)
    )
    return [(at, state, cause) for at, state, cause in rows]


def write(
    connection: psycopg.Connection,
    found: Sequence[Finding],
    gone: Iterable[StoredFinding],
    now: datetime,
) -> Written:
    """Write down what a look has found, in the caller's transaction, and raise an alert for each thing that is new.

    `gone` are the open findings that the look would have found again and did not: they are healed. What a person has
    settled is open again, with an alert, where it is not what was settled any more.
    """
    known = {stored.key: stored for stored in not_healed(connection)}
    new, changed = [], []
    for finding in found:
        stored = known.get(finding.key)
        if stored is None:
            _add(connection, finding, now)
            new.append(finding)
        elif _differs(stored, finding):
            _state(connection, stored.finding_id, stored.state_no + 1, "open", finding, now)
            changed.append(finding)
            if not stored.is_open:
                _alert(connection, finding, {"occurrence": stored.occurrence, "state": stored.state_no + 1}, now)
    healed = list(gone)
    for stored in healed:
        connection.execute(
            "insert into usage.finding_states (finding_id, state_no, state, at, begins, ends, cause, size)"
            " values (%s, %s, 'healed', %s, %s, %s, %s, %s)",
            (stored.finding_id, stored.state_no + 1, now, stored.begins, stored.ends,
             f"no longer there; it was: {stored.cause}", Jsonb(dict(stored.size))),
        )  # fmt: skip
    return Written(tuple(new), tuple(changed), tuple(healed))


def settle(connection: psycopg.Connection, stored: StoredFinding, now: datetime, *, reason: str, actor: str) -> None:
    """Let an open finding stay as it is: what it is about cannot be undone, or was mended where no look sees it.

    Looks are silent about it as long as its time, size and cause may be what they were. Raises FindingRefused.
    """
    if not stored.is_open:
        raise FindingRefused(f"finding {stored.finding_no} is {stored.state}: nothing is left to settle")
    if not reason.strip():
        raise FindingRefused("say why it may stay: --reason")
    connection.execute(
        "insert into usage.finding_states (finding_id, state_no, state, at, begins, ends, cause, size, actor)"
        " values (%s, %s, 'settled', %s, %s, %s, %s, %s, %s)",
        (stored.finding_id, stored.state_no + 1, now, stored.begins, stored.ends, stored.cause,
         Jsonb(dict(stored.size)), actor),
    )  # fmt: skip
    detail = {"kind": stored.kind, "subject": dict(stored.subject), "reason": reason}
    audit.record(connection, actor, "finding.settle", str(stored.finding_no), detail)


def not_healed(connection: psycopg.Connection) -> list[StoredFinding]:
    """Those that are open, and those that a person has settled."""
    with connection.cursor(row_factory=class_row(StoredFinding)) as cursor:
        return cursor.execute(_STORED + " where s.state <> 'healed'").fetchall()


def _add(connection: psycopg.Connection, finding: Finding, now: datetime) -> None:
    subject = Jsonb(dict(finding.subject))
    row = connection.execute(
        "select coalesce(max(occurrence), 0) from usage.findings where kind = %s and subject = %s",
        (finding.kind.value, subject),
    ).fetchone()
    occurrence = (row[0] if row else 0) + 1
    finding_id = finding.finding_id(occurrence)
    connection.execute(
        "insert into usage.findings (finding_id, kind, subject, occurrence, found_at) values (%s, %s, %s, %s, %s)",
        (finding_id, finding.kind.value, subject, occurrence, now),
    )
    _state(connection, finding_id, 1, "open", finding, now)
    _alert(connection, finding, {"occurrence": occurrence}, now)


def _alert(connection: psycopg.Connection, finding: Finding, which: Mapping[str, int], now: datetime) -> None:
    key = finding.tenants[0] if len(finding.tenants) == 1 and finding.tenants[0] else finding.kind.value
    subject = {**finding.subject, **which}
    alerts.raise_all(connection, [Alert(f"finding.{finding.kind.value}", key, subject, finding.told(), now)])


def _state(
    connection: psycopg.Connection, finding_id: UUID, state_no: int, state: str, finding: Finding, now: datetime
) -> None:
    connection.execute(
        "insert into usage.finding_states (finding_id, state_no, state, at, begins, ends, cause, size)"
        " values (%s, %s, %s, %s, %s, %s, %s, %s)",
        (finding_id, state_no, state, now, finding.begins, finding.ends, finding.cause, Jsonb(finding.size())),
    )


def _differs(stored: StoredFinding, finding: Finding) -> bool:
    """Whether it is to be told again: its cause or size is another, or its time has nothing of the one that is known.

    A time moves while a boot works: heartbeats that said when are thinned out, engines are scraped. Of a replica that
    never reported itself all that it serves is new, and none of it is what was settled less.
    """
    settled = not stored.is_open
    if stored.cause != finding.cause or _apart(stored, finding):
        return True
    if settled and finding.kind is Kind.UNREGISTERED_REPLICA:
        return False
    return is_news(stored.size, finding.size(), settled=settled)


def _apart(stored: StoredFinding, finding: Finding) -> bool:
    if stored.begins is None or stored.ends is None or finding.begins is None or finding.ends is None:
        return False
    return stored.ends < finding.begins or finding.ends < stored.begins
