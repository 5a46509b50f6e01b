"""When a tenant's requests have to be looked at again: a wheel of 20 ms, so that not all of a second's are due at once.
Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from streams.quotas.held import Held

AT_A_TIME: Final = 300
"""Requests in one turn, so that callers do not wait for many deadlines that pass together."""
_SLOT_US: Final = 20_000


class Deadlines:
    """Requests by the slot of time in which to look at them."""

    def __init__(self, after_us: int) -> None:
        self._after = after_us // _SLOT_US + 1
        """How long after it came a request is first looked at, in slots."""
        self._wheel: dict[int, dict[Held, list[str]]] = defaultdict(dict)
        self._at = 0

    def start(self, now: int) -> None:
        """Time begins."""
        self._at = now // _SLOT_US

    def watch(self, held: Held) -> None:
        """A tenant's new requests are looked at after a while."""
        if held.book.new_requests:
            self._wheel[self._at + self._after].setdefault(held, []).extend(held.book.new_requests)
            held.book.new_requests.clear()

    def again(self, held: Held, request_id: str, at: int) -> None:
        """Look at a request at a time, or in the next slot if that has come."""
        self._wheel[max(at // _SLOT_US, self._at) + 1].setdefault(held, []).append(request_id)

    def due(self, now: int) -> Iterator[tuple[Held, str]]:
        """Requests whose slot has come, so many at a time; the others in the next turn."""
        slot = now // _SLOT_US
        if not self._at:
            self._at = slot
        left = AT_A_TIME
        while self._at <= slot:
            waiting = self._wheel.get(self._at, {})
            while waiting:
                held, request_ids = next(iter(waiting.items()))
                while request_ids:
                    if not left:
                        return
                    left -= 1
                    yield held, request_ids.pop()
                del waiting[held]
            self._wheel.pop(self._at, None)
            self._at += 1
            if slot - self._at > len(self._wheel):  # the clock has stepped, or a turn came late
                self._at = min((each for each in self._wheel if self._at <= each <= slot), default=slot)
