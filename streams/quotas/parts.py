"""An attempt's way from reservation to confirmation, as one transition function. Pure.

    RESERVED → SETTLED → CONFIRMED      the usual way
    RESERVED → CONFIRMED                its usage event was faster than the settle
    RESERVED → RELEASED → …             the request ended by another attempt, or the deadline passed; usage that is told
                                        later counts all the same
    (nothing) → SETTLED | CONFIRMED     nobody had reserved it
    (nothing) → WITHDRAWN               who asked did not wait: that question comes after it, and is too late; another
                                        one for the same attempt is not

Each step may come twice and in any order; what has come already changes nothing.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from streams.quotas.amounts import Counts
from streams.quotas.entries import Reserved


class State(Enum):
    """Where an attempt stands."""

    UNKNOWN = "unknown"
    RESERVED = "reserved"
    RELEASED = "released"
    WITHDRAWN = "withdrawn"
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
    (State.UNKNOWN, Step.RELEASE): State.WITHDRAWN,
    (State.WITHDRAWN, Step.RESERVE): State.RESERVED,
    (State.WITHDRAWN, Step.SETTLE): State.SETTLED,
    (State.WITHDRAWN, Step.CONFIRM): State.CONFIRMED,
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


class Part(msgspec.Struct, gc=False):
    """One attempt of a request. Nothing in it refers back, so that the garbage collector need not look at it."""

    model: str
    adapter: str
    state: State = State.UNKNOWN
    reserved: Reserved | None = None
    """As it was admitted; None if nobody asked."""
    settled: Counts = Counts()
    settled_at: int = 0
    """When its end was told; also of one that no engine saw."""
    withdrawn: str = ""
    """The nonce of the question that was withdrawn last; '': of any."""
    bills: bool = True
    """Whether what was confirmed of it counts in money."""
    lease_id: str = ""
    """The slice out of which it was admitted elsewhere."""
    is_charged_whole: bool = False
    """Whether rates are charged the most that it might use, as nobody has told what it has."""
    is_uncharged: bool = False
    """Whether it was told to have ended and nobody knew it: rates wait for whether its event was counted before. They
    had it then, if it was admitted; else they leave it be."""
    is_finding: bool = False
    """Whether it was noted that its usage event is overdue."""

    @property
    def may_be_told_late(self) -> bool:
        """Whether it was reserved and nobody has told what became of it: its deadline passed, or its request ended by
        another attempt."""
        return self.state is State.RELEASED and self.reserved is not None and not self.settled_at

    def bars(self, nonce: str) -> bool:
        """Whether a question comes after it was withdrawn."""
        return nonce == self.withdrawn if self.withdrawn else self.state is State.WITHDRAWN


class Request(msgspec.Struct, gc=False):
    """A request and its attempts."""

    parts: dict[int, Part] = {}
    deadline: int = 0
    in_slot: bool = False
    """Whether it counts as one of the requests in flight."""
    ended_at: int | None = None
    state_no: int = 0
    """The state of its book that it was last written down in, or came too late for."""

    @property
    def may_be_told_late(self) -> bool:
        """Whether an event of it may come long after its end."""
        return any(part.may_be_told_late for part in self.parts.values())

    @property
    def is_running(self) -> bool:
        """Whether an attempt of it may be at work."""
        return any(part.state is State.RESERVED for part in self.parts.values())

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.ended_at is not None and all(
            part.state is State.CONFIRMED and not part.is_uncharged for part in self.parts.values()
        )
