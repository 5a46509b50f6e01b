"""Apply a plan: once, whoever does it, in however many processes, and whatever is killed on the way.

Each part is a source of its own, applied chunk by chunk by the code that applies all else; its position moves in the
transaction that counts (docs/spec/metering.md 4.4). A part is one process's at a time.
The next goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import psycopg
from sqlalchemy import Engine

from billing.database import raw, transaction
from reconciliation.errors import ReplayRefused
from reconciliation.replay import plan_store, trial
from reconciliation.replay.behind import MOST_COMPARED, OpenArchive, compare, require_progress
from reconciliation.replay.plan_store import StoredPlan
from streams import audit
from streams.completeness.completeness_check import CompletenessCheck
from streams.errors import NotCompared
from streams.ingest import positions
from streams.ingest.apply import Checkpoint, ChunkApplier, no_checkpoint
from streams.ingest.judging import Judge
from streams.rules.chunks import Accepted, Chunk
from streams.rules.replayed import Compared
from streams.settings import CompletenessSettings

CHUNK: Final = 2000
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Replayed:
    """How a plan stands: its records, how many are through, and what they came to. `done` once all are.

    `added`: then, what usage they have added, by tenant and month. `moved`: `account period` of those that were cut or
    invoiced while it was applied.
    """

    plan_id: str
    records: int
    through: int
    applied: int
    duplicates: int
    quarantined: int
    done: bool
    added: Sequence[Mapping[str, Any]] = ()
    moved: Sequence[str] = ()

    def as_counts(self) -> dict[str, Any]:
        """For the audit log."""
        return {
            "records": self.records, "applied": self.applied, "duplicates": self.duplicates,
            "quarantined": self.quarantined,
        }  # fmt: skip

    def as_report(self) -> dict[str, Any]:
        """For the plan's end."""
        return self.as_counts() | {"added": list(self.added), "moved": list(self.moved)}


