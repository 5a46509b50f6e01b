"""Processes that decide out of slices, in virtual time: they go on while the service is away, and crash too."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final, NamedTuple

from serving_adapter.quota import slices
from streams.quotas.entries import Leased, Returned
from streams.quotas.granting import Slice, grant
from streams.quotas.held import Held
from streams.quotas.lease_calls import PARTS
from tests.simulation.played_service import PlayedService

SECOND: Final = 1_000_000
SLICE_US: Final = 2 * SECOND
"""How long a slice is granted for."""
CRASHES: Final = 0.0005
"""How often a holder is gone in one turn, with what it held."""


class Key(NamedTuple):
    """Whose slice, of what, in which process."""

    tenant: str
    model: str
    holder: int = 0


class Holders:
    """All slices. `told` hears of each entry about one."""

    def __init__(
        self, service: PlayedService, rng: Random, size: Slice, told: Callable[[Leased | Returned], None] | None = None
    ) -> None:
        self._service = service
        self._rng = rng
        self._size = size
        self._told = told
        self._slices: dict[Key, slices.Slice] = {}
        self._out_of: dict[tuple[str, int], slices.Slice] = {}
        """By request and attempt: the slice that it was admitted out of."""
        self._busy: dict[Key, None] = {}
        """Who asked the service since the last turn."""
        self._no = 0

    def admit(self, key: Key, request_id: str, attempt: int, input_tokens: int, cap: int, now: int) -> bool:
        """Take a request's bound out of the slice; False if the service has to be asked."""
        held = self._slices.get(key)
        if held is not None and held.admit(request_id, attempt, input_tokens, cap, now / SECOND):
            self._out_of[request_id, attempt] = held
            return True
        self._busy[key] = None
        return False

    def settle(self, request_id: str, attempt: int, input_tokens: int, output: int) -> tuple[str, int]:
        """The slice out of which it was admitted, and its settlement's number in it; ('', 0) of others."""
        held = self._out_of.get((request_id, attempt))
        if held is None or not held.settle(request_id, attempt, input_tokens, output):
            return "", 0
        held.settled_no += 1
        return held.lease_id, held.settled_no

    def turn(self, now: int) -> None:
        """Renew slices that are used, give back those that are over, ask for those who are busy; some crash."""
        for key, held in list(self._slices.items()):
            if self._rng.random() < CRASHES or now / SECOND > held.until + 60:
                del self._slices[key]  # nobody gives back what is left of it
            elif held.used_requests:
                held.used_requests = 0
                self._lease(key, held, now)
            elif now / SECOND >= held.until and not held.in_flight:
                del self._slices[key]
                unused = (max(each, 0) for each in _left(held))
                self._tell(Returned(key.tenant, held.lease_id, now, *unused, closed=True))
        for key in self._busy:
            if key not in self._slices:
                self._lease(key, None, now)
        self._busy.clear()

    def _lease(self, key: Key, held: slices.Slice | None, now: int) -> None:
        """As the service grants a slice, or adds to one."""
        ready = self._service.shard.ready(key.tenant, now)
        if not isinstance(ready, Held) or (held is not None and ready.book.leases.get(held.lease_id) is None):
            return
        left = Slice() if held is None else _left(held)
        want = Slice(*(max(a - b, 0) for a, b in zip(self._size, left, strict=True)))
        holders = ready.book.leases.holders()
        holder = f"{key.tenant}/{key.holder}"
        holders += not any(lease.holder == holder for lease in ready.book.leases.all().values())
        got = grant(ready.book, key.model, "", want, now, PARTS * holders)
        if not any(got):
            return
        if held is None:
            self._no += 1
            held = self._slices[key] = slices.Slice(f"{key.tenant}~{self._no}", 0)
        until = now + SLICE_US
        held_until = until + self._service.limits.held_us
        self._tell(Leased(key.tenant, held.lease_id, holder, now, key.model, "", *got, held_until=held_until))
        held.add(*got, until / SECOND)

    def _tell(self, entry: Leased | Returned) -> None:
        self._service.lease(entry)
        if self._told is not None:
            self._told(entry)


def _left(held: slices.Slice) -> Slice:
    return Slice(held.requests, held.input_tokens, held.output_tokens, held.slots)
