"""A tenant's slices that are decided upon elsewhere: what of its quotas they hold. Pure.

A slice holds units of each meter that covers its model and adapter. What a request out of it has used leaves the slice
when it is settled; what is left comes back when the holder returns it, or at `held_until`, when nothing that was
admitted out of it can still run (docs/spec/metering.md 7.6).
"""

from __future__ import annotations

from collections.abc import Iterator

from streams.quotas.amounts import Counts, amount
from streams.quotas.entries import Leased, Returned
from streams.quotas.meter_set import MeterSet
from streams.quotas.meters import Meter, SlotMeter


class Lease:
    """One slice: what is left of it."""

    __slots__ = ("adapter", "at", "held_until", "holder", "input_tokens", "model", "output_tokens", "requests", "slots")

    def __init__(self, entry: Leased) -> None:
        self.holder = entry.holder
        self.model = entry.model
        self.adapter = entry.adapter
        self.at = entry.at
        """When it was last changed; prices are those of then."""
        self.held_until = entry.held_until
        self.requests = self.input_tokens = self.output_tokens = self.slots = 0

    def counts(self) -> Counts:
        """What is left, as usage that it may become."""
        return Counts(self.requests, self.input_tokens, 0, self.output_tokens)


class LeaseBook:
    """All slices of a tenant."""

    def __init__(self) -> None:
        self._leases: dict[str, Lease] = {}

    @property
    def any_open(self) -> bool:
        """Whether anything is decided elsewhere."""
        return bool(self._leases)

    def get(self, lease_id: str) -> Lease | None:
        """A slice that holds anything yet."""
        return self._leases.get(lease_id)

    def all(self) -> dict[str, Lease]:
        """Every slice by its id."""
        return self._leases

    def holders(self) -> int:
        """How many hold slices."""
        return len({lease.holder for lease in self._leases.values()})

    def apply(self, entry: Leased | Returned, meters: MeterSet) -> Iterator[tuple[Meter, int]]:
        """Take an entry; yields what each meter holds more (or, below 0, less)."""
        lease = self._leases.get(entry.lease_id)
        if isinstance(entry, Leased):
            if lease is None:
                lease = self._leases[entry.lease_id] = Lease(entry)
            elif entry.at <= lease.at:
                return  # told twice
            sign = 1
        elif lease is None or entry.at <= lease.at:
            return
        else:
            sign = -1
        before = list(self._units(lease, meters))
        lease.at = entry.at
        if isinstance(entry, Leased):
            lease.held_until = max(entry.held_until, lease.held_until)
        lease.requests = max(lease.requests + sign * entry.requests, 0)
        lease.input_tokens = max(lease.input_tokens + sign * entry.input_tokens, 0)
        lease.output_tokens = max(lease.output_tokens + sign * entry.output_tokens, 0)
        lease.slots = max(lease.slots + sign * entry.slots, 0)
        if isinstance(entry, Returned) and entry.closed:
            lease.requests = lease.input_tokens = lease.output_tokens = lease.slots = 0
            del self._leases[entry.lease_id]
        yield from self._difference(before, lease, meters)

    def use(self, lease_id: str, used: Counts, meters: MeterSet) -> Iterator[tuple[Meter, int]]:
        """What a request out of a slice has used leaves it; yields what each meter holds less."""
        lease = self._leases.get(lease_id)
        if lease is None:
            return
        before = list(self._units(lease, meters))
        lease.requests = max(lease.requests - used.requests, 0)
        lease.input_tokens = max(lease.input_tokens - used.input_tokens, 0)
        lease.output_tokens = max(lease.output_tokens - used.output_tokens, 0)
        yield from self._difference(before, lease, meters)

    def expire(self, now: int, meters: MeterSet) -> list[tuple[Meter, int]]:
        """Take back what is held no longer."""
        found: list[tuple[Meter, int]] = []
        for lease_id in [each for each, lease in self._leases.items() if lease.held_until <= now]:
            found += [(meter, -units) for meter, units in self._units(self._leases.pop(lease_id), meters)]
        return found

    def held(self, meters: MeterSet) -> Iterator[tuple[Meter, int]]:
        """What each meter holds for slices."""
        for lease in self._leases.values():
            yield from self._units(lease, meters)

    def _difference(
        self, before: list[tuple[Meter, int]], lease: Lease, meters: MeterSet
    ) -> Iterator[tuple[Meter, int]]:  # fmt: skip
        for (meter, was), (_, units) in zip(before, self._units(lease, meters), strict=True):
            yield meter, units - was

    @staticmethod
    def _units(lease: Lease, meters: MeterSet) -> Iterator[tuple[Meter, int]]:
        price = meters.prices.at(lease.model, lease.at)
        for meter in meters.of(lease.model, lease.adapter):
            metric = meter.quota.metric
            if isinstance(meter, SlotMeter):
                yield meter, lease.slots
            elif metric == "cached_input_tokens":
                yield meter, lease.input_tokens
            elif metric == "spend":
                dearest = price._replace(input=max(price.input, price.cached_input))
                yield meter, dearest.of(lease.counts())
            else:
                yield meter, amount(metric, lease.counts(), price)
