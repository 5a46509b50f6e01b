"""Where the quota feed gets what a transaction counts: under a name, by a number that follows the order of commit.

Its readers keep a position for each name, for ever. A partition, and a plan of replay, is its own; the thousands of
sources that hold one message out of quarantine share a few.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import psycopg

RELEASES: Final = "release:"
SHARED_BY: Final = 8
"""Names for all releases: as many may be under way at once. A row each from the migration on."""


class Place(NamedTuple):
    """The name, and the number of this commit under it."""

    fed_by: str
    fed_no: int


def place(connection: psycopg.Connection, source: str, ingest_no: int) -> Place:
    """Where what comes of a source's chunk is fed, in the transaction that has locked the source's row for it."""
    if not source.startswith(RELEASES):
        return Place(source, ingest_no)
    row = connection.execute(
        "update usage.release_feeds set ingest_no = ingest_no + 1 where no = %s returning name, ingest_no",
        (int(source.removeprefix(RELEASES)) % SHARED_BY,),
    ).fetchone()
    assert row is not None, "the migration made them"
    return Place(*row)
