"""Apply a chunk: one transaction that counts each event once and moves the source's position with it.

Lock and compare the position → COPY to a stage → insert identities, duplicates ignored → add the new events to the
1-minute and 1-hour windows in key order → note the numbers that arrived → tell the plain resends → store other sources'
tellings and corrections at once → take what is left, one by one → quarantine → advance the position. A kill at any
instant leaves all of it or nothing; a worker that lost its partition is stopped by the position it finds
(docs/spec/metering.md 4).

Nothing here knows Faust: the worker, other runners and the tests call the same `apply`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import psycopg
from psycopg import adapters
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.string import BytesBinaryDumper

from serving_adapter.identity import identity_of
from streams.ingest import corrections, engine_sums, numbers, old_events, positions, quota_feed, resends, supersedes
from streams.ingest.event_rows import EVENT_COLUMNS, EventRows, Outcome
from streams.ingest.further_arrivals import Arrivals
from streams.ingest.isolation import apply_isolating, require_near
from streams.ingest.judging import Judge
from streams.ingest.positions import Applied
from streams.ingest.quota_feed import Place
from streams.rules.chunks import Accepted, Chunk, Refused, late_before, number_in, number_of
from streams.rules.identity_keys import identity_key, numbered_by
from streams.rules.replayed import Compared
from streams.rules.windows import WINDOW_KEY, add_to_windows

STAGE: Final = (
    ("position", "int8"), ("key", "uuid"), ("request_id", "text"), ("tenant_id", "text"), ("attempt", "int4"),
    ("kind", "text"), ("correction_no", "int4"), ("content_digest", "bytea"), ("numbered_by", "bytea"),
    ("replica_id", "text"), ("boot_id", "text"), ("completed_at", "timestamptz"), ("model", "text"),
    ("adapter", "text"), ("region", "text"), ("tier", "text"), ("pool", "text"), ("status", "text"), ("fault", "text"),
    ("purpose", "text"), ("usage_source", "text"), ("rating_band", "text"), ("input_tokens", "int8"),
    ("cache_hit_tokens", "int8"), ("output_tokens", "int8"), ("gpu_us", "int8"), ("seq", "int8"),
    ("ingested_at", "timestamptz"), ("raw", "bytea"),
)  # fmt: skip
_STAGE_COLUMNS: Final = ", ".join(name for name, _ in STAGE)
_STAGE_TYPES: Final = [kind for _, kind in STAGE]

CREATE_STAGE: Final = (
    "create temporary table if not exists stage ("
    + ", ".join(f"{name} {kind}" for name, kind in STAGE)
    + ") on commit delete rows"
)
COPY_STAGE: Final = f"copy stage ({_STAGE_COLUMNS}) from stdin (format binary)"

_KEY: Final = ", ".join(WINDOW_KEY)


# The identity's plain key drops a resend, whatever its timestamp: `on conflict do nothing`.
COUNT_ONCE: Final = f"""
    with new as (
        insert into usage.event_identities
            (key, completed_at, position, source_no, usage_source, content_digest, numbered_by)
        select key, completed_at, position, %(source_no)s, usage_source, content_digest, numbered_by
        from stage order by key, position
        on conflict (key) do nothing
        returning position
    ), fresh as materialized (
        select stage.* from stage join new using (position)
    ), event as (
        insert into usage.events ({EVENT_COLUMNS}, source) select {EVENT_COLUMNS}, %(source)s from fresh
    ), feed as (
        insert into usage.quota_feed (source, ingest_no, tenant_id, request_id, attempt, kind, model, adapter, status,
            fault, usage_source, completed_at, requests, input_tokens, cache_hit_tokens, output_tokens, gpu_us)
        select %(fed_by)s, %(fed_no)s, tenant_id, request_id, attempt, kind, model, adapter, status, fault,
            usage_source, completed_at, 1, input_tokens, cache_hit_tokens, output_tokens, gpu_us
        from fresh where purpose = 'tenant' order by position
    ), summed as materialized (
        select time_bucket('1 minute', completed_at) as minute, {_KEY}, count(*) as events,
            count(*) filter (where kind = 'usage') as requests, sum(input_tokens)::int8 as input_tokens,
            sum(cache_hit_tokens)::int8 as cache_hit_tokens, sum(output_tokens)::int8 as output_tokens,
            sum(gpu_us)::int8 as gpu_us
        from fresh group by minute, {_KEY}
    ), minute as ({add_to_windows("windows_1m", "1 minute")}
    ), hour as ({add_to_windows("windows_1h", "1 hour")}
    ), numbered as (
        insert into usage.number_fills (replica_id, boot_id, numbers)
        select replica_id, boot_id, array_agg(seq) from stage where seq is not null group by replica_id, boot_id
    ), counted as (
        insert into usage.replica_usage_fills
            (replica_id, boot_id, tenant_id, model, events, input_tokens, output_tokens, cache_hit_tokens)
        select case when seq is null then '' else replica_id end as replica,
               case when seq is null then '' else boot_id end as boot, tenant_id, model,
               count(*), sum(input_tokens)::int8, sum(output_tokens)::int8, sum(cache_hit_tokens)::int8
        from fresh group by replica, boot, tenant_id, model
    )
    -- Positions are only told where not all were new: mostly they are
    select case when count(*) < %(sent)s then coalesce(array_agg(position), '{{}}') end from new
