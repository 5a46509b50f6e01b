"""Plans in the database: what was planned, its records part by part, what is left out, and what became of it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.rows import class_row, dict_row
from psycopg.types.json import Jsonb

from reconciliation.errors import ReplayRefused
from streams.rules.chunks import Record, Source

CLUSTER: Final = "replay"

_PLANS: Final = """
    select p.plan_id, p.plan_no, p.made_at, p.actor, p.origin, p.counts, p.effects, w.world, w.money,
        b.at as begun_at, e.at as ended_at, e.detail as report
    from usage.replay_plans as p left join usage.replay_worlds as w on w.plan_id = p.plan_id
    left join usage.replay_runs as b on b.plan_id = p.plan_id and b.what = 'begun'
    left join usage.replay_runs as e on e.plan_id = p.plan_id and e.what = 'ended'
"""


@dataclass(frozen=True, slots=True)
class StoredPlan:
    """A plan: where its material came from, what would become of it, what it would change; and its runs."""

    plan_id: str
    plan_no: int
    made_at: datetime
    actor: str
    origin: Mapping[str, Any]
    counts: Mapping[str, Any]
    effects: Mapping[str, Any]
    world: Mapping[str, Any] | None
    money: Sequence[Mapping[str, Any]] | None
    begun_at: datetime | None
    ended_at: datetime | None
    report: Mapping[str, Any] | None

    @property
    def parts(self) -> dict[int, int]:
        """How many records each part has."""
        return {int(part): count for part, count in self.counts["parts"].items()}

    @property
    def records(self) -> int:
        """How many it would apply."""
        return sum(self.parts.values())

    @property
    def state(self) -> str:
        """planned, begun or applied; `unfinished` where planning was killed before its effect was known."""
        if self.ended_at is not None:
            return "applied"
        if self.begun_at is not None:
            return "begun"
        return "planned" if self.world is not None else "unfinished"

    @property
    def reaches_behind(self) -> bool:
        """Whether some of them lie behind the horizon, and were compared with the archive."""
        return bool(self.counts.get("behind"))

    @property
    def sources(self) -> list[str]:
        """The names of the sources as which its parts are applied."""
        return [self.source(part).name for part in self.parts]

    def source(self, part: int) -> Source:
        """The source as which a part is applied."""
        return Source(f"replay:{self.plan_id}/{part}", CLUSTER, self.plan_id)


def get(connection: psycopg.Connection, plan_id: str) -> StoredPlan:
    """A plan. Raises ReplayRefused where there is none."""
    with connection.cursor(row_factory=class_row(StoredPlan)) as cursor:
        plan = cursor.execute(_PLANS + " where p.plan_id = %s", (plan_id,)).fetchone()
    if plan is None:
        raise ReplayRefused(f"there is no plan {plan_id}: `tollbook replay list` lists them")
    return plan


def listed(connection: psycopg.Connection, limit: int = 100) -> list[StoredPlan]:
    """The latest plans, newest first."""
    with connection.cursor(row_factory=class_row(StoredPlan)) as cursor:
        return cursor.execute(_PLANS + " order by p.plan_no desc limit %s", (limit,)).fetchall()


def records(connection: psycopg.Connection, plan: StoredPlan, part: int, begin: int, most: int) -> list[Record]:
    """The records of a part from a position on. They count as received when the plan was made."""
    rows = connection.execute(
        "select position, message_key, message from usage.replay_records"
        " where plan_id = %s and part = %s and position >= %s and position < %s order by position",
        (plan.plan_id, part, begin, begin + most),
        binary=True,
    )
    return [Record(position, key, message, plan.made_at) for position, key, message in rows]


def tenant_of(record: Record) -> str:
    """Whose a plan's record is: each of them could be read, and so has its tenant as its key."""
    return (record.key or b"").decode()


def records_of_tenants(connection: psycopg.Connection, plan_id: str) -> dict[str, int]:
    """How many records each tenant has in a plan."""
    rows = connection.execute(
        "select convert_from(message_key, 'UTF8'), count(*) from usage.replay_records where plan_id = %s"
        " group by 1 order by 1",
        (plan_id,),
    )
    return dict(rows.fetchall())


