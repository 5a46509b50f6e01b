"""Kills processes at random in dirty traffic: nothing may be lost, nothing count twice.

Two kinds of processes are killed, one or two at work at a time, at named steps of the chunk's transaction and at random
moments: processes that apply chunks of a simulated log (the real transaction on the real database, quick to start),
and whole workers on Kafka, which Faust reads or the bare consumer, as the seed says. Services are those of the
environment: `make up`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import psycopg

from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import ensure_topics
from streams.database import connect
from streams.ingest import sources
from streams.ingest.apply import STEPS
from streams.settings import DatabaseSettings
from tests.fixtures_services import Databases, delete_topics
from tests.simulation import applying, invariants
from tests.simulation.faults import Fault
from tests.simulation.line import Line, Worker, reader_of, wait_for
from tests.simulation.traffic import Message, Row, Traffic, by_partition

REQUESTS_A_ROUND: Final = 400
CHECK_EVERY: Final = 10
"""Kills of appliers between two looks at all that must hold; what is lost or doubled is counted after each."""


@dataclass(slots=True)
class Figures:
    """What one half of the run did, and found."""

    kills: int = 0
    of_workers: int = 0
    """Those of the kills that were of whole workers."""
    sent: int = 0
    rows: int = 0
    lost: int = 0
    doubled: int = 0
    checks: int = 0
    by_moment: dict[str, int] = field(default_factory=dict)
    reader: str = ""
    """What whole workers read Kafka with, as the seed says."""

    def killed(self, at: str) -> None:
        """Count one kill, and where it struck."""
        self.kills += 1
        self.by_moment[at] = self.by_moment.get(at, 0) + 1


def killed(seed: int, kills: int, *, of_workers: int) -> Figures:
    """Kill so many processes, `of_workers` of them whole workers; prints what each half did."""
    with services() as (databases, kafka):
        appliers = _kill_appliers(databases(), seed, kills - of_workers)
        _say("processes that apply chunks", appliers)
        workers = _kill_workers(kafka, databases(), seed, of_workers)
        _say(f"whole workers ({workers.reader})", workers)
    both = Figures()
    for name in ("kills", "sent", "rows", "lost", "doubled", "checks"):
        setattr(both, name, getattr(appliers, name) + getattr(workers, name))
    both.of_workers = workers.kills
    return both


def _say(what: str, figures: Figures) -> None:
    moments = ", ".join(f"{at} {count}" for at, count in sorted(figures.by_moment.items(), key=lambda each: -each[1]))
    print(
        f"  {what}: {figures.kills} kills, {figures.sent:,} messages, {figures.rows:,} events,"
        f" {figures.lost} lost, {figures.doubled} doubled, {figures.checks + 1} checks\n    killed {moments}",
        flush=True,
    )


def _kill_appliers(url: str, seed: int, kills: int) -> Figures:
    """Kill processes that apply chunks until there were so many kills; then apply the rest and check."""
    dice, traffic, figures = random.Random(seed), Traffic(seed), Figures()
    log, sent = applying.SimulatedLog({}), []
    with connect(url) as connection:
        partitions = by_partition([])
        applying.prepare(connection, traffic.tenants, list(partitions))
        while figures.kills < kills:
            if _left(connection, log) < REQUESTS_A_ROUND // 2:
                messages = traffic.round(REQUESTS_A_ROUND)
                sent += messages
                log.append(by_partition(messages))
            _strike(url, log, dice, figures)
            _count_losses(connection, _applied_of(connection, sent), figures)
            if figures.kills // CHECK_EVERY > figures.checks:
                _look(connection, figures)
        _finish(url, log)
        invariants.consistent(connection)
        figures.sent, figures.rows = traffic.expected.messages, len(traffic.expected.rows)
        _count_losses(connection, traffic.expected.rows, figures)
        invariants.complete(connection, traffic.expected)
    return figures


def _strike(url: str, log: applying.SimulatedLog, dice: random.Random, figures: Figures) -> None:
    """Start one or two processes over the same partitions and let each be killed, if it does not end before."""
    started = []
    for _ in range(dice.choice((1, 1, 2))):
        at_step = dice.random() < 0.75
        step, nth = dice.choice((*STEPS, "commit unseen")), dice.randint(1, 6)
        fault = None
        if at_step and step == "commit unseen":
            fault = Fault("advanced", nth, "commit unseen")
        elif at_step:
            fault = Fault(step, nth * 2 if step == "arrived" else nth)
        process = applying.start(url, log, fault, dice.randrange(2**31))
        started.append((process, step if at_step else None))
    for process, step in started:
        if step is None:
            process.join(dice.uniform(0.02, 0.3))
            process.kill()
        process.join()
        if process.exitcode == -9:
            figures.killed(step or "at a random moment")
        assert process.exitcode in (0, -9), f"a process ended with {process.exitcode}"


def _left(connection: psycopg.Connection, log: applying.SimulatedLog) -> int:
    """Messages of the simulated log that are not applied yet."""
    row = connection.execute(
        "select sum(next_position)::int8 from usage.sources where source like 'kafka:%'"
    ).fetchone()
    assert row is not None
    return sum(map(len, log.partitions.values())) - int(row[0])


def _applied_of(connection: psycopg.Connection, sent: list[Message]) -> set[Row]:
    """The rows that messages which are passed must have left."""
    positions = {p: state.next_position for p, state in sources.states(connection, applying.TOPIC).items()}
    return {
        message.row
        for partition, messages in by_partition(sent).items()
        for message in messages[: positions[partition]]
        if message.row is not None and message.row[0].kind == "usage"
    }


def _count_losses(connection: psycopg.Connection, due: set[Row], figures: Figures) -> None:
    found = invariants.loss(connection, due)
    figures.lost, figures.doubled = figures.lost + found.lost, figures.doubled + found.doubled


def _look(connection: psycopg.Connection, figures: Figures) -> None:
    """What must hold at any moment; anything else ends the run."""
    figures.checks += 1
    invariants.consistent(connection)


def _finish(url: str, log: applying.SimulatedLog) -> None:
    for _ in range(2):  # the first may leave an orphan whose original another process has just applied
        process = applying.start(url, log)
        process.join()
        assert process.exitcode == 0, f"a process ended with {process.exitcode}"


def _kill_workers(kafka: KafkaSettings, url: str, seed: int, kills: int) -> Figures:
    """The same with whole workers on Kafka."""
    dice, figures = random.Random(seed), Figures()
    with Line(kafka, url, seed) as line:
        line.reader = figures.reader = reader_of(seed)
        line.send(REQUESTS_A_ROUND)
        while figures.kills < kills:
            names = ("one", "two")[: dice.choice((1, 1, 2))]
            workers: list[tuple[Worker, str | None]] = []
            for name in names:
                step = dice.choice(STEPS) if dice.random() < 0.5 else None
                fault = Fault(step, dice.randint(1, 4)) if step else None
                workers.append((line.worker(fault, "--chunk", "40", name=name), step))
            line.send(REQUESTS_A_ROUND // 4)
            struck = _kill_at_once(line, workers, dice)
            for worker, step in workers:
                assert worker.returncode == -9, f"a worker ended by itself: {worker.communicate()[0]}"
                figures.killed(step if step and worker in struck else "at a random moment")
            _count_losses(line.connection, line.due(), figures)
            _look(line.connection, figures)
        line.drain()
        figures.sent, figures.rows = line.traffic.expected.messages, len(line.traffic.expected.rows)
        _count_losses(line.connection, line.traffic.expected.rows, figures)
        line.settled()
    return figures


def _kill_at_once(line: Line, workers: Sequence[tuple[Worker, str | None]], dice: random.Random) -> list[Worker]:
    """Wait until a worker's fault has struck or nothing is left to do; without a fault, until some of it is done.

    Then kill all of them, and only then wait; returns those whose fault was faster.
    """
    goal = sum(line.next_positions().values()) + dice.randrange(200)
    due = line.traffic.expected.messages

    def far_enough() -> bool:
        at = sum(line.next_positions().values())
        by_themselves = all(step is None for _, step in workers)
        return any(worker.poll() is not None for worker, _ in workers) or at >= (goal if by_themselves else due)

    wait_for(far_enough, "a worker applies something")
    struck = [worker for worker, _ in workers if worker.poll() is not None]
    for worker, _ in workers:
        worker.kill()
    for worker, _ in workers:
        worker.wait()
    return struck


@contextmanager
def services() -> Iterator[tuple[Databases, KafkaSettings]]:
    """Databases and topics of the run's own, removed at the end."""
    databases = Databases(DatabaseSettings.from_environment().url)
    given = KafkaSettings.from_environment()
    kafka = replace(given, topic_prefix=f"simulate-{os.getpid()}-{int(time.time())}")
    ensure_topics(kafka)
    try:
        yield databases, kafka
    finally:
        databases.drop_all()
        delete_topics(kafka)
