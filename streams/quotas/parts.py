"""An attempt's way from reservation to confirmation, as one transition function. Pure.

    RESERVED → SETTLED → CONFIRMED      the usual way
    RESERVED → CONFIRMED                its usage event was faster than the settle
    RESERVED → RELEASED → …             the request ended by another attempt, or the deadline passed; usage that is told
                                        later counts all the same
    (nothing) → SETTLED | CONFIRMED     nobody had reserved it

Each step may come twice and in any order; what has come already changes nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from streams.quotas.amounts import Counts
from streams.quotas.entries import Reserved


class State(Enum):
    """Where an attempt stands."""

    UNKNOWN = "unknown"
    RESERVED = "reserved"
    RELEASED = "released"
    SETTLED = "settled"
    CONFIRMED = "confirmed"


class Step(Enum):
    """What may happen to it."""

    RESERVE = "reserve"
    SETTLE = "settle"
    RELEASE = "release"
    CONFIRM = "confirm"


_NEXT: Final = {
    (State.UNKNOWN, Step.RESERVE): State.RESERVED,
    (State.UNKNOWN, Step.SETTLE): State.SETTLED,
    (State.UNKNOWN, Step.CONFIRM): State.CONFIRMED,
    (State.RESERVED, Step.SETTLE): State.SETTLED,
    (State.RESERVED, Step.RELEASE): State.RELEASED,
    (State.RESERVED, Step.CONFIRM): State.CONFIRMED,
    (State.RELEASED, Step.RESERVE): State.RESERVED,
    (State.RELEASED, Step.SETTLE): State.SETTLED,
    (State.RELEASED, Step.CONFIRM): State.CONFIRMED,
    (State.SETTLED, Step.CONFIRM): State.CONFIRMED,
}


def after(state: State, step: Step) -> State:
    """The state after a step: the same where the step has nothing left to do."""
    return _NEXT.get((state, step), state)


class Part:
    """One attempt of a request."""

    __slots__ = ("adapter", "lease_id", "model", "reserved", "settled", "settled_at", "state")

    def __init__(self, model: str, adapter: str) -> None:
        self.model = model
        self.adapter = adapter
        self.state = State.UNKNOWN
        self.reserved: Reserved | None = None
        """As it was admitted; None if nobody asked."""
        self.settled = Counts()
        self.settled_at = 0
        self.lease_id = ""
        """The slice out of which it was admitted elsewhere."""


class Request:
    """A request and its attempts."""

    __slots__ = ("deadline", "ended_at", "in_slot", "parts")

    def __init__(self) -> None:
        self.parts: dict[int, Part] = {}
        self.deadline = 0
        self.in_slot = False
        """Whether it counts as one of the requests in flight."""
        self.ended_at: int | None = None

    @property
    def settling(self) -> bool:
        """Whether usage of it is known that is not confirmed."""
        return any(part.state is State.SETTLED for part in self.parts.values())
