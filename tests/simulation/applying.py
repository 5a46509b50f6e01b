"""Processes that apply a log's chunks to a real database and are killed: the worker's transaction without Faust.

Each process is forked from a clean one that has everything imported, so that two hundred kills take a minute. What
they read from is a list in place of a partition; everything from `ChunkApplier` on is the real thing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from typing import Final

import psycopg

from streams import tenants
from streams.database import connect
from streams.ingest import sources
from streams.ingest.apply import ChunkApplier
from streams.ingest.orphans import Orphans
from streams.rules.chunks import Chunk, Record, Source
from tests.simulation.faults import Fault, Injector
from tests.simulation.traffic import Message

TOPIC: Final = "simulated.usage.v1"
RECEIVED: Final = datetime(2026, 11, 6, tzinfo=UTC)
CHUNK_MESSAGES: Final = 40
READ_AGAIN: Final = 30
"""A process begins up to so many messages before the stored position: what a redelivery looks like."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.simulation.applying"])


@dataclass(frozen=True, slots=True)
class SimulatedLog:
    """Partitions as lists, which grow."""

    partitions: dict[int, list[Record]]

    def append(self, messages: Mapping[int, Sequence[Message]]) -> None:
        """Append messages to their partitions."""
        for partition, those in messages.items():
            records = self.partitions.setdefault(partition, [])
            for message in those:
                records.append(Record(len(records), message.tenant_id.encode(), message.value, RECEIVED))


def source_of(partition: int) -> Source:
    """The source of a simulated partition."""
    return Source(sources.source_name(TOPIC, partition), "simulated", "simulated")


def prepare(connection: psycopg.Connection, tenant_ids: Sequence[str], partitions: Sequence[int]) -> None:
    """Register tenants and sources."""
    tenants.register(connection, [(tenant, tenant) for tenant in tenant_ids], actor="test")
    for partition in partitions:
        connection.execute(
            "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
            " values (%s, 'simulated', 'simulated', 0, 0, 0)",
            (source_of(partition).name,),
        )


def start(url: str, log: SimulatedLog, fault: Fault | None = None, seed: int = 0) -> BaseProcess:
    """Start a process that applies what is left of the log, then releases orphans; unless the fault ends it."""
    process = _context.Process(target=_apply_all, args=(url, log, fault, seed), daemon=True)
    process.start()
    return process


def _apply_all(url: str, log: SimulatedLog, fault: Fault | None, seed: int) -> None:
    dice = random.Random(seed)
    with connect(url, application="tollbook streams") as connection:
        injector = Injector(fault)
        injector.connection = connection
        applier = ChunkApplier(connection, injector)
        at = {p: max(0, s.next_position - dice.randrange(READ_AGAIN)) for p, s in _states(connection).items()}
        while left := [p for p, records in log.partitions.items() if at[p] < len(records)]:
            partition = dice.choice(left)
            records = log.partitions[partition][at[partition] :][: dice.randint(1, CHUNK_MESSAGES)]
            with contextlib.suppress(psycopg.errors.DeadlockDetected):  # the worker repeats the chunk, and so do we
                at[partition] = applier.apply(Chunk(source_of(partition), records)).next_position
        with contextlib.suppress(psycopg.errors.DeadlockDetected):
            Orphans(connection).release_all()
    os._exit(0)


def _states(connection: psycopg.Connection) -> dict[int, sources.SourceState]:
    return sources.states(connection, TOPIC)
