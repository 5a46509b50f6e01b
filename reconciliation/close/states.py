"""The states of a close, of billing accounts and of the book above them, and what leads from one to the next."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from reconciliation.errors import CloseRefused


class State(StrEnum):
    """Where a billing account's month stands, or a legal entity's book (which is open or closed)."""

    OPEN = "open"
    COLLECTING = "collecting"
    FROZEN = "frozen"
    DRAFTED = "drafted"
    RECONCILED = "reconciled"
    APPROVED = "approved"
    FINALIZED = "finalized"
    CLOSED = "closed"
    PARKED = "parked"


class Event(StrEnum):
    """What can happen to it."""

    COLLECT = "collect"
    FREEZE = "freeze"
    DRAFT = "draft"
    RECONCILE = "reconcile"
    APPROVE = "approve"
    FINALIZE = "finalize"
    CLOSE = "close"
    PARK = "park"
    RELEASE = "release"
    RETURN = "return"
    REOPEN = "reopen"


_NEXT: Final = {
    (State.OPEN, Event.COLLECT): State.COLLECTING,
    (State.COLLECTING, Event.FREEZE): State.FROZEN,
    (State.FROZEN, Event.DRAFT): State.DRAFTED,
    (State.DRAFTED, Event.RECONCILE): State.RECONCILED,
    (State.RECONCILED, Event.APPROVE): State.APPROVED,
    (State.APPROVED, Event.FINALIZE): State.FINALIZED,
    (State.FINALIZED, Event.CLOSE): State.CLOSED,
    # Not what was signed any more: it is reconciled, and approved, once more
    (State.APPROVED, Event.RETURN): State.DRAFTED,
    **{
        (state, Event.PARK): State.PARKED
        for state in (State.COLLECTING, State.FROZEN, State.DRAFTED, State.RECONCILED, State.APPROVED, State.FINALIZED)
    },
    **{
        (state, Event.REOPEN): State.COLLECTING
        for state in (State.FROZEN, State.DRAFTED, State.RECONCILED, State.APPROVED, State.CLOSED, State.PARKED)
    },
}
_OF_BOOKS: Final = {(State.OPEN, Event.CLOSE): State.CLOSED}

CUT: Final = frozenset({State.FROZEN, State.DRAFTED, State.RECONCILED, State.APPROVED, State.FINALIZED})
"""States of an account whose usage is cut and that is not closed: what comes now is late, and is rated after it."""

PREPARING: Final = frozenset({Event.COLLECT, Event.FREEZE, Event.DRAFT, Event.RECONCILE})
"""Who does one of these to an account has prepared it, and does not approve it."""


def after(state: State, event: Event, *, parked_from: State | None = None) -> State:
    """The state of an account that an event leads to. Released, it is where it was parked. Raises CloseRefused."""
    if (state, event) == (State.PARKED, Event.RELEASE) and parked_from is not None:
        return parked_from
    try:
        return _NEXT[state, event]
    except KeyError:
        raise CloseRefused(f"an account that is {state} cannot {event}") from None


def book_after(state: State, event: Event) -> State:
    """The state of a book that an event leads to: it is closed once, and for good. Raises CloseRefused."""
    try:
        return _OF_BOOKS[state, event]
    except KeyError:
        raise CloseRefused(f"a book that is {state} cannot {event}") from None
