"""Events behind the horizon, let in by a replay: compared with all that is held, counted once (docs/retention.md).

The comparison is made outside of the transaction, since it may read the whole archive; in it is looked whether it still
holds. What is counted leaves its identity in `usage.replayed_identities` for ever: identities of its age are forgotten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

import psycopg

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import decode_completed
from serving_adapter.identity import content_digest_of, identity_of
from streams.errors import ArchiveDamaged, NotCompared
from streams.ingest import resends
from streams.retention import archive_store
from streams.rules import ingest_rules
from streams.rules.chunks import Accepted, Refused
from streams.rules.duplicates import Version, arriving
from streams.rules.horizon import Horizon, TooOld
from streams.rules.identity_keys import identity_key, numbered_by
from streams.rules.replayed import Compared, Held, Standing, refused, standing

if TYPE_CHECKING:
    from streams.retention.archive_files import Archive

IN_DATABASE: Final = "in the database"
BY_REPLAY: Final = "that was replayed"

_LIVE: Final = """
    select raw from usage.events where kind = 'usage' and tenant_id = any(%s) and request_id = any(%s)
"""
_REPLAYED: Final = """
    select uuid_send(key), content_digest, usage_source, completed_at, numbered_by
    from usage.replayed_identities where key = any(%s)
"""
_NOTE: Final = """
    insert into usage.replayed_identities
        (key, completed_at, position, source_no, usage_source, content_digest, numbered_by)
    values (%s, %s, %s, %s, %s, %s, %s) on conflict (key) do nothing
"""


class Admitted(NamedTuple):
    """Of a chunk's events behind the horizon: those to be counted, those that are there, and what may not enter."""

    new: list[Accepted]
    there: list[Accepted]
    refused: list[Refused]


def compare(
    connection: psycopg.Connection, open_archive: Callable[[], Archive], messages: Iterable[Accepted]
) -> Compared:
    """Look for the events of these identities wherever their identities may be forgotten.

    The archive is opened if any day is only there. Raises ArchiveDamaged, ArchiveUnavailable, SettingsError.
    """
    # First of all: an identity that is forgotten later makes another comparison due
    forgotten_before = ingest_rules.horizon(connection).forgotten_before
    keys: set[bytes] = set()
    wanted: dict[str, set[str]] = defaultdict(set)
    for message in messages:
        keys.add(key_of(message))
        wanted[message.event.tenant_id].add(message.event.request_id)
    held: dict[bytes, list[Held]] = defaultdict(list)
    for key, found in _replayed(connection, sorted(keys)).items():
        held[key] += found
    # The database before the archive: what leaves it meanwhile is there then
    requests = sorted({request for of in wanted.values() for request in of})
    for (raw,) in connection.execute(_LIVE, (sorted(wanted), requests), binary=True):
        _add(held, keys, raw, IN_DATABASE)
    archive: Archive | None = None
    for part in archive_store.archived_days(connection, *archive_store.EVER) if keys else ():
        if part.dropped_at is not None:
            archive = archive or open_archive()
            manifest = archive.manifest(part.day, part.manifest_sha256, part.part)
            for raw in archive.find(manifest, wanted):
                _add(held, keys, raw, f"in the archive of {part.day}")
    return Compared(forgotten_before, frozenset(keys), held)


def admit(
    connection: psycopg.Connection, compared: Compared | None, horizon: Horizon, behind: Sequence[TooOld]
) -> Admitted:
    """Part a chunk's events behind the horizon, in its transaction; none enters without a comparison.

    Raises NotCompared.
    """
    if compared is None:
        return Admitted([], [], [each.refused for each in behind])
    admitted = Admitted([], [], [])
    if behind:
        archive_store.hold_archive(connection)
        keys = [key_of(each.message) for each in behind]
        if not compared.covers(keys, horizon.forgotten_before):
            raise NotCompared("more is behind the horizon than was compared with the archive")
        replayed = _replayed(connection, sorted(set(keys)))
        for key, each in zip(keys, behind, strict=True):
            _settle(admitted, each.message, [*compared.held.get(key, ()), *replayed.get(key, ())])
    return admitted


def keep(connection: psycopg.Connection, source_no: int, admitted: Admitted, new: Collection[int]) -> Admitted:
    """Keep the identities of those of the admitted that were counted, by position, and settle the others.

    The identities of the others are known: they came twice, or meanwhile. Raises NotCompared where another replay was
    faster.
    """
    if not admitted.new:
        return admitted
    settled = Admitted([], [*admitted.there], [*admitted.refused])
    others = [message for message in admitted.new if message.record.position not in new]
    stored = resends.stored_of(connection, [resends.due(message) for message in others]) if others else {}
    for message in others:
        _settle(settled, message, held_by_identity(stored[key_of(message)]))
    settled.new.extend(message for message in admitted.new if message.record.position in new)
    _note(connection, source_no, settled.new)
    return settled


def _note(connection: psycopg.Connection, source_no: int, counted: Sequence[Accepted]) -> None:
    rows = []
    for message in counted:
        version = arriving(message)
        rows.append((UUID(bytes=key_of(message)), version.completed_at, message.record.position, source_no,
                     version.usage_source, version.content_digest, version.numbered_by))  # fmt: skip
    with connection.cursor() as cursor:
        cursor.executemany(_NOTE, sorted(rows, key=itemgetter(0)))
        if rows and cursor.rowcount != len(rows):
            raise NotCompared("another replay has added some of these events")


def key_of(message: Accepted) -> bytes:
    """The key of an event's identity."""
    return identity_key(identity_of(message.event))


def held_by_identity(versions: Sequence[Version]) -> list[Held]:
    """What an identity that is not forgotten says of its event."""
    return [Held(version, "that its identity tells of") for version in versions]


def _settle(admitted: Admitted, message: Accepted, held: Sequence[Held]) -> None:
    what, why = standing(message, held)
    if (refusal := refused(message, what, why)) is not None:
        admitted.refused.append(refusal)
    else:
        (admitted.new if what is Standing.NEW else admitted.there).append(message)


def _replayed(connection: psycopg.Connection, keys: Sequence[bytes]) -> Mapping[bytes, list[Held]]:
    rows = connection.execute(_REPLAYED, ([UUID(bytes=key) for key in keys],), binary=True)
    return {key: [Held(Version(*version), BY_REPLAY)] for key, *version in rows}


def _add(held: dict[bytes, list[Held]], keys: set[bytes], raw: Any, where: str) -> None:
    """Add a stored event's telling, if its identity is one that is looked for."""
    try:
        event, completed_at = decode_completed(bytes(raw))
    except RefusedEvent as error:
        raise ArchiveDamaged(f"an event that was counted cannot be read any more, {where}: {error}") from None
    key = identity_key(identity_of(event))
    if key in keys:
        by = numbered_by(event.replica_id, event.boot_id, event.seq)
        held[key].append(Held(Version(content_digest_of(event), event.usage_source, completed_at, by), where))
