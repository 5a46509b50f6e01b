"""Errors of quotas. Each text says what to do."""

from __future__ import annotations

from streams.errors import StreamsError


class InvalidQuota(StreamsError):
    """A definition that is refused, by field."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(f"{field}: {text}")
        self.field = field
        self.text = text


class UnknownQuota(StreamsError):
    """A quota that does not exist."""


class Fenced(StreamsError):
    """Another process owns the shard now: what this one knows of it is worth nothing."""


class OtherContent(StreamsError):
    """The same (request, attempt) was asked for with other content."""


class ShardsTaken(StreamsError):
    """Tenants are divided among another number of shards."""
