"""The durable journal of a shard: batches of entries, states of books, who owns the shard (docs/spec/metering.md 7.4).

An owner takes a shard by raising its epoch. Each batch is written in a transaction that first moves the shard's
sequence under that epoch, so that an owner of an older one writes nothing: the row's lock stands between the two, and
the new owner reads the journal after it has raised the epoch.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, NamedTuple

import msgspec
import psycopg
from psycopg.types.json import Jsonb

from serving_adapter.quota.groups import GROUPS
from streams import alerts
from streams.alerts import Alert
from streams.quotas.calendar import microseconds, moment
from streams.quotas.errors import Fenced, ShardsTaken

DECISIONS_KEPT_DAYS: Final = 35
"""How long `quota why` can explain a refusal: a billing period and some days."""


@dataclass(frozen=True, slots=True)
class Ownership:
    """A shard as this process took it. `lost` = entries of it that the journal should have and does not."""

    shard: int
    of: int
    epoch: int
    lost: bool
    first: bool
    """Nobody ever had it."""
    learning_until: int = 0
    """Until when it is not known what was promised, as an owner before has found; microseconds since 1970, or 0."""
    feed_read: Mapping[str, int] | None = None
    """Up to where the owner before had read the feed at least; None if nobody knows."""
    read_by: int | None = None
    """Which shard has read it, where that is another one: of a group that is only looked at."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A refusal, or a decision without the service, for `quota why`."""

    decided_at: datetime
    tenant_id: str
    request_id: str
    attempt: int
    kind: str
    detail: bytes


@dataclass(slots=True)
class Batch:
    """What is written together."""

    entries: bytes
    decisions: list[Decision] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)


class MadeState(NamedTuple):
    """A group's books as of a batch."""

    group: int
    no: int
    """Of the batch."""
    state: bytes


PACKING: Final = 1
"""The fastest: what is stored is a sixth all the same."""
_PACKED: Final = b"\x78"
"""How zlib's data begins; no list of books does."""
_MINE: Final = """
    with mine as (
        update usage.quota_shards set next_seq = next_seq + 1
        where shard = %(shard)s and epoch = %(epoch)s returning next_seq - 1 as seq
    )"""
_INSERT: Final = """
    insert into usage.quota_journal (shard, epoch, seq, entries)
    select %(shard)s, %(epoch)s, seq, %(entries)s from mine returning no
"""
_APPEND: Final = _MINE + _INSERT
_APPEND_AND_TELL: Final = f"""{_MINE},
    told as (
        insert into usage.quota_decisions (decided_at, tenant_id, request_id, attempt, kind, detail)
        select d.decided_at, d.tenant_id, d.request_id, d.attempt, d.kind, convert_to(d.detail, 'UTF8')
        from mine, jsonb_to_recordset(%(decisions)s::jsonb) as d
            (decided_at timestamptz, tenant_id text, request_id text, attempt integer, kind text, detail text)
    ){_INSERT}"""
_NUMBERED: Final = {"shard": "$1::integer", "epoch": "$2::bigint", "entries": "$3::bytea", "decisions": "$4::jsonb"}
APPEND_PREPARED: Final = (_APPEND % _NUMBERED).encode()
APPEND_AND_TELL_PREPARED: Final = (_APPEND_AND_TELL % _NUMBERED).encode()
"""As the server prepares them: shard, epoch, entries; with decisions (`decisions_text`)."""
_STILL_MINE: Final = """
    with mine as materialized (
        select shard from usage.quota_shards where shard = %(shard)s and epoch = %(epoch)s for key share
    )"""
