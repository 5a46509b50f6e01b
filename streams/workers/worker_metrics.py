"""What a worker counts, for Prometheus: told once a chunk (ingestion.Observer), never once an event.

Labels are bounded: outcomes and reasons are few, partitions are those assigned, tenants are the busiest and "(other)".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from streams.ingest.positions import Applied
from streams.ingest.sources import Feed, Partition
from streams.workers.busiest_tenants import BusiestTenants

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MESSAGES: Final = (1, 10, 50, 100, 250, 500, 1000, 2000, 5000, 10_000)
PREFIX: Final = "tollbook_streams"


class WorkerMetrics:
    """The counters of one worker; told by the thread that applies, read by any."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._messages = self._counter("messages", "Messages by what became of them.", "feed", "outcome")
        self._quarantined = self._counter("quarantined", "Messages put into quarantine, by reason.", "feed", "reason")
        self._retimed = self._counter("retimed", "Duplicates that carried another timestamp.")
        self._late = self._counter(
            "late_events", "Applied events completed before the hour that precedes the one of their arrival."
        )
        self._commits = self._counter("commits", "Transactions that moved a position.", "feed")
        self._waits = self._counter("database_waits", "Attempts at a chunk that the database did not let through.")
        self._seconds = self._histogram(
            "chunk_seconds", "A chunk's transaction, of the attempt that succeeded.", SECONDS
        )
        self._sizes = self._histogram("chunk_messages", "Messages that a chunk's transaction applied.", MESSAGES)
        self._tenants = BusiestTenants(time.monotonic())
        self._registry.register(_Labelled(self._tenant_messages))

    def chunk(self, feed: Feed, done: Applied, seconds: float) -> None:
        """A chunk was applied."""
        for outcome in ("applied", "duplicates", "quarantined", "skipped"):
            if count := getattr(done, outcome):
                self._messages.labels(feed, outcome).inc(count)
        for reason, count in done.refused.items():
            self._quarantined.labels(feed, reason).inc(count)
        self._retimed.inc(done.retimed)
        self._late.inc(done.late)
        if moved := done.applied + done.duplicates + done.quarantined:
            self._commits.labels(feed).inc()
            self._seconds.labels(feed).observe(seconds)
            self._sizes.labels(feed).observe(moved)
        self._tenants.add(done.tenants, time.monotonic())

    def database_wait(self) -> None:
        """A chunk waits for the database."""
        self._waits.inc()

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Something that is looked at when asked for."""
        Gauge(f"{PREFIX}_{name}", text, registry=self._registry).set_function(value)

    def counted(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Something that only grows and is counted elsewhere."""

        def collect() -> Metric:
            return CounterMetricFamily(f"{PREFIX}_{name}", text, value())

        self._registry.register(_Labelled(collect))

    def by_partition(self, name: str, text: str, values: Callable[[], Mapping[Partition, float]]) -> None:
        """The same, with a value for each of some partitions."""

        def collect() -> Metric:
            family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=["topic", "partition"])
            for (topic, number), value in sorted(values().items()):
                family.add_metric([topic, str(number)], value)
            return family

        self._registry.register(_Labelled(collect))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)

    def _tenant_messages(self) -> Metric:
        text = "Readable usage messages of the busiest tenants, and of all others together."
        family = CounterMetricFamily(f"{PREFIX}_tenant_messages", text, labels=["tenant"])
        for tenant_id, count in self._tenants.series().items():
            family.add_metric([tenant_id], count)
        return family

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, ["feed"], buckets=buckets, registry=self._registry)


class _Labelled(Collector):
    """One metric that is made when asked for; its labels may come and go."""

    def __init__(self, make: Callable[[], Metric]) -> None:
        self._make = make

    def collect(self) -> Iterable[Metric]:
        """Prometheus' interface."""
        return [self._make()]