def begin(engine: Engine, plan_id: str, actor: str, *, dry_run: bool = False) -> StoredPlan:
    """Note that a plan is being applied; if it was begun before, it goes on.

    Raises ReplayRefused where the world is no more as it was when the plan was made: then what it says is no more true.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        usage = raw(connection)
        usage.execute("select pg_advisory_xact_lock(%s)", (plan_store.lock_number(plan_id),))
        plan = plan_store.get(usage, plan_id)
        if plan.world is None:
            raise ReplayRefused(f"plan {plan_id} was not finished: make another")
        if plan.begun_at is None:
            if found := trial.changed(plan.world, trial.world(connection, plan)):
                told = "; ".join(found)
                raise ReplayRefused(f"plan {plan_id} is out of date ({told}): make another, and read what it says")
            plan_store.note_run(usage, plan_id, "begun", actor, {})
            audit.record(usage, actor, "replay.begin", plan_id, {"records": plan.records})
    return plan


class Replayer:
    """Applies a plan that was begun over one connection in autocommit mode, which it has to itself."""

    def __init__(
        self,
        engine: Engine,
        connection: psycopg.Connection,
        plan: StoredPlan,
        actor: str,
        open_archive: OpenArchive,
        *,
        chunk: int = CHUNK,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> None:
        """`engine` is of the same database. `open_archive` is called where something lies behind the horizon, and all
        of some days is only there."""
        self._engine = engine
        self._connection = connection
        self._plan = plan
        self._actor = actor
        self._chunk = chunk
        self._open_archive = open_archive
        self._applier = ChunkApplier(connection, checkpoint)
        self._judge = Judge(connection)
        self._compared = Compared()

    def run(self, *, rate: int | None, progress: Progress) -> Replayed:
        """Apply the parts that nobody else is at, and say how the plan stands then.

        `rate`: events a second at most of all replays that go on, in however many processes, so that live ingestion
        keeps its latency; None: as fast as it goes. Raises ReplayRefused where something lies behind the horizon and
        the archive cannot be read.
        """
        connection, pace = self._connection, Pace(rate, _replayed(self._connection), time.monotonic())
        for part in self._plan.parts:
            lock = plan_store.lock_number(self._plan.plan_id, part)
            row = connection.execute("select pg_try_advisory_lock(%s)", (lock,)).fetchone()
            if not (row and row[0]):
                continue
            try:
                self._apply_part(part, pace, progress)
            finally:
                connection.execute("select pg_advisory_unlock(%s)", (lock,))
        # The numbers that came are told to the gaps that they fill
        CompletenessCheck(connection, CompletenessSettings()).run()
        return self._ended()

    def _apply_part(self, part: int, pace: Pace, progress: Progress) -> None:
        connection, source = self._connection, self._plan.source(part)
        at = _position(connection, source.name)
        if at is None:
            positions.register(connection, source)
            at = 0
        tries = 0
        while records := plan_store.records(connection, self._plan, part, at, self._chunk):
            try:
                at = self._applier.apply(Chunk(source, records), self._compared).next_position
            except NotCompared:
                require_progress(tries)
                self._compared, tries = self._compare(part), tries + 1
                continue
            tries = 0
            progress(standing(connection, self._plan).through, self._plan.records)
            if wait_s := pace.due(_replayed(connection), time.monotonic()):
                time.sleep(wait_s)

    def _compare(self, first: int) -> Compared:
        """Compare what lies behind the horizon, of what is left to apply, from this part's on: much of it at once."""
        behind: list[Accepted] = []
        for part in sorted(self._plan.parts, key=lambda part: part != first):
            at = _position(self._connection, self._plan.source(part).name) or 0
            while len(behind) < MOST_COMPARED and (
                records := plan_store.records(self._connection, self._plan, part, at, self._chunk)
            ):
                behind += [each.message for each in self._judge.judge(records, None).behind]
                at = records[-1].position + 1
        return compare(self._connection, self._open_archive, behind)

    def _ended(self) -> Replayed:
        plan = self._plan
        with transaction(self._engine) as connection:
            usage = raw(connection)
            usage.execute("select pg_advisory_xact_lock(%s)", (plan_store.lock_number(plan.plan_id),))
            found = standing(usage, plan)
            if not found.done:
                return found
            if (ended := plan_store.get(usage, plan.plan_id).report) is not None:
                return replace(found, added=ended.get("added", ()), moved=ended.get("moved", ()))
            found = replace(found, added=plan_store.added(usage, plan), moved=trial.moved(connection, plan))
            plan_store.note_run(usage, plan.plan_id, "ended", self._actor, found.as_report())
            audit.record(usage, self._actor, "replay.end", plan.plan_id, found.as_counts())
        return found


def _position(connection: psycopg.Connection, source: str) -> int | None:
    row = connection.execute("select next_position from usage.sources where source = %s", (source,)).fetchone()
    return row[0] if row else None


def standing(connection: psycopg.Connection, plan: StoredPlan) -> Replayed:
    """How far a plan is."""
    row = connection.execute(
        "select coalesce(sum(next_position), 0)::int8, coalesce(sum(applied), 0)::int8,"
        " coalesce(sum(duplicates), 0)::int8, coalesce(sum(quarantined), 0)::int8"
        " from usage.sources where source = any(%s)",
        (plan.sources,),
    ).fetchone()
    through, applied, duplicates, quarantined = row or (0, 0, 0, 0)
    done = through == plan.records
    return Replayed(plan.plan_id, plan.records, through, applied, duplicates, quarantined, done)


def _replayed(connection: psycopg.Connection) -> int:
    """How many events all replays have brought in: those of one moment keep to one pace by it."""
    row = connection.execute(
        "select coalesce(sum(next_position), 0)::int8 from usage.sources where cluster_id = %s", (plan_store.CLUSTER,)
    ).fetchone()
    return int(row[0]) if row else 0


class Pace:
    """Keeps to so many events a second, over all who replay: an even pace, and no catching up after a pause.

    Each of them waits for what all of them have brought in, and so they share the rate.
    """

    def __init__(self, rate: int | None, replayed: int, now: float) -> None:
        """`replayed`: events that all have brought in by `now`, in seconds of any clock that only goes on."""
        self._rate = rate
        self._seen = replayed
        self._due = now

    def due(self, replayed: int, now: float) -> float:
        """How many seconds to wait before the next chunk begins."""
        if self._rate is None:
            return 0
        self._due = max(self._due + (replayed - self._seen) / self._rate, now - 1)
        self._seen = replayed
        return max(self._due - now, 0)