"""Whoever takes the shard waits for this, and the other way round; the batches of its journal do neither."""
_KEEP_STATES: Final = f"""{_STILL_MINE},
    read as (
        insert into usage.quota_progress (shard, feed_read) select shard, %(read)s from mine
        on conflict (shard) do update set feed_read = excluded.feed_read
    )
    insert into usage.quota_states as s (tenant_group, no, state)
    select made.* from mine, unnest(%(groups)s::integer[], %(numbers)s::bigint[], %(states)b::bytea[]) as made
    on conflict (tenant_group) do update set no = excluded.no, state = excluded.state where s.no <= excluded.no
"""
_KEEP_STORED: Final = f"""{_STILL_MINE}
    insert into usage.quota_progress (shard, stored_through) select shard, %(through)s from mine
    on conflict (shard) do update set stored_through = excluded.stored_through
"""
_FORGET: Final = """
    with division as (
        select max(divided_after) as after, case when count(p) = %(of)s then min(p.stored_through) else 0 end as stored
        from usage.quota_shards as s left join usage.quota_progress as p using (shard) where shard < %(of)s
    )
    delete from usage.quota_journal as j using usage.quota_shards as s, division as d
    where s.shard = j.shard and j.seq < s.next_seq - 1
        and (j.shard = %(shard)s and j.no <= %(through)s or j.shard >= %(of)s and j.no <= d.stored)
        and (d.stored >= d.after or j.no <= d.stored)
"""
"""Also of shards that are gone since tenants were divided into fewer."""
_DECISION_COLUMNS: Final = "decided_at, tenant_id, request_id, attempt, kind, detail"


def take(connection: psycopg.Connection, shard: int, of: int, *, owner: str, address: str) -> Ownership:
    """Become the owner of a shard; whoever was it before can write no more. Raises ShardsTaken.

    `divide` changes the number of shards.
    """
    with connection.transaction():
        rows = connection.execute(
            "select shard, of, learning_until from usage.quota_shards order by shard for update"
        ).fetchall()
        if any(row[1] != of for row in rows):
            raise ShardsTaken(f"tenants are divided into {rows[0][1]} shards: stop them, then `tollbook quota serve`")
        row = connection.execute(
            "insert into usage.quota_shards as s (shard, of, epoch, next_seq, owner, address, divided_after)"
            " values (%s, %s, 1, 0, %s, %s, coalesce((select max(divided_after) from usage.quota_shards), 0))"
            " on conflict (shard) do update set epoch = s.epoch + 1,"
            " owner = excluded.owner, address = excluded.address, taken_at = now()"
            " returning epoch, next_seq, (select feed_read from usage.quota_progress as p where p.shard = s.shard)",
            (shard, of, owner, address),
        ).fetchone()
        assert row is not None, "an upsert returns its row"
        lost = bool(row[1]) and not _is_whole(connection, shard, row[1])
    learning_until = max((microseconds(row[2]) for row in rows if row[2] is not None), default=0)
    return Ownership(shard, of, row[0], lost, row[0] == 1, learning_until, row[2])


def looked_at(connection: psycopg.Connection, group: int) -> Ownership:
    """A group of tenants by itself, without taking the shard that it is of. In the snapshot of what is read of it."""
    row = connection.execute(
        "select shard, p.feed_read from usage.quota_shards as s left join usage.quota_progress as p using (shard)"
        " where shard = %s %% s.of",
        (group,),
    ).fetchone()
    shard, read = row or (None, None)
    return Ownership(group, GROUPS, 0, lost=False, first=False, feed_read=read, read_by=shard)


def divide(connection: psycopg.Connection, of: int) -> bool:
    """Divide tenants into another number of shards, if they are not; every owner is fenced off, and the journal stays.

    Shards' batches are read by whoever has a tenant's group then (`batches`), in the order in which they were written.
    """
    with connection.transaction():
        connection.execute("select from usage.quota_shards order by shard for update")
        changed = connection.execute(
            "update usage.quota_shards set epoch = epoch + 1, of = %s,"
            " divided_after = coalesce((select max(no) from usage.quota_journal), 0) where of <> %s",
            (of, of),
        )
        if changed.rowcount:
            connection.execute("delete from usage.quota_progress")
    return changed.rowcount > 0


def _is_whole(connection: psycopg.Connection, shard: int, next_seq: int) -> bool:
    """Whether the shard's batches reach up to its sequence without a gap. Old ones are gone, from the beginning on."""
    row = connection.execute(
        "select count(*), min(seq), max(seq) from usage.quota_journal where shard = %s", (shard,)
    ).fetchone()
    assert row is not None, "an aggregate always has a row"
    count, first, last = row
    return bool(count) and last == next_seq - 1 and count == last - first + 1


