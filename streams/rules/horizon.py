"""How late an event may come, and how long its identity is kept (docs/spec/metering.md 4.2): values in, values out.

Too old is judged against the broker's append time, so that a log that is read again gives the same answers. What was
forgotten or sealed in this database is refused whatever the append time: an identity that is gone must not count again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from streams.rules.chunks import Accepted, Refused
from streams.rules.identity_keys import minted

SHORTEST: Final = timedelta(days=45)
"""The horizon, and the shortest that may be set."""
KEPT_LONGER: Final = timedelta(minutes=5)
"""Keys outlive the horizon by this, so that no forgotten one can be accepted."""

ATTEMPTS_APART: Final = timedelta(days=7)
"""Attempts of one request are told within this: which of them bills is decided over all (docs/spec/money.md 2)."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def minted_at(request_id: str) -> datetime | None:
    """When a UUIDv7 was minted, to the millisecond; None for any other id."""
    time = minted(request_id)
    return None if time is None else _EPOCH + timedelta(milliseconds=int.from_bytes(time))


def identified_at(request_id: str, completed_at: datetime) -> datetime:
    """The time by which an identity ages: when its UUIDv7 was minted, else its completion.

    The database says the same in SQL: `usage.identified_at`.
    """
    return minted_at(request_id) or completed_at


class TooOld(NamedTuple):
    """A message from behind the horizon, and in words why it is."""

    message: Accepted
    why: str

    @property
    def refused(self) -> Refused:
        """The message for the quarantine."""
        event = self.message.event
        return Refused(self.message.record, "too_old", self.why, event.tenant_id, event)


@dataclass(frozen=True, slots=True)
class Horizon:
    """What decides whether an event is too old. Without a closed period nothing is."""

    length: timedelta = SHORTEST
    closed_before: datetime | None = None
    """All periods before this are closed: the horizon is never shorter than the oldest that is not."""
    forgotten_before: datetime | None = None
    """Identities from before this may be gone."""
    sealed_before: datetime | None = None
    """Raw events from before this are archived, or about to be: nothing is added to their time any more."""

    @property
    def is_open(self) -> bool:
        """Whether nothing can be too old."""
        return self.closed_before is None and self.forgotten_before is None and self.sealed_before is None

    def why_too_old(self, request_id: str, completed_at: datetime, appended_at: datetime) -> str | None:
        """In words, why an event may not enter, or None if it may."""
        at = identified_at(request_id, completed_at)
        if self.closed_before is not None and at < (bound := min(appended_at - self.length, self.closed_before)):
            return f"{at.isoformat()} lies before the horizon, {bound.isoformat()}"
        if self.forgotten_before is not None and at < self.forgotten_before:
            return (
                f"{at.isoformat()} lies before {self.forgotten_before.isoformat()}: identities from then are forgotten"
            )
        if self.sealed_before is not None and completed_at < self.sealed_before:
            return f"{completed_at.isoformat()} lies before {self.sealed_before.isoformat()}: that time is archived"
        return None

    def sift(self, messages: list[Accepted]) -> tuple[list[Accepted], list[TooOld]]:
        """Part messages into those that may enter and those that are `too_old`."""
        if self.is_open:
            return messages, []
        kept: list[Accepted] = []
        too_old: list[TooOld] = []
        for message in messages:
            event = message.event
            why = self.why_too_old(event.request_id, message.completed_at, message.record.appended_at)
            if why is None:
                kept.append(message)
            else:
                too_old.append(TooOld(message, why))
        return kept, too_old

    def forget_before(self, now: datetime) -> datetime | None:
        """Up to when identities may be forgotten at `now`; None while no period is closed. It never moves back."""
        if self.closed_before is None:
            return self.forgotten_before
        bound = min(now - self.length, self.closed_before) - KEPT_LONGER
        return bound if self.forgotten_before is None else max(bound, self.forgotten_before)
