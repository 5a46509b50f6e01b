"""A tenant's slices that are decided upon elsewhere: what of its quotas they hold. Pure.

A slice holds units of each meter that covers its model and adapter; of all, where it is for any model. What a request
out of it has used leaves the slice when it is settled; what is left comes back when the holder returns it, or at
`held_until`, when nothing that was admitted out of it can still run (docs/spec/metering.md 7.6). Rates are charged when
it is granted, and corrected at that time for what comes back; of what a process that is gone may have answered nothing
comes back to them, as nobody can tell what was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Final

from serving_adapter.quota.groups import LEASE_MARK
from streams.quotas.amounts import FREE, Counts, amount
from streams.quotas.entries import Leased, Returned
from streams.quotas.meter_set import MeterSet
from streams.quotas.meters import Meter, RateMeter, SlotMeter

GRANTS_KEPT: Final = 64
"""Of a slice: rates are not corrected for what was granted before them."""

ESCROW: Final = f"{LEASE_MARK}escrow"
"""The service's own slice (`escrow.py`), which holds nothing: no caller's, as these begin with their tenant's name."""
LOST: Final = f"{LEASE_MARK}lost."
"""What may have been answered out of it and never written, of a process that is gone; with the time of the takeover."""
OWN: Final = ""
"""The holder of both."""

Change = tuple[Meter, int, int]
"""A meter, how much more (or, below 0, less) of it slices hold, and when that was granted."""


