"""Letting go of what is old, in bounded steps beside the ingestion: identities, the feed for quotas, ended boots.

Workers make a step every few seconds (streams/workers/upkeep.py), one of them at a time; `tollbook streams retain`
makes them until nothing is left. How long things are kept: docs/retention.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import psycopg

from streams.retention import retention_store
from streams.rules import ingest_rules
from streams.settings import RetentionSettings

RETENTION_LOCK: Final = 0x6F6C_6421
"""The letters "old!"."""
STEP_EVERY: Final = timedelta(seconds=5)
MOVE_EVERY: Final = timedelta(hours=1)
"""Moving the horizon stops all sources for a moment: not more often than this."""
SWEEP_EVERY: Final = timedelta(days=1)
"""A sweep reads the whole table of identities: one for each day that the horizon has moved."""
SWEEP_STEPS: Final = 8640
"""A sweep is spread over so many steps (12 hours of them), of which none is longer than MOST_BLOCKS."""
LEAST_BLOCKS: Final = 256
MOST_BLOCKS: Final = 16_384
"""128 MiB to look through in a step."""
BOOTS_A_STEP: Final = 200
CHUNKS_A_STEP: Final = 20_000
"""So many chunks become one row, at most: a tenth of a second of PostgreSQL's."""
FOLD_EVERY: Final = timedelta(minutes=10)
SYSTEM: Final = "tollbook"


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What a step let go of, or would."""

    before: datetime | None = None
    """Identities from before this are refused, and forgotten as the sweep comes by; None while no period is closed."""
    identities: int = 0
    weeks: int = 0
    """Partitions of identities, all whose ids were minted before."""
    feed_chunks: int = 0
    boots: int = 0
    chunks: int = 0
    """Proofs of applied chunks that were folded into ranges."""
    more: bool = False
    """Whether another step would let go of more."""

    def __add__(self, other: Forgotten) -> Forgotten:
        return Forgotten(
            other.before,
            self.identities + other.identities,
            self.weeks + other.weeks,
            self.feed_chunks + other.feed_chunks,
            self.boots + other.boots,
            self.chunks + other.chunks,
            other.more,
        )


def blocks_a_step(total: int) -> int:
    """How many pages of a table of `total` a step looks at."""
    return max(LEAST_BLOCKS, min(MOST_BLOCKS, -(-total // SWEEP_STEPS)))


@dataclass(slots=True)
class Retention:
    """Steps over one connection in autocommit mode."""

    connection: psycopg.Connection
    settings: RetentionSettings
    _stepped_at: datetime | None = None
    _folded: tuple[datetime | None, datetime] | None = None
    """Up to when periods were closed when nothing was left to fold, and when that was."""

    def step_when_due(self) -> Forgotten | None:
        """A step, if the last one is STEP_EVERY ago and no other worker is at it."""
        row = self.connection.execute("select clock_timestamp()").fetchone()
        assert row is not None, "a function always has a row"
        now: datetime = row[0]
        if self._stepped_at is not None and now - self._stepped_at < STEP_EVERY:
            return None
        self._stepped_at = now
        return self.step(now)

    def step(self, now: datetime, *, at_once: bool = False) -> Forgotten | None:
        """Let go of a bounded part of what is old at `now`; None if somebody else is at it.

        `at_once` (a person asked) moves the horizon and begins a sweep however little there is to gain.
        """
        locked = self.connection.execute("select pg_try_advisory_lock(%s)", (RETENTION_LOCK,)).fetchone()
        if locked is None or not locked[0]:
            return None
        try:
            if self.settings.horizon is not None:
                retention_store.set_horizon(self.connection, self.settings.horizon, actor=SYSTEM)
            try:
                before = self._move_horizon(now, timedelta(0) if at_once else MOVE_EVERY)
                feed_chunks = retention_store.drop_feed(self.connection, now - self.settings.feed_kept)
                weeks = 0 if before is None else retention_store.forget_weeks(self.connection, before)
            except psycopg.errors.LockNotAvailable:
                return Forgotten(ingest_rules.horizon(self.connection).forgotten_before, more=True)
            boots = 0 if before is None else retention_store.forget_boots(self.connection, before, BOOTS_A_STEP)
            identities, more = self._sweep(before, timedelta(microseconds=1) if at_once else SWEEP_EVERY)
            chunks = self._fold_chunks(now)
            more = more or boots == BOOTS_A_STEP or chunks > 0
            return Forgotten(before, identities, weeks, feed_chunks, boots, chunks, more)
        finally:
            self.connection.execute("select pg_advisory_unlock(%s)", (RETENTION_LOCK,))

    def preview(self, now: datetime) -> Forgotten:
        """What would be let go of at `now`, all of it. Reads the whole table of identities."""
        before = ingest_rules.horizon(self.connection).forget_before(now)
        identities = weeks = boots = 0
        if before is not None:
            weeks = retention_store.forget_weeks(self.connection, before, dry_run=True)
            for table in retention_store.SWEPT:
                identities += retention_store.older_identities(self.connection, table, before)
            boots = len(retention_store.ended_boots(self.connection, before, limit=1_000_000))
        feed_chunks = retention_store.older_feed(self.connection, now - self.settings.feed_kept)
        chunks = retention_store.foldable_chunks(self.connection)
        return Forgotten(before, identities, weeks, feed_chunks, boots, chunks)

    def _fold_chunks(self, now: datetime) -> int:
        """Fold a part of the chunks that may be; how many."""
        closed = ingest_rules.horizon(self.connection).closed_before
        if self._folded is not None and self._folded[0] == closed and now - self._folded[1] < FOLD_EVERY:
            return 0
        chunks = retention_store.fold_chunks(self.connection, CHUNKS_A_STEP)
        if not chunks:
            self._folded = closed, now
        return chunks

    def _move_horizon(self, now: datetime, every: timedelta) -> datetime | None:
        """Refuse what may be forgotten now; returns up to when that is."""
        stands = ingest_rules.horizon(self.connection)
        before = stands.forget_before(now)
        if before is None or before == stands.forgotten_before:
            return before
        if stands.forgotten_before is not None and before - stands.forgotten_before < every:
            return stands.forgotten_before
        retention_store.move_forgotten(self.connection, before)
        return before

    def _sweep(self, before: datetime | None, every: timedelta) -> tuple[int, bool]:
        """A part of each table's sweep; how many identities are forgotten, and whether there is more to sweep."""
        forgotten, more = 0, False
        if before is None:
            return forgotten, more
        for table in retention_store.SWEPT:
            if retention_store.sweep_is_due(self.connection, table, before, every):
                blocks = blocks_a_step(retention_store.blocks_of(self.connection, table))
                swept = retention_store.sweep(self.connection, table, blocks)
                forgotten += swept.forgotten
                more = more or not swept.done
        return forgotten, more
