"""What `tollbook events serve` counts, for Prometheus. No tenant labels: their number has no bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class EventMetrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "tollbook_event_requests", "Requests to /v1/events.", ["status"], registry=self._registry
        )
        self._events = Counter(
            "tollbook_event_results", "Events, by result: accepted, or why refused.", ["result"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "tollbook_event_request_seconds", "From a request's head to its answer.", buckets=SECONDS,
            registry=self._registry,
        )  # fmt: skip
        self._by_status: dict[int, Counter] = {}
        self._by_result: dict[str, Counter] = {}

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Something that is looked at when asked for."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def request(self, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        if status not in self._by_status:
            self._by_status[status] = self._requests.labels(str(status))
        self._by_status[status].inc()
        self._seconds.observe(seconds)

    def events(self, result: str, count: int = 1) -> None:
        """Count events of a result."""
        if result not in self._by_result:
            self._by_result[result] = self._events.labels(result)
        self._by_result[result].inc(count)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)