def left_out(connection: psycopg.Connection, plan_id: str, limit: int = 1000) -> list[dict[str, Any]]:
    """What a plan would not apply, and why."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(
            "select fate, reason, detail, tenant_id, origin, convert_from(message, 'SQL_ASCII') as message"
            " from usage.replay_left_out where plan_id = %s order by no limit %s",
            (plan_id, limit),
        ).fetchall()


def keys(connection: psycopg.Connection, plan_id: str) -> frozenset[bytes]:
    """The keys of the identities that a plan's records are of."""
    rows = connection.execute("select uuid_send(key) from usage.replay_records where plan_id = %s", (plan_id,))
    return frozenset(bytes(row[0]) for row in rows)


def counted_already(connection: psycopg.Connection, plan_id: str) -> int:
    """How many of a plan's records have an identity that is counted."""
    row = connection.execute(
        "select count(*) from usage.replay_records as r where plan_id = %s"
        " and (exists (select from usage.event_identities as i where i.key = r.key)"
        "      or exists (select from usage.replayed_identities as i where i.key = r.key))",
        (plan_id,),
    ).fetchone()
    return int(row[0]) if row else 0


# What took a weaker telling's place adds what it has more
_ADDED: Final = """
    with own as (
        select e.*, 1 as sign from usage.events as e
        where source = any(%(sources)s) and completed_at >= %(first)s and completed_at <= %(last)s
        union all
        select e.*, -1 from usage.superseded_events as s join usage.events as e using (source, position)
        where s.by_source = any(%(sources)s)
          and e.completed_at between %(first)s - interval '1 day' and %(last)s + interval '1 day'
    )
    select tenant_id, to_char(completed_at at time zone 'UTC', 'YYYY-MM') as month,
        coalesce(sum(sign) filter (where kind = 'usage'), 0)::int8 as requests,
        sum(sign * input_tokens)::int8 as input_tokens, sum(sign * cache_hit_tokens)::int8 as cache_hit_tokens,
        sum(sign * output_tokens)::int8 as output_tokens,
        to_char(min(completed_at) filter (where sign > 0) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as first,
        to_char(max(completed_at) filter (where sign > 0) at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as last
    from own where purpose = 'tenant' group by 1, 2 order by 1, 2
"""


def added(connection: psycopg.Connection, plan: StoredPlan) -> list[dict[str, Any]]:
    """What applying a plan has added, by tenant and month: as `effects` says it of what was planned; `first`, `last`:
    when its first and last were completed."""
    first, last = plan.effects["first"], plan.effects["last"]
    if first is None:
        return []
    with connection.cursor(row_factory=dict_row) as cursor:
        given = {"sources": plan.sources, "first": datetime.fromisoformat(first), "last": datetime.fromisoformat(last)}
        return cursor.execute(_ADDED, given).fetchall()


def complete(
    connection: psycopg.Connection, plan_id: str, world: Mapping[str, Any], money: Sequence[Mapping[str, Any]]
) -> None:
    """Store what a plan depends on and what it changes in money: from now on it can be applied."""
    connection.execute(
        "insert into usage.replay_worlds (plan_id, world, money) values (%s, %s, %s)",
        (plan_id, Jsonb(dict(world)), Jsonb([dict(row) for row in money])),
    )


def note_run(
    connection: psycopg.Connection, plan_id: str, what: str, actor: str, detail: Mapping[str, Any]
) -> bool:  # fmt: skip
    """Note that applying has begun or ended; False where it was noted before."""
    done = connection.execute(
        "insert into usage.replay_runs (plan_id, what, actor, detail) values (%s, %s, %s, %s) on conflict do nothing",
        (plan_id, what, actor, Jsonb(dict(detail))),
    )
    return done.rowcount == 1


def lock_number(plan_id: str, part: int | None = None) -> int:
    """The advisory lock of a plan, or of one of its parts."""
    return zlib.crc32(f"replay/{plan_id}/{part}".encode()) | 0x7265 << 32
