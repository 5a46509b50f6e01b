"""A shard on a real database, driven step by step: what the service does with threads and sockets."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import psycopg

from streams import tenants
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.quotas import definition_store, feed, journal, looking
from streams.quotas.decisions import Ask, Limits
from streams.quotas.definitions import quota_from
from streams.quotas.entries import Settled
from streams.quotas.journal import Ownership
from streams.quotas.meters import BudgetMeter
from streams.quotas.rebuilding import Rebuilt, load_all, rebuild
from streams.quotas.shard import Shard
from streams.rules.chunks import Chunk, Record, Source

SOURCE = Source("kafka:quota.usage.v1/0", "cluster-1", "topic-1")
LIMITS = Limits()


def define(connection: psycopg.Connection, *, tenant: str = "t1", **document: Any) -> None:
    """A tenant's quota from now on."""
    given = {"tenant_id": tenant, "period": "month", "metric": "output_tokens", "limit": 1000} | document
    if "tier" in given:
        del given["tenant_id"]
    definition_store.define(connection, quota_from(given, now=datetime.now(UTC)), actor="test")


class Usage:
    """Events, applied as from a partition."""

    def __init__(self, connection: psycopg.Connection, source: Source = SOURCE) -> None:
        self._applier = ChunkApplier(connection)
        self._source = source
        self._position = 0
        connection.execute(
            "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
            " values (%s, %s, %s, -1, 0, 0) on conflict do nothing",
            (source.name, source.cluster_id, source.topic_id),
        )

    def happens(self, *requests: str, output: int = 100, **more: Any) -> None:
        """One chunk with an event of each request."""
        now = datetime.now(UTC)
        records = []
        for request_id in requests:
            event = {"tenant_id": "t1", "request_id": request_id, "model": "m-1", "input_tokens": 10,
                     "output_tokens": output, "timestamp": now.isoformat()} | more  # fmt: skip
            records.append(Record(self._position, b"t1", json.dumps(event).encode(), now))
            self._position += 1
        self._applier.apply(Chunk(self._source, records))


class Driver:
    """One process that owns a shard."""

    def __init__(self, url: str, *, shard: int = 0, of: int = 1, learn: bool = False, limits: Limits = LIMITS) -> None:
        self.writing = connect(url)
        self.reading = connect(url)
        self.mine: Ownership = journal.take(self.writing, shard, of, owner="test", address="")
        self.rebuilt: Rebuilt = load_all(self.reading, rebuild(self.reading, self.mine, limits, learn=learn))
        self.shard: Shard = self.rebuilt.shard
        if self.shard.learning_until > self.mine.learning_until:
            journal.keep_learning(self.writing, self.mine, self.shard.learning_until)
        self.positions = self.rebuilt.look.positions
        self.tenants_through = self.rebuilt.look.tenants_through
        self._last = 0
        self.write()
        self.keep_read()

    @property
    def now(self) -> int:
        """Never the same twice."""
        self._last = max(time.time_ns() // 1000, self._last + 1)
        return self._last

    def look(self) -> None:
        wanted = looking.wanted(self.shard, tenants_since=self.tenants_through)
        marks = self.shard.definitions.marks
        found = feed.look(self.reading, self.positions, marks, wanted, self.mine.shard, self.mine.of)
        self.positions, self.tenants_through = found.positions, found.tenants_through
        for _ in looking.take_look(self.shard, found, wanted):
            pass

    def write(self, *, store_a_state: bool = False) -> None:
        cut = self.shard.next_batch(begin_a_state=store_a_state)
        if cut is not None:
            self.shard.written(journal.append(self.writing, self.mine, cut.batch), cut)

    def keep_read(self) -> None:
        """How far the feed was read; all that was found in it is written."""
        journal.keep_states(self.writing, self.mine, [], self.positions)

    def store_states(self) -> None:
        """Until every group's is stored."""
        states = self.shard.states
        while True:
            self.write(store_a_state=True)
            if states.is_idle:
                return
            while (made := states.make()) is None:
                pass
            journal.keep_states(self.writing, self.mine, [made], self.positions)
            states.kept(made.group)

    def ask(self, request_id: str = "r1", max_tokens: int | None = 100, tenant: str = "t1", **more: Any) -> Any:
        store_a_state = more.pop("store_a_state", False)
        asked = Ask(tenant, request_id, more.pop("model", "m-1"), 10, max_tokens=max_tokens, **more)
        answer = self.shard.ask(asked, self.now)
        for _ in range(3):
            if answer != "loading":
                break
            self.look()
            answer = self.shard.ask(asked, self.now)
        self.write(store_a_state=store_a_state)
        return answer

    def settle(self, request_id: str, output: int = 100, **more: Any) -> None:
        settled = Settled("t1", request_id, more.pop("attempt", 1), self.now, more.pop("final", True), True, "m-1", "",
                          10, 0, output, 0, more.pop("lease_id", ""))  # fmt: skip
        self.shard.settle(settled)
        self.write()

    def budget(self, quota_id: str = "month-output_tokens", tenant: str = "t1") -> tuple[int, int, int]:
        """Confirmed, unconfirmed, reserved."""
        meter = self.shard.books[tenant].book.meters.named(quota_id)
        assert isinstance(meter, BudgetMeter)
        return meter.confirmed, meter.unconfirmed, meter.reserved

    def unreserved(self, quota_id: str = "month-output_tokens") -> int:
        meter = self.shard.books["t1"].book.meters.named(quota_id)
        assert isinstance(meter, BudgetMeter)
        return meter.unreserved

    def crash(self) -> None:
        self.writing.close()
        self.reading.close()


def add_tenants(connection: psycopg.Connection, *names: str) -> None:
    tenants.register(connection, [(name, name) for name in names], actor="test")
