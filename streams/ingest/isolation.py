"""A message that the database refuses must not stop those beside it: it is found by halving, and put into quarantine.

What decoding accepts should always be storable. Where it is not after all (a sum beyond a bigint, a name beyond the row
of an index), repeating the chunk would fail for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import psycopg

from serving_adapter.errors import shortened
from streams.ingest.positions import Applied
from streams.rules.chunks import Chunk

UNSTORABLE: Final = (psycopg.DataError, psycopg.errors.ProgramLimitExceeded)
"""What PostgreSQL raises about values. Errors about itself (connections, locks, disk) are not among them."""

Apply = Callable[[Chunk, str], Applied]
"""Applies a chunk in one transaction; a text that is not empty says why its only message must be refused."""


def apply_isolating(apply: Apply, chunk: Chunk) -> Applied:
    """Apply a chunk; if values cannot be stored, apply its halves, down to the message at fault."""
    try:
        return apply(chunk, "")
    except UNSTORABLE as error:
        if len(chunk.records) == 1:
            return apply(chunk, shortened(f"cannot be stored: {str(error).splitlines()[0]}"))
    middle = len(chunk.records) // 2
    first = apply_isolating(apply, replace(chunk, records=chunk.records[:middle]))
    second = apply_isolating(apply, replace(chunk, records=chunk.records[middle:]))
    return first.then(second)
