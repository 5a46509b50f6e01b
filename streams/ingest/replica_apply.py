"""Apply a chunk of replicas' reports: one transaction, by the same position as usage (docs/spec/metering.md 4.1, 6.2).

Reports say the state as it is, and cumulative counts: the later one, by the replica's clock, replaces the earlier. What
must not be lost of an earlier one, the times that can still be proven, is kept as marks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

import psycopg

from streams.completeness import engine_store
from streams.completeness.completeness_store import forgotten_boots
from streams.ingest import positions
from streams.ingest.apply import Checkpoint, no_checkpoint
from streams.ingest.isolation import apply_isolating
from streams.ingest.positions import Applied
from streams.ingest.replica_chunks import News, Said, news, read
from streams.rules.chunks import Chunk, Record, Refused

REPORT_STEPS: Final = ("reports begun", "reports stored", "reports advanced", "reports committed")
"""The moments of a chunk that a checkpoint is told of, in order."""
# A report may come after a later one: out of quarantine, or sent again. It tells only what the later one does not.
_OF_THE_LATER: Final = ", ".join(
    f"{name} = case when greatest(excluded.heartbeat_at, excluded.farewell_at)"
    " < greatest(b.heartbeat_at, b.farewell_at)"
    f" then coalesce(b.{name}, excluded.{name}) else coalesce(excluded.{name}, b.{name}) end"
    for name in ("started", "ended", "open", "clock_offset_ms")
)
STORE_BOOT: Final = f"""
    insert into usage.boots as b (replica_id, boot_id, first_received_at, last_received_at, begun_at, heartbeat_at,
                                  last_seq, started, ended, open, clock_offset_ms, farewell_at, quiet_since,
                                  not_durable, durable_to)
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (replica_id, boot_id) do update set
        last_received_at = greatest(b.last_received_at, excluded.last_received_at),
        begun_at = coalesce(b.begun_at, excluded.begun_at),
        heartbeat_at = greatest(b.heartbeat_at, excluded.heartbeat_at),
        last_seq = greatest(b.last_seq, excluded.last_seq),
        {_OF_THE_LATER},
        farewell_at = greatest(b.farewell_at, excluded.farewell_at),
        not_durable = b.not_durable or excluded.not_durable,
        durable_to = greatest(b.durable_to, excluded.durable_to),
        quiet_since = case
            when (excluded.last_seq, coalesce(excluded.started, 0)) > (b.last_seq, coalesce(b.started, 0))
                then excluded.quiet_since
            when (excluded.last_seq, coalesce(excluded.started, 0)) = (b.last_seq, coalesce(b.started, 0))
                then least(b.quiet_since, excluded.quiet_since)
            else b.quiet_since end
"""
STORE_MARK: Final = (
    "insert into usage.heartbeat_marks (replica_id, boot_id, last_seq, reported_at, proves_to)"
    " values (%s, %s, %s, %s, %s)"
)
# Cumulative counts only grow; a report that was sent again must not take any back.
STORE_TOTAL: Final = """
    insert into usage.replica_reported as r
        (replica_id, boot_id, tenant_id, model, events, input_tokens, output_tokens, cache_hit_tokens)
    values (%s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (replica_id, boot_id, tenant_id, model) do update set
        events = excluded.events, input_tokens = excluded.input_tokens, output_tokens = excluded.output_tokens,
        cache_hit_tokens = excluded.cache_hit_tokens
    where r.events <= excluded.events
"""


class ReplicaChunkApplier:
    """Applies chunks of replicas' reports over one connection in autocommit mode."""

    def __init__(self, connection: psycopg.Connection, checkpoint: Checkpoint = no_checkpoint) -> None:
        self._connection = connection
        self._checkpoint = checkpoint

    def apply(self, chunk: Chunk) -> Applied:
        """Apply what is new in `chunk`, all or nothing. Raises what ChunkApplier.apply raises."""
        return apply_isolating(self._apply, chunk)

    def _apply(self, chunk: Chunk, unstorable: str) -> Applied:
        with self._connection.transaction():
            self._checkpoint("reports begun")
            at, records = positions.due(self._connection, chunk)
            skipped = len(chunk.records) - len(records)
            if not records:
                return Applied(at.next_position, skipped)
            said, refused = _judge(records)
            if unstorable:
                said, refused = [], [Refused(record, "invalid", unstorable, None) for record in records]
            self._store(news(said))
            self._checkpoint("reports stored")
            positions.keep_refused(self._connection, chunk.source.name, refused, "replicas")
            reasons = Counter(message.reason for message in refused)
            behind = records[-1].position + 1
            empty = behind - at.next_position - len(records)
            done = Applied(behind, skipped, len(said), quarantined=len(refused), empty=empty, refused=reasons)
            positions.advance(self._connection, chunk, records, done)
            self._checkpoint("reports advanced")
        self._checkpoint("reports committed")
        return done

    def _store(self, found: News) -> None:
        """Write what the chunk said, boots in order of their key."""
        gone = forgotten_boots(self._connection, found.boots)
        boots = sorted(((key, boot) for key, boot in found.boots.items() if key not in gone), key=lambda item: item[0])
        rows: dict[str, list[tuple[object, ...]]] = {
            STORE_BOOT: [
                (*key, b.first_received_at, b.last_received_at, b.begun_at, b.heartbeat_at, b.last_seq, b.started,
                 b.ended, b.open, b.clock_offset_ms, b.farewell_at, b.quiet.since, b.not_durable, b.durable_to)
                for key, b in boots
            ],
            STORE_MARK: [(*key, last_seq, *mark) for key, b in boots for last_seq, mark in b.marks.items()],
            STORE_TOTAL: [(*key, *what, *counts) for key, b in boots for what, counts in b.totals.items()],
        }  # fmt: skip
        with self._connection.cursor() as cursor:
            for statement, values in rows.items():
                if values:
                    cursor.executemany(statement, values)
        engine_store.store(self._connection, found.engines)


def _judge(records: Sequence[Record]) -> tuple[list[Said], list[Refused]]:
    """What could be read, and what goes to quarantine."""
    messages = [read(record) for record in records]
    return [m for m in messages if isinstance(m, Said)], [m for m in messages if isinstance(m, Refused)]