def append(connection: psycopg.Connection, mine: Ownership, batch: Batch) -> int:
    """Write a batch, all or nothing; returns its number. Raises Fenced."""
    given = {"shard": mine.shard, "epoch": mine.epoch, "entries": batch.entries}
    if not (batch.decisions or batch.alerts):
        return _appended(connection, mine, given)
    with connection.transaction():
        no = _appended(connection, mine, given | {"decisions": decisions_text(batch.decisions).decode()})
        alerts.raise_all(connection, batch.alerts)
    return no


def decisions_text(decisions: Sequence[Decision]) -> bytes:
    """Decisions as the statements take them: a JSON array."""
    return msgspec.json.encode(
        [
            {"decided_at": each.decided_at, "tenant_id": each.tenant_id, "request_id": each.request_id,
             "attempt": each.attempt, "kind": each.kind, "detail": each.detail.decode()}
            for each in decisions
        ]
    )  # fmt: skip


def _appended(connection: psycopg.Connection, mine: Ownership, given: dict[str, object]) -> int:
    row = connection.execute(_APPEND_AND_TELL if "decisions" in given else _APPEND, given, prepare=True).fetchone()
    if row is None:
        raise Fenced(f"shard {mine.shard} has another owner: epoch {mine.epoch} is over")
    return int(row[0])


def keep_states(
    connection: psycopg.Connection, mine: Ownership, made: Sequence[MadeState], read: Mapping[str, int]
) -> None:  # fmt: skip
    """Store groups' books as of batches, but where newer ones are; nothing, if the shard has another owner by now.

    `read`: up to where the feed was read since they were made: owners to come take what was unreserved up to there from
    the journal. Compressed: a batch that is written meanwhile waits for the disk until this is on it.
    """
    given = {
        "shard": mine.shard, "epoch": mine.epoch, "read": Jsonb(dict(read)), "groups": [each.group for each in made],
        "numbers": [each.no for each in made], "states": [zlib.compress(each.state, PACKING) for each in made],
    }  # fmt: skip
    connection.execute(_KEEP_STATES, given)


def states(connection: psycopg.Connection, mine: Ownership) -> Iterator[tuple[int, int, bytes]]:
    """The stored books of the shard's groups: (group, as of which batch, state)."""
    for group, no, state in connection.execute(
        "select tenant_group, no, state from usage.quota_states where tenant_group %% %s = %s", (mine.of, mine.shard)
    ):
        yield group, no, zlib.decompress(state) if state[:1] == _PACKED else bytes(state)


def batches(connection: psycopg.Connection) -> Iterator[tuple[int, bytes]]:
    """Every batch that is kept, of all shards, in the order of writing: (number, entries)."""
    with connection.cursor(name="quota_journal") as cursor:
        cursor.itersize = 200
        for no, entries in cursor.execute("select no, entries from usage.quota_journal order by no"):
            yield no, bytes(entries)


def keep_learning(connection: psycopg.Connection, mine: Ownership, until: int) -> None:
    """Have owners to come know until when what was promised is not known."""
    connection.execute(
        "update usage.quota_shards set learning_until = %s where shard = %s and epoch = %s",
        (moment(until), mine.shard, mine.epoch),
    )


def forget(connection: psycopg.Connection, mine: Ownership, through: int) -> None:
    """Let batches go that no rebuild will need; the last of each shard stays, as the end of its sequence.

    Batches from before tenants were divided anew have entries of other shards' tenants as well: they stay until every
    shard has stored states that reach beyond them.
    """
    given = {"shard": mine.shard, "of": mine.of, "epoch": mine.epoch, "through": through}
    connection.execute(_KEEP_STORED, given)
    connection.execute(_FORGET, given)


def decisions_on(connection: psycopg.Connection, tenant_id: str, request_id: str) -> list[Decision]:
    """What was decided about a request against it or without the service, oldest first."""
    rows = connection.execute(
        f"select {_DECISION_COLUMNS} from usage.quota_decisions where tenant_id = %s and request_id = %s"
        " order by decided_at limit 1000",
        (tenant_id, request_id),
    )
    return [Decision(row[0], row[1], row[2], row[3], row[4], bytes(row[5])) for row in rows]


def drop_old_decisions(connection: psycopg.Connection) -> int:
    """Drop what nobody can ask for any more; returns how many days."""
    row = connection.execute(
        "select usage.drop_quota_decisions_before(now() - make_interval(days => %s))", (DECISIONS_KEPT_DAYS,)
    ).fetchone()
    return int(row[0]) if row else 0
