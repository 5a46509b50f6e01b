"""`/healthz`, `/readyz` and `/metrics` of a worker, in a thread beside it (`tollbook streams run --listen`).

The thread looks at database and Kafka by itself, so that it can tell a worker that waits from one that hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final, Literal, TypeVar

import psycopg
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving_adapter.errors import KafkaUnavailable
from streams.completeness import completeness_store
from streams.database import connect
from streams.errors import DatabaseUnavailable
from streams.http.http_connections import BoundedConnection
from streams.http.plain_answers import json_answer, metrics_answer
from streams.ingest.ingestion import Ingestion
from streams.ingest.logs import Log
from streams.ingest.sources import Partition, SourceState
from streams.settings import DatabaseSettings
from streams.workers.worker_health import LifeSigns, Surroundings, readiness, unhealthy_because
from streams.workers.worker_metrics import WorkerMetrics

LOOK_EVERY_S: Final = 3.0
LOOK_WITHIN_S: Final = 8.0
MAX_CONNECTIONS: Final = 64
"""Probes and scrapers; whoever comes beyond is refused."""

_Seen = TypeVar("_Seen")


class WorkerServer:
    """The ASGI application's routes, and what it has seen of the surroundings."""

    def __init__(
        self, ingestion: Ingestion, signs: LifeSigns, metrics: WorkerMetrics, database: DatabaseSettings
    ) -> None:
        self._ingestion = ingestion
        self._signs = signs
        self._metrics = metrics
        self._database = database
        self._around = Surroundings()
        self._states: Mapping[Partition, SourceState] = {}
        self._logs: list[Log] = []
        self._rate = 0.0
        self._measure()

    def application(self) -> Starlette:
        """The ASGI application."""
        return Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._show_metrics),
            ],
            lifespan=self._lifespan,
        )

    def _measure(self) -> None:
        gauge, signs, tally = self._metrics.gauge, self._signs, self._ingestion.tally
        gauge("messages_per_second", "Usage messages of the last few seconds.", lambda: self._rate)
        self._metrics.counted(
            "upkeep_failures",
            "Rounds of upkeep (completeness check, alerts, letting go) that failed.",
            lambda: signs.upkeep.failures if signs.upkeep else 0,
        )
        gauge("assigned_partitions", "Partitions that the group has given this worker.", lambda: len(signs.assigned))
        gauge("stopped_partitions", "Partitions left standing until a person decides.", lambda: len(tally.stopped))
        gauge("database_reachable", "1 if the database answers.", lambda: float(self._around.database is None))
        gauge("kafka_reachable", "1 if Kafka answers.", lambda: float(self._around.kafka is None))
        # The same from every worker: what the database holds
        gauge("open_gaps", "Gaps in replicas' numbers that are open.", lambda: _or_nan(self._around.open_gaps))
        self._metrics.by_partition("lag", "Messages not applied yet, of assigned partitions.", lambda: self._around.lag)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self._keep_looking(self._look_at_database)),
            asyncio.create_task(self._keep_looking(self._look_at_kafka)),
            asyncio.create_task(self._keep_measuring()),
        ]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep_looking(self, look: Callable[[], Awaitable[None]]) -> None:
        while True:
            await look()
            self._around = replace(self._around, lag=self._lag())
            await asyncio.sleep(LOOK_EVERY_S)

    async def _look_at_database(self) -> None:
        def look() -> tuple[Mapping[Partition, SourceState], int]:
            with connect(self._database.url, application="tollbook streams health") as connection:
                return self._ingestion.stored_in(connection), completeness_store.count_open_gaps(connection)

        if (seen := await self._ask("database", look)) is not None:
            self._states, gaps = seen
            self._around = replace(self._around, open_gaps=gaps)

    async def _look_at_kafka(self) -> None:
        def look() -> list[Log]:
            return [feed.read_log() for feed in self._ingestion.feeds.values()]

        self._logs = await self._ask("kafka", look) or self._logs

    async def _ask(self, part: Literal["database", "kafka"], call: Callable[[], _Seen]) -> _Seen | None:
        """What a part of the surroundings answers, in another thread; None if it does not, which is noted."""

        def note(away: str | None) -> None:
            self._around = (
                replace(self._around, database=away) if part == "database" else replace(self._around, kafka=away)
            )

        asked = asyncio.create_task(asyncio.to_thread(call))
        answered, _ = await asyncio.wait({asked}, timeout=LOOK_WITHIN_S)
        if not answered:
            note(f"no answer within {LOOK_WITHIN_S:.0f} s")
        try:
            seen = await asked
        except (psycopg.Error, DatabaseUnavailable, KafkaUnavailable) as error:
            note(str(error).splitlines()[0])
            return None
        note(None)
        return seen

    async def _keep_measuring(self) -> None:
        at, seen = time.monotonic(), self._ingestion.tally.seen
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now, total = time.monotonic(), self._ingestion.tally.seen
            self._rate = (total - seen) / (now - at)
            at, seen = now, total

    def _lag(self) -> dict[Partition, int]:
        """Of each assigned partition, where the log is the one that its position is about."""
        ends = {
            Partition(log.topic, number): (log.topic_id, end) for log in self._logs for number, end in log.ends.items()
        }
        return {
            partition: max(0, ends[partition][1] - state.next_position)
            for partition, state in self._states.items()
            if partition in self._signs.assigned and ends.get(partition, ("",))[0] == state.topic_id
        }

    async def _healthz(self, _request: Request) -> Response:
        """Whether this process is of use, or should be started anew."""
        why = unhealthy_because(time.monotonic(), self._signs, self._ingestion.trying_since, self._around)
        return json_answer(500 if why else 200, {"healthy": why is None, "reason": why or ""})

    async def _readyz(self, _request: Request) -> Response:
        """Whether what is in Kafka is being applied now."""
        ready, body = readiness(time.monotonic(), self._signs, dict(self._ingestion.tally.stopped), self._around)
        return json_answer(200 if ready else 503, body)

    async def _show_metrics(self, _request: Request) -> Response:
        return metrics_answer(self._metrics.text())


@contextlib.contextmanager
def served(server: WorkerServer, listener: socket.socket) -> Iterator[None]:
    """Inside the block the endpoints answer."""
    running = uvicorn.Server(
        uvicorn.Config(
            server.application(),
            access_log=False,
            log_level="critical",
            lifespan="on",
            http=BoundedConnection,
            ws="none",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
    )
    thread = threading.Thread(target=lambda: running.run(sockets=[listener]), name="health", daemon=True)
    thread.start()
    try:
        yield
    finally:
        running.should_exit = True
        thread.join(LOOK_WITHIN_S)


def _or_nan(value: int | None) -> float:
    return float("nan") if value is None else value
