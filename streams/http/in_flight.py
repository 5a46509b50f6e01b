"""How much may be in flight at once, of all emitters together and of each: values, without a lock, for one event loop.

What is counted has really arrived: a request that announces a body, or begins one and goes silent, takes the room of
what it has sent, not of what it might. No emitter can take more than its share, however slow or fast it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple


class Load(NamedTuple):
    """What requests take: their number, bytes of their bodies, events that Kafka has not acknowledged."""

    requests: int = 0
    size: int = 0
    events: int = 0


class NoRoom(Exception):
    """It does not fit now; whose bound was reached is in the text."""


class InFlight:
    """What is in flight now. `at_most` bounds all of it, `of_one` what belongs to one key."""

    def __init__(self, at_most: Load, of_one: Load) -> None:
        self._at_most: Final = at_most
        self._of_one: Final = of_one
        self._all: Counter[str] = Counter()
        self._by_key: dict[str, Counter[str]] = {}

    @property
    def load(self) -> Load:
        """What is in flight now, of all keys."""
        return Load(**self._all)

    @contextmanager
    def request(self, key_id: str) -> Iterator[Place]:
        """A request's place inside the block, for as much as it takes meanwhile. Raises NoRoom."""
        place = Place(self, key_id)
        try:
            place.take(requests=1)
            yield place
        finally:
            self._move(key_id, {name: -amount for name, amount in place.taken.items()})

    def _take(self, key_id: str, more: dict[str, int]) -> None:
        mine = self._by_key.get(key_id, Counter())
        for name, amount in more.items():
            if mine[name] + amount > getattr(self._of_one, name):
                raise NoRoom(f"too much of this key's is in flight (its share: {getattr(self._of_one, name)} {name})")
            if self._all[name] + amount > getattr(self._at_most, name):
                raise NoRoom("too much is in flight")
        self._move(key_id, more)

    def _move(self, key_id: str, by: dict[str, int]) -> None:
        mine = self._by_key.setdefault(key_id, Counter())
        for counts in (self._all, mine):
            counts.update(by)
        if not any(mine.values()):
            del self._by_key[key_id]


class Place:
    """What one request has taken."""

    def __init__(self, room: InFlight, key_id: str) -> None:
        self._room = room
        self._key_id = key_id
        self.taken: Counter[str] = Counter()

    def take(self, **more: int) -> None:
        """Take more, in the units of Load, until the request ends. Raises NoRoom, and takes nothing then."""
        self._room._take(self._key_id, more)
        self.taken.update(more)
