"""What of a replay lies behind the horizon, compared with all that is held from then (docs/retention.md)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import psycopg

from reconciliation.errors import ReplayRefused
from serving_adapter.settings import SettingsError
from streams.errors import ArchiveDamaged, ArchiveUnavailable
from streams.ingest import old_events
from streams.retention.archive_files import Archive
from streams.rules.chunks import Accepted
from streams.rules.replayed import Compared

OpenArchive = Callable[[], Archive]
MOST_COMPARED: Final = 100_000
"""Messages that are held in memory until they are compared, all with one reading of the archive."""
MOST_TRIES: Final = 5
"""The horizon moves hourly; whoever reads the archive for longer each time plans less at once."""


def compare(connection: psycopg.Connection, open_archive: OpenArchive, messages: Sequence[Accepted]) -> Compared:
    """What is held of some messages' identities. Raises ReplayRefused where the archive cannot be read."""
    try:
        return old_events.compare(connection, open_archive, messages)
    except (ArchiveDamaged, ArchiveUnavailable, SettingsError) as error:
        raise ReplayRefused(
            f"{len(messages):,} events lie behind the horizon and have to be compared with the archive, which cannot be"
            f" read: {error}. Mend it, or leave them out (--from)"
        ) from None


def require_progress(tries: int) -> None:
    """Raises ReplayRefused where the horizon has moved during each of so many comparisons."""
    if tries >= MOST_TRIES:
        raise ReplayRefused("the horizon moves while events are compared with the archive: plan less at once")
