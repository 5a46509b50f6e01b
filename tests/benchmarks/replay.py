"""`make bench-replay`: how fast a backlog is planned and replayed from spools, and what live ingestion sees of it.

Real spool segments → `replay plan` → `replay apply` in as many processes as there are cores, at full speed; then at its
own pace, beside a live line whose events are watched from produced to visible. At the end each event was counted once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import quantiles
from typing import Final

import msgspec
import psycopg

from billing.database import engine_for
from reconciliation.replay import plan_store, spool_source, trial
from reconciliation.replay.planning import Planner
from serving_adapter.spool.frames import framed
from streams.database import connect
from streams.ingest import sources
from streams.ingest.logs import LogReader
from streams.retention.archive_files import Archive
from tests.benchmarks.report import QUICK, Report
from tests.benchmarks.streams import Bench, bench, wait_for_members
from tests.benchmarks.traffic import delays_ms, events

SEED: Final = 20261122
BACKLOG: Final = 60_000 if QUICK else int(os.environ.get("BACKLOG", "600_000"))
RUNS: Final = 1 if QUICK else 3
PROCESSES: Final = 2
LIVE_RATE: Final = 2_000
LIVE_S: Final = 8 if QUICK else 60
PACED: Final = 40_000 if QUICK else 600_000
SEGMENT_EVENTS: Final = 20_000


class _Number(msgspec.Struct):
    replica_id: str
    boot_id: str


def main() -> None:
    """Measure, print, and write build/bench-replay.json."""
    report = Report("bench-replay", SEED, QUICK)
    with bench() as b:
        plans, applies = [], []
        for run in range(RUNS):
            plan_id, seconds = planned(b, BACKLOG, SEED + run)
            plans.append(BACKLOG / seconds)
            begun = time.monotonic()
            for process in [apply(b, plan_id, rate=0) for _ in range(PROCESSES)]:
                process.wait()
            finish(b, plan_id)
            applies.append(BACKLOG / (time.monotonic() - begun))
        report.add("plan_events_per_s", "1/s", plans)
        report.add("replay_events_per_s", "1/s", applies, goal=25_000)
        beside_live(b, report)
        requests, identities = counts(b)
        assert identities >= RUNS * BACKLOG + PACED + LIVE_RATE * LIVE_S, "events are missing"
        report.add("double_counts", "1", [requests - identities], goal=0)
    report.write()


def planned(b: Bench, count: int, seed: int) -> tuple[str, float]:
    """Plan so many events of spools, also what they change in money; its id, and how many seconds that took."""
    Path("build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=Path("build")) as folder:
        write_spools(Path(folder), count, seed)
        begun = time.monotonic()
        with connect(b.url) as connection:
            material = spool_source.spooled(folder)
            plan_id = Planner(connection, datetime.now(UTC), no_archive).plan(material, {}, "bench", lambda _: None)
        engine = engine_for(b.url)
        trial.complete(engine, plan_id, datetime.now(UTC))
        engine.dispose()
    return plan_id, time.monotonic() - begun


def no_archive() -> Archive:
    raise AssertionError("nothing is archived")


def write_spools(folder: Path, count: int, seed: int) -> None:
    """Segments as replicas write them."""
    by_boot: dict[tuple[str, str], list[bytes]] = defaultdict(list)
    for _, message in events(count, seed):
        number = msgspec.json.decode(message, type=_Number)
        by_boot[number.replica_id, number.boot_id].append(framed(b"E" + message))
    for (replica, boot), frames in by_boot.items():
        place = folder / replica / boot
        place.mkdir(parents=True)
        for number, first in enumerate(range(0, len(frames), SEGMENT_EVENTS), start=1):
            (place / f"{number:08d}.seg").write_bytes(b"".join(frames[first : first + SEGMENT_EVENTS]))


def apply(b: Bench, plan_id: str, rate: int) -> subprocess.Popen[bytes]:
    """`replay apply` in a process of its own."""
    command = [sys.executable, "-m", "console.main", "replay", "apply", plan_id, "--rate", str(rate), "--as", "bench"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=b.environ(), **quiet)


def finish(b: Bench, plan_id: str) -> None:
    """Nothing may be left."""
    with connect(b.url) as connection:
        assert plan_store.get(connection, plan_id).state == "applied", "the plan is not through"


def beside_live(b: Bench, report: Report) -> None:
    """Replay at the default pace beside a live line."""
    plan_id, _ = planned(b, PACED, SEED + RUNS)
    with connect(b.url) as connection, b.workers():
        wait_for_members(b, connection)
        replaying = apply(b, plan_id, rate=10_000)
        producer = b.produce(LIVE_RATE * LIVE_S, LIVE_RATE)
        visible = watched(connection, b, producer)
        replaying.wait()
    finish(b, plan_id)
    assert producer.stdout is not None
    cuts = quantiles(delays_ms(producer.stdout, visible), n=100)
    report.add("live_rate", "1/s", [LIVE_RATE])
    report.add("live_p50_ms_during", "ms", [cuts[49]])
    report.add("live_p99_ms_during", "ms", [cuts[98]], goal=1000)


def watched(
    connection: psycopg.Connection, b: Bench, producer: subprocess.Popen[str]
) -> list[tuple[float, dict[int, int]]]:
    """The live partitions' positions over time, until the producer has ended and all is applied."""
    seen: list[tuple[float, dict[int, int]]] = []
    deadline = time.monotonic() + LIVE_S + 120
    while time.monotonic() < deadline:
        positions = {p: state.next_position for p, state in sources.states(connection, b.topic).items()}
        seen.append((time.time(), positions))
        if producer.poll() is not None:
            ends = LogReader(b.kafka, b.topic).read().ends
            if all(positions[p] >= end for p, end in ends.items()):
                return seen
        time.sleep(0.01)
    raise AssertionError("the live line did not catch up")


def counts(b: Bench) -> tuple[int, int]:
    """Requests in the hourly windows, and identities."""
    with connect(b.url) as connection:
        row = connection.execute(
            "select (select coalesce(sum(requests), 0)::int8 from usage.windows_1h),"
            " (select count(*) from usage.event_identities)"
        ).fetchone()
    assert row is not None, "a select without from has a row"
    return row[0], row[1]


if __name__ == "__main__":
    main()
