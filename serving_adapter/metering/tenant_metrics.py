"""Per-tenant figures in Prometheus' text format, put behind the engine's own page. No clock, nothing read or sent.

At most so many tenants have series of their own; the others share `_other`, and their number is told.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from serving_adapter.events import UsageEvent
from serving_adapter.metering.counts import OnGap

MOST_TENANTS: Final = 1000
"""Each has some 60 series."""
OTHERS: Final = "_other"
MOST_OTHERS: Final = 100_000
"""Counted no further: some MB."""
TTFT_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
GAP_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """Cumulative counts over fixed bounds, in seconds."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """One value more, or so many like it."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.total += seconds * times

    def lines(self, name: str, labels: str) -> Iterable[str]:
        """Its samples."""
        below = 0
        for bound, found in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            below += found
            yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
        yield f"{name}_sum{{{labels}}} {self.total:.6f}"
        yield f"{name}_count{{{labels}}} {below}"


class TenantMetrics:
    """What this process has served, by tenant."""

    def __init__(self, replica_id: str, boot_id: str, most_tenants: int = MOST_TENANTS) -> None:
        self._about = f'boot_id="{_escaped(boot_id)}",replica_id="{_escaped(replica_id)}"'
        self._most = most_tenants
        self._tenants: set[str] = set()
        self._others: set[str] = set()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._gpu_us: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[tuple[str, str]] = Counter()
        self._uncounted: Counter[tuple[str]] = Counter()
        self._in_flight: Counter[str] = Counter()
        self.adapter_failures = 0
        """Adapters that could not be loaded or answered no first request."""
        self.isolation_stopped = 0
        """Sequences that would have crossed tenants."""
        self.unowned_gpu_us = 0
        """GPU time of sequences that nobody here knows."""
        self.beside: list[Callable[[], str]] = []
        """Further parts of the page."""
        self._engine_gpu: tuple[int, int, int] | None = None
        self._ttft: dict[str, Histogram] = {}
        self._gap: dict[str, Histogram] = {}

    def began(self, tenant_id: str) -> None:
        """A request is in flight."""
        self._in_flight[self._named(tenant_id)] += 1

    def ended(self, event: UsageEvent) -> None:
        """And is over."""
        tenant = self._named(event.tenant_id)
        self._in_flight[tenant] -= 1
        self._requests[tenant, event.model, event.status] += 1
        self._uncounted[(tenant,)] += event.usage_source == "estimate"
        self._tokens[tenant, event.model, "input"] += event.input_tokens - event.cache_hit_tokens
        self._tokens[tenant, event.model, "cached_input"] += event.cache_hit_tokens
        self._tokens[tenant, event.model, "output"] += event.output_tokens
        self._gpu_us[tenant, event.model] += event.gpu_us

    def gpu(self, event: UsageEvent, gpu_us: int) -> None:
        """GPU time that was known only after its event."""
        self._gpu_us[self._named(event.tenant_id), event.model] += gpu_us

    def engine_gpu(self, busy_us: int, since_us: int, gpus: int) -> None:
        """What the engine was busy for in all, since when (monotonic), on how many GPUs."""
        self._engine_gpu = (busy_us, since_us, gpus)

    def refused(self, tenant_id: str, why: str) -> None:
        """A request that never reached the engine; of nobody known: `""`."""
        self._refused[self._named(tenant_id), why] += 1

    def first_token(self, tenant_id: str, seconds: float) -> None:
        """How soon an attempt's first token came."""
        self._histogram(self._ttft, tenant_id, TTFT_BUCKETS).observe(seconds)

    def on_gap(self, tenant_id: str) -> OnGap:
        """Hears how long each further token of a tenant's sequences took."""
        return self._histogram(self._gap, tenant_id, GAP_BUCKETS).observe

    def page(self, now_us: int = 0) -> str:
        """All of it, at this time of the machine's monotonic clock."""
        lines = ["# TYPE tollbook_boot_info gauge", f"tollbook_boot_info{{{self._about}}} 1"]
        lines += ["# TYPE tollbook_adapter_load_failures_total counter"]
        lines += [f"tollbook_adapter_load_failures_total {self.adapter_failures}"]
        lines += ["# TYPE tollbook_isolation_stopped_total counter"]
        lines += [f"tollbook_isolation_stopped_total {self.isolation_stopped}"]
        lines += ["# TYPE tollbook_other_tenants gauge", f"tollbook_other_tenants {len(self._others)}"]
        lines += _samples("tenant_requests_total", "counter", ("tenant", "model", "status"), self._requests)
        lines += _samples("tenant_tokens_total", "counter", ("tenant", "model", "class"), self._tokens)
        gpu = {key: us / 1e6 for key, us in self._gpu_us.items()}
        lines += _samples("tenant_gpu_compute_seconds_total", "counter", ("tenant", "model"), gpu)
        if self._engine_gpu is not None:
            busy_us, since_us, gpus = self._engine_gpu
            idle_us = max(0, (now_us - since_us) * gpus - busy_us)
            for name, us in (("busy", busy_us), ("idle", idle_us), ("unowned", self.unowned_gpu_us)):
                lines += [f"# TYPE engine_gpu_{name}_seconds_total counter"]
                lines += [f"engine_gpu_{name}_seconds_total {us / 1e6:.6f}"]
        lines += _samples("tenant_refused_total", "counter", ("tenant", "reason"), self._refused)
        uncounted = {tenant: number for tenant, number in self._uncounted.items() if number}
        lines += _samples("tenant_uncounted_total", "counter", ("tenant",), uncounted)
        in_flight = {(tenant,): number for tenant, number in self._in_flight.items()}
        lines += _samples("tenant_in_flight", "gauge", ("tenant",), in_flight)
        for name, found in (
            ("tenant_time_to_first_token_seconds", self._ttft),
            ("tenant_inter_token_latency_seconds", self._gap),
        ):
            lines.append(f"# TYPE {name} histogram")
            for tenant, histogram in found.items():
                lines += histogram.lines(name, f'tenant="{_escaped(tenant)}"')
        return "\n".join(lines) + "\n" + "".join(part() for part in self.beside)

    def _named(self, tenant_id: str) -> str:
        if tenant_id in self._tenants:
            return tenant_id
        if len(self._tenants) >= self._most:
            if len(self._others) < MOST_OTHERS:
                self._others.add(tenant_id)
            return OTHERS
        self._tenants.add(tenant_id)
        return tenant_id

    def _histogram(self, found: dict[str, Histogram], tenant_id: str, bounds: tuple[float, ...]) -> Histogram:
        tenant = self._named(tenant_id)
        histogram = found.get(tenant)
        if histogram is None:
            histogram = found[tenant] = Histogram(bounds)
        return histogram


def _samples(name: str, kind: str, labels: tuple[str, ...], values: Mapping[Any, float]) -> list[str]:
    lines = [f"# TYPE {name} {kind}"]
    for key, value in values.items():
        named = ",".join(f'{label}="{_escaped(part)}"' for label, part in zip(labels, key, strict=True))
        lines.append(f"{name}{{{named}}} {value}")
    return lines


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
