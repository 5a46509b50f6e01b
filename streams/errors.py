"""Errors of the streams. Each text says what to do."""

from __future__ import annotations


class StreamsError(Exception):
    """Base of this folder's errors."""


class DatabaseUnavailable(StreamsError):
    """PostgreSQL cannot be reached, or lacks what is needed."""


class RoleRefused(StreamsError):
    """The application's database role is missing, and this login may not make it."""


class SchemaInTheWay(StreamsError):
    """A schema of the same name that somebody else has made."""


class SchemaOutdated(StreamsError):
    """The database's schema is not the one this version was written for."""


class PositionGap(StreamsError):
    """A chunk begins after the next position of its source, or skips one within: applying it would lose messages."""

    def __init__(self, source: str, expected: int, found: int) -> None:
        super().__init__(f"{source}: expected position {expected}, got {found}")
        self.source = source
        self.expected = expected
        self.found = found


class SpreadTooFar(StreamsError):
    """A chunk's events lie in too many different hours for one transaction."""


class SourceChanged(StreamsError):
    """The partition is not the one whose position is stored: its topic was recreated, or the broker is another."""

    def __init__(self, source: str, what: str, stored: str, found: str) -> None:
        super().__init__(f"{source}: {what} was {stored}, now {found}: the stored position says nothing about this log")
        self.source = source


class LeaderChanged(StreamsError):
    """The partition has had another leader since: what was fetched before may not be in its log any more."""

    def __init__(self, source: str, known: int, found: int) -> None:
        super().__init__(f"{source}: fetched by leader epoch {known}, compared by {found}: it is to be fetched again")


class SourceStopped(StreamsError):
    """The source was left standing until a person has looked at it, or another took its place."""

    def __init__(self, source: str, why: str) -> None:
        super().__init__(f"{source} stands still: {why}")
        self.why = why


class WorkerCrashed(StreamsError):
    """The worker ended by an unforeseen error. What it had committed is complete; starting it again is safe."""


class UnknownBoot(StreamsError):
    """A boot of which nothing was ever heard."""


class CannotResolve(StreamsError):
    """A partition that cannot go on from the position given."""


class NotReleased(StreamsError):
    """A quarantined message that cannot be released or discarded."""


class UnknownTenant(StreamsError):
    """A tenant that is not registered."""


class TenantConflict(StreamsError):
    """A tenant that is registered already, with other particulars."""


class UnknownKey(StreamsError):
    """An access key that does not exist."""


class QueueFull(StreamsError):
    """More events wait for Kafka than may; what was refused can be sent again soon."""


class KeysUnknown(StreamsError):
    """The access keys could not be read from the database for too long to go by the old ones."""


class CannotServe(StreamsError):
    """A server that cannot start, or cannot go on."""


class ArchiveDamaged(StreamsError):
    """Something in the archive is not what was written there. Nothing that depends on it is dropped."""


class ArchiveUnavailable(StreamsError):
    """The archive cannot be reached."""


class EventsArchived(StreamsError):
    """Raw events that are asked for are no longer in the database."""


class CannotArchive(StreamsError):
    """The archive cannot be written to now, or not for this time."""


class NotCompared(StreamsError):
    """Events behind the horizon that were not compared with what is archived, or not as it is now."""