class Lease:
    """One slice: what is left of it."""

    __slots__ = ("adapter", "at", "drawn", "grants", "held_until", "holder", "input_tokens", "is_escrow", "is_returned",
                 "model", "output_tokens", "requests", "slots")  # fmt: skip

    def __init__(self, entry: Leased) -> None:
        self.is_escrow = entry.lease_id == ESCROW
        self.holder = entry.holder
        self.model = entry.model
        self.adapter = entry.adapter
        self.at = entry.at
        """When it was last changed; prices are those of then."""
        self.held_until = entry.held_until
        self.drawn = entry.drawn
        """The last settlement that left it."""
        self.is_returned = False
        """Whether what was left of it came back since the last grant: told again, that takes nothing more."""
        self.grants: deque[tuple[int, Counts]] = deque(maxlen=GRANTS_KEPT)
        """When what was granted, oldest first."""
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
        return len(self._leases) > (ESCROW in self._leases)

    def get(self, lease_id: str) -> Lease | None:
        """A slice that holds anything yet."""
        return self._leases.get(lease_id)

    def all(self) -> dict[str, Lease]:
        """Every slice by its id."""
        return self._leases

    def holders(self) -> int:
        """How many hold slices, beside the service itself."""
        return len({lease.holder for lease in self._leases.values() if lease.holder != OWN})

    def apply(self, entry: Leased | Returned, meters: MeterSet) -> Iterator[Change]:
        """Take an entry; yields what each meter holds more (or, below 0, less)."""
        lease = self._leases.get(entry.lease_id)
        if isinstance(entry, Leased):
            if lease is None:
                lease = self._leases[entry.lease_id] = Lease(entry)
            elif entry.at <= lease.at:
                return  # told twice
            sign = 1
        elif lease is None or entry.at <= lease.at or (lease.is_returned and not entry.closed):
            return
        else:
            sign = -1
        before = list(self._units(lease, meters))
        moved = Counts(entry.requests, entry.input_tokens, 0, entry.output_tokens)
        lease.at = entry.at
        lease.is_returned = isinstance(entry, Returned) or entry.is_returned
        if isinstance(entry, Leased):
            lease.held_until = max(entry.held_until, lease.held_until)
            if not lease.is_escrow:
                if not entry.lease_id.startswith(LOST):  # whatever was answered out of that is charged by it alone
                    lease.grants.append((entry.at, moved))
                yield from _of_rates(lease, moved, +1, entry.at, meters)
        else:
            yield from _back(lease, moved, meters)
        lease.requests = max(lease.requests + sign * entry.requests, 0)
        lease.input_tokens = max(lease.input_tokens + sign * entry.input_tokens, 0)
        lease.output_tokens = max(lease.output_tokens + sign * entry.output_tokens, 0)
        lease.slots = max(lease.slots + sign * entry.slots, 0)
        if isinstance(entry, Returned) and entry.closed:
            lease.requests = lease.input_tokens = lease.output_tokens = lease.slots = 0
            del self._leases[entry.lease_id]
        yield from self._difference(before, lease, meters)

    def use(self, lease_id: str, no: int, used: Counts, meters: MeterSet) -> Iterator[Change]:
        """What a request out of a slice has used leaves it; yields what each meter holds less. Once for each number."""
        lease = self._leases.get(lease_id)
        if lease is None or 0 < no <= lease.drawn:
            return
        before = list(self._units(lease, meters))
        lease.drawn = max(no, lease.drawn)
        lease.requests = max(lease.requests - used.requests, 0)
        lease.input_tokens = max(lease.input_tokens - used.input_tokens, 0)
        lease.output_tokens = max(lease.output_tokens - used.output_tokens, 0)
        yield from self._difference(before, lease, meters)

    def expire(self, now: int, meters: MeterSet) -> list[Change]:
        """Take back what is held no longer."""
        found: list[Change] = []
        for lease_id in [each for each, lease in self._leases.items() if lease.held_until <= now]:
            lease = self._leases.pop(lease_id)
            found += _back(lease, lease.counts(), meters)
            found += [(meter, -units, now) for meter, units in self._units(lease, meters)]
        return found

    def shift(self, by_us: int) -> None:
        """Hold everything so much longer."""
        for lease in self._leases.values():
            lease.held_until += by_us

    def held(self, meters: MeterSet) -> Iterator[tuple[Meter, int]]:
        """What each meter holds for slices."""
        for lease in self._leases.values():
            yield from self._units(lease, meters)

    def _difference(self, before: list[tuple[Meter, int]], lease: Lease, meters: MeterSet) -> Iterator[Change]:
        for (meter, was), (_, units) in zip(before, self._units(lease, meters), strict=True):
            yield meter, units - was, lease.at

    @staticmethod
    def _units(lease: Lease, meters: MeterSet) -> Iterator[tuple[Meter, int]]:
        if lease.is_escrow:
            return  # what is answered out of it is held by itself
        price = meters.highest_price_of_slice(lease.model, lease.at)
        for meter in meters.of(lease.model, lease.adapter):
            metric = meter.quota.metric
            if isinstance(meter, RateMeter):
                continue  # charged, and held by nobody
            if isinstance(meter, SlotMeter):
                yield meter, lease.slots
            elif metric == "cached_input_tokens":
                yield meter, lease.input_tokens
            elif metric == "spend":
                dearest = price._replace(input=max(price.input, price.cached_input))
                yield meter, dearest.of(lease.counts())
            else:
                yield meter, amount(metric, lease.counts(), price)


def _of_rates(lease: Lease, moved: Counts, sign: int, at: int, meters: MeterSet) -> Iterator[Change]:
    """What some counts are in the rates that cover a slice."""
    counts = moved._replace(cached_tokens=moved.input_tokens)
    for meter in meters.covering(lease.model, lease.adapter).rates:
        yield meter, sign * amount(meter.quota.metric, counts, FREE), at


def _back(lease: Lease, moved: Counts, meters: MeterSet) -> Iterator[Change]:
    """What comes back of a slice, at the times at which it was granted: the newest first, as the oldest was used."""
    while lease.grants and any(moved):
        at, granted = lease.grants.pop()
        part = Counts(*map(min, zip(moved, granted, strict=True)))
        moved = Counts(*(whole - less for whole, less in zip(moved, part, strict=True)))
        if part != granted and not any(moved):
            lease.grants.append((at, Counts(*(whole - less for whole, less in zip(granted, part, strict=True)))))
        yield from _of_rates(lease, part, -1, at, meters)
