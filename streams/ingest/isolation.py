"""Chunks that cannot be applied as one are halved, each half a transaction of its own.

A message that the database refuses must not stop those beside it: it is found so, and put into quarantine. What
decoding accepts should always be storable; where it is not after all (a sum beyond a bigint, a name beyond the row of
an index), repeating the chunk would fail for ever. And events of many hours need many of a hypertable's chunks: making
these takes time, and locks of which the server has a bounded number, until the transaction ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import psycopg

from serving_adapter.errors import shortened
from streams.errors import SpreadTooFar
from streams.ingest.positions import Applied
from streams.rules.chunks import Accepted, Chunk

UNSTORABLE: Final = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)
"""What PostgreSQL raises about values. Errors about itself (connections, locks, disk) are not among them."""

HALVED: Final = (SpreadTooFar, psycopg.errors.OutOfMemory)
"""What a smaller part of a chunk may be spared; PostgreSQL raises the second also where it has no locks left."""
HOURS_AT_ONCE: Final = 100
"""Different hours of completion in one transaction; making the hypertables' chunks for a day took some 20 ms."""

Apply = Callable[[Chunk, str], Applied]
"""Applies a chunk in one transaction; a text that is not empty says why its only message must be refused."""


def apply_isolating(apply: Apply, chunk: Chunk) -> Applied:
    """Apply a chunk; if it cannot be applied as one, its halves, down to the message at fault."""
    try:
        return apply(chunk, "")
    except UNSTORABLE as error:
        if len(chunk.records) == 1:
            return apply(chunk, shortened(f"cannot be stored: {str(error).splitlines()[0]}"))
    except HALVED:
        if len(chunk.records) == 1:
            raise
    middle = len(chunk.records) // 2
    first = apply_isolating(apply, replace(chunk, records=chunk.records[:middle]))
    second = apply_isolating(apply, replace(chunk, records=chunk.records[middle:]))
    return first.then(second)


def require_near(messages: Sequence[Accepted]) -> None:
    """Raises SpreadTooFar for events of so many different hours that they must not be one transaction's."""
    times = [message.completed_at for message in messages]
    if len(times) <= HOURS_AT_ONCE or (max(times) - min(times)).total_seconds() < HOURS_AT_ONCE * 3600:
        return
    hours = len({time.replace(minute=0, second=0, microsecond=0) for time in times})
    if hours > HOURS_AT_ONCE:
        raise SpreadTooFar(f"events of {hours} different hours")
