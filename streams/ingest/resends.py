"""Messages that were simply sent again, told apart for a whole chunk at once (docs/spec/metering.md 1.5).

A spool that is sent again holds nothing else. What is stored under the chunk's identities is read in one query and
without a lock: a resend changes nothing, and what is stored only grows, so it may count as having come before whatever
another worker is about to commit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import psycopg

from serving_adapter.identity import Identity, event_id_of, identity_of
from streams.ingest.event_rows import Outcome
from streams.rules.chunks import Accepted
from streams.rules.duplicates import Verdict, Version, arriving, judge, makes_younger, original_of
from streams.rules.identity_keys import identity_key

# By the index for each key, and in one partition of the identities: never by a join that reads a whole table.
_STORED: Final = """
    select uuid_send(stored.key), content_digest, usage_source, completed_at, numbered_by
    from unnest(%s::uuid[]) as due (key) cross join lateral (
        select key, content_digest, usage_source, completed_at, numbered_by
        from usage.event_identities as i where i.key = due.key
        union all
        select key, content_digest, usage_source, completed_at, numbered_by
        from usage.event_versions as v where v.key = due.key
    ) as stored
"""

Stored = Mapping[bytes, Sequence[Version]]
"""The stored versions by identity key; a key that is not known is not in it."""


class Due(NamedTuple):
    """A message that was not counted as new, the key of its identity, and of a correction what it corrects."""

    message: Accepted
    key: bytes
    original: Identity | None = None
    original_key: bytes = b""


def due(message: Accepted) -> Due:
    """What is to be looked up for a message."""
    key = identity_key(identity_of(message.event))
    if message.event.kind == "usage":
        return Due(message, key)
    original = original_of(message.event)
    return Due(message, key, original, identity_key(original))


def spoken_of(arrived: Iterable[Due]) -> Counter[bytes]:
    """How many of the messages speak of each identity: are of it, or correct it."""
    return Counter(key for each in arrived for key in (each.key, each.original_key) if key)


def find(connection: psycopg.Connection, messages: Iterable[Accepted]) -> dict[int, Outcome]:
    """`plain` of a chunk's messages that were not counted as new, beside what is stored now."""
    arrived = [due(message) for message in messages]
    if not arrived:
        return {}
    return plain(stored_of(connection, arrived), arrived)


def stored_of(connection: psycopg.Connection, arrived: Sequence[Due]) -> dict[bytes, list[Version]]:
    """What is stored under the identities of some messages, and of what they correct; without a lock."""
    keys = {key for each in arrived for key in (each.key, each.original_key) if key}
    stored: dict[bytes, list[Version]] = defaultdict(list)
    for key, *version in connection.execute(_STORED, ([UUID(bytes=key) for key in keys],), binary=True):
        stored[key].append(Version(*version))
    return stored


def plain(stored: Stored, arrived: Sequence[Due]) -> dict[int, Outcome]:
    """The outcomes, by position, of resends of identities that have nothing else in the chunk: any order is right.

    Where one message is more than a resend, what the others of its identity are may depend on it: all of them are left
    to `further_arrivals.Arrivals.take`, in their order.
    """
    outcomes = [(each, _outcome(stored, each)) for each in arrived]
    mixed = {each.key for each, outcome in outcomes if outcome is None}
    return {
        each.message.record.position: outcome
        for each, outcome in outcomes
        if outcome is not None and each.key not in mixed
    }


def _outcome(stored: Stored, each: Due) -> Outcome | None:
    """What a message is if it changes nothing; None if it is more than a resend."""
    versions = stored.get(each.key)
    if not versions:
        return None
    if each.original is not None and (
        each.original_key not in stored or each.message.event.corrects != str(event_id_of(each.original))
    ):
        return None
    verdict = judge(versions, arriving(each.message))
    if verdict is Verdict.RETIMED and makes_younger(each.message, versions):
        return None
    return Outcome(verdict.value) if verdict in (Verdict.DUPLICATE, Verdict.RETIMED) else None