"""


STEPS: Final = (
    "begun", "locked", "copying", "staged", "counted", "arrived", "quarantined", "advanced", "committed"
)  # fmt: skip
"""The moments of a chunk that a checkpoint is told of, in order; "arrived" after what is taken at once, and
after each message that `further_arrivals` takes."""
Checkpoint = Callable[[str], None]


def no_checkpoint(step: str) -> None:
    """What a checkpoint does unless a test wants to stop there."""


class _Key(bytes):
    """An identity's key on its way into a column of type uuid."""


class _KeyDumper(Dumper):
    """The bytes as they are: a UUID object for each event would cost more than its insertion."""

    format = Format.BINARY
    oid = adapters.types["uuid"].oid

    def dump(self, obj: bytes) -> bytes:
        """What is sent."""
        return obj


def adapt(connection: psycopg.Connection) -> None:
    """Let keys and messages be sent as the bytes that they are."""
    connection.adapters.register_dumper(bytes, BytesBinaryDumper)  # the one in C
    connection.adapters.register_dumper(_Key, _KeyDumper)


class ChunkApplier:
    """Applies chunks over one connection, which it has to itself."""

    def __init__(self, connection: psycopg.Connection, checkpoint: Checkpoint = no_checkpoint) -> None:
        """`connection` must be in autocommit mode: each chunk opens and commits its own transaction."""
        self._connection = connection
        self._checkpoint = checkpoint
        self._judge = Judge(connection)
        adapt(connection)
        connection.execute(CREATE_STAGE)

    def apply(self, chunk: Chunk, compared: Compared | None = None) -> Applied:
        """Apply what is new in `chunk`, all or nothing. The same chunk again is skipped.

        `compared` lets in events from behind the horizon, of which it says what is held (`old_events.compare`).
        Raises NotCompared where it says too little; PositionGap or SourceChanged, before anything is written;
        psycopg.OperationalError when the database goes away: then the outcome is unknown, and applying the chunk again
        is right either way.
        """
        return apply_isolating(partial(self._apply, compared), chunk)

    def _apply(self, compared: Compared | None, chunk: Chunk, unstorable: str) -> Applied:
        source = chunk.source.name
        with self._connection.transaction():
            self._checkpoint("begun")
            at, records = positions.due(self._connection, chunk)
            self._checkpoint("locked")
            skipped = len(chunk.records) - len(records)
            if not records:
                return Applied(at.next_position, skipped)
            accepted, refused, behind, horizon = self._judge.judge(records, chunk.judged_at)
            if unstorable:
                accepted, behind = [], []
                refused = [Refused(record, "invalid", unstorable, None) for record in records]
            require_near([*accepted, *(each.message for each in behind)])
            admitted = old_events.admit(self._connection, compared, horizon, behind)
            usage = [message for message in accepted if message.event.kind == "usage"]
            fed = quota_feed.place(self._connection, source, at.ingest_no)
            new = self._count_new(source, at.source_no, fed, [*usage, *admitted.new])
            old = old_events.keep(self._connection, at.source_no, admitted, new)
            refused += old.refused
            outcomes: Counter[Outcome] = Counter({Outcome.APPLIED: len(new), Outcome.DUPLICATE: len(old.there)})
            uncounted = [message for message in accepted if message.event.kind != "usage"]
            unstaged = [number_of(message.event) for message in (*uncounted, *old.there)]
            numbers.fill(self._connection, [*map(number_in, refused), *unstaged])
            rows = EventRows(self._connection, source, at.source_no, fed)
            arrivals = Arrivals(rows, horizon.sealed_before)
            others = [message for message in accepted if message.record.position not in new]
            accepted += [*old.new, *old.there]
            resent = resends.find(self._connection, others)
            outcomes.update(resent.values())
            others = [message for message in others if message.record.position not in resent]
            arrived = [resends.due(message) for message in others]
            at_once = supersedes.take(rows, arrived, horizon.sealed_before)
            at_once |= corrections.take(rows, arrived, horizon.sealed_before)
            outcomes[Outcome.APPLIED] += len(at_once)
            if at_once:
                self._checkpoint("arrived")
            entered = new | at_once
            for message in others:
                if message.record.position in at_once:
                    continue
                outcome = arrivals.take(message)
                if isinstance(outcome, Refused):
                    refused.append(outcome)
                else:
                    outcomes[outcome] += 1
                    if outcome is Outcome.APPLIED:
                        numbers.count(self._connection, [message.event])
                        entered.add(message.record.position)
                self._checkpoint("arrived")
            engine_sums.note_new(
                self._connection,
                (m.event for m in accepted if m.record.position in new and engine_sums.tells(m.event)),
            )
            positions.keep_refused(self._connection, source, refused)
            self._checkpoint("quarantined")
            done = Applied(
                next_position=records[-1].position + 1,
                skipped=skipped,
                applied=outcomes[Outcome.APPLIED],
                duplicates=outcomes[Outcome.DUPLICATE] + outcomes[Outcome.RETIMED],
                retimed=outcomes[Outcome.RETIMED],
                quarantined=len(refused),
                empty=records[-1].position + 1 - at.next_position - len(records),
                late=_late(accepted, entered),
                refused=Counter(message.reason for message in refused),
                tenants=Counter(message.event.tenant_id for message in accepted),
            )
            positions.advance(self._connection, chunk, records, done)
            self._checkpoint("advanced")
        self._checkpoint("committed")
        return done

    def _count_new(self, source: str, source_no: int, fed: Place, messages: Sequence[Accepted]) -> set[int]:
        """Insert the events whose identity is new and add them to the windows; returns their positions."""
        if not messages:
            return set()
        with self._connection.cursor() as cursor:
            with cursor.copy(COPY_STAGE) as copy:
                copy.set_types(_STAGE_TYPES)
                for message in messages:
                    copy.write_row(_stage_row(message))
                self._checkpoint("copying")
            self._checkpoint("staged")
            given = {"source": source, "source_no": source_no, "sent": len(messages)} | fed._asdict()
            row = cursor.execute(COUNT_ONCE, given, prepare=True).fetchone()
        assert row is not None, "an aggregate always has a row"
        self._checkpoint("counted")
        return {message.record.position for message in messages} if row[0] is None else set(row[0])


def _late(messages: Sequence[Accepted], entered: set[int]) -> int:
    """How many of those that entered came late, as of the chunk's first."""
    if not messages:
        return 0
    before = late_before(messages[0].record.appended_at)
    return sum(m.completed_at < before and m.record.position in entered for m in messages)


def _stage_row(message: Accepted) -> tuple[object, ...]:
    """One row of the stage, in the order of STAGE."""
    e = message.event
    return (
        message.record.position, identity_key(identity_of(e)), e.request_id, e.tenant_id, e.attempt, e.kind,
        e.correction_no, message.content_digest, numbered_by(e.replica_id, e.boot_id, e.seq), e.replica_id, e.boot_id,
        message.completed_at, e.model, e.adapter or "", e.region, e.tier, e.pool, e.status, e.fault, e.purpose,
        e.usage_source, message.rating_band, e.input_tokens, e.cache_hit_tokens, e.output_tokens, e.gpu_us,
        e.seq if e.replica_id and e.boot_id else None, message.record.appended_at, message.record.value,
    )  # fmt: skip
