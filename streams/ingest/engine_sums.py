"""Σ `engine_*` of a boot's events, kept exactly (docs/spec/metering.md 1.7, 6.4), at no cost for most events.

`usage.replica_usage` sums the billed counts of the events that each boot numbered. What an engine counted is those
sums and, kept beside them, what is *beyond*: `engine_*` minus billed where an event states it. Few do: n > 1, beam
search, what was in flight at an abort.

Only events that count are in it: a superseded one leaves the sum, and a correction counts under the boot of what it
corrects, whoever sent it. That is other than in the columns of billed counts, which say what was applied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import psycopg

from serving_adapter.events import UsageEvent
from streams.completeness.engine_witness import EngineTokens
from streams.rules.chunks import number_of

BEYOND: Final = """
    insert into usage.replica_usage_fills (replica_id, boot_id, tenant_id, model, events, input_tokens, output_tokens,
        cache_hit_tokens, engine_input_beyond, engine_output_beyond, engine_cached_beyond, lost)
    values (%s, %s, %s, %s, 0, 0, 0, 0, %s, %s, %s, %s)
"""
ZERO: Final = EngineTokens()

Row = tuple[str, str, str, str]
"""(replica, boot, tenant, model) of `usage.replica_usage`; replica and boot '' for unnumbered events."""


def tells(event: UsageEvent) -> bool:
    """Whether an event says more of its engine than its billed counts do."""
    return (
        event.engine_input_tokens is not None
        or event.engine_output_tokens is not None
        or event.engine_cached_tokens is not None
        or event.status == "lost"
    )


def note_new(connection: psycopg.Connection, events: Iterable[UsageEvent]) -> None:
    """Note what new events tell."""
    _write(connection, (_new(event) for event in events))


def note_weaker(connection: psycopg.Connection, events: Iterable[UsageEvent]) -> None:
    """Events that were applied and do not count: their billed counts are in the sum, and go."""
    _write(connection, ((_row(e), ZERO.minus(_billed(e)), int(e.status == "lost")) for e in events))


def note_superseded(connection: psycopg.Connection, original: UsageEvent, event: UsageEvent) -> None:
    """An event that counted so far, `original` itself or a correction of it: what it brought to the sum goes."""
    _write(connection, [(_row(original), ZERO.minus(_engine(event)), 0)])


def note_replaced(connection: psycopg.Connection, events: Iterable[tuple[UsageEvent, UsageEvent]]) -> None:
    """Events that counted so far, without corrections, each with the new event that took its place."""
    noted: list[tuple[Row, EngineTokens, int]] = []
    for old, new in events:
        noted.append((_row(old), ZERO.minus(_engine(old)), 0))
        if tells(new):
            noted.append(_new(new))
    _write(connection, noted)


def note_corrections(connection: psycopg.Connection, applied: Iterable[tuple[UsageEvent, UsageEvent]]) -> None:
    """Originals, each with a correction that was applied: this counts for the engine of what it corrects."""
    noted: list[tuple[Row, EngineTokens, int]] = []
    for original, correction in applied:
        noted.append((_row(correction), ZERO.minus(_billed(correction)), 0))
        noted.append((_row(original), _engine(correction), 0))
    _write(connection, noted)


def note_moved(connection: psycopg.Connection, original: UsageEvent, correction: UsageEvent) -> None:
    """A correction that left with what was superseded counts for the engine of what took the place."""
    _write(connection, [(_row(original), _engine(correction), 0)])


def _write(connection: psycopg.Connection, noted: Iterable[tuple[Row, EngineTokens, int]]) -> None:
    sums: dict[Row, list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row, (prompt, generation, cached), lost in noted:
        sums_of_row = sums[row]
        sums_of_row[0] += prompt
        sums_of_row[1] += generation
        sums_of_row[2] += cached
        sums_of_row[3] += lost
    values = [(*row, *counts) for row, counts in sums.items() if any(counts)]
    if values:
        with connection.cursor() as cursor:
            cursor.executemany(BEYOND, values)


def _new(event: UsageEvent) -> tuple[Row, EngineTokens, int]:
    return (_row(event), _engine(event).minus(_billed(event)), int(event.status == "lost"))


def _row(event: UsageEvent) -> Row:
    number = number_of(event)
    by = (number.replica_id, number.boot_id) if number else ("", "")
    return (*by, event.tenant_id, event.model)


def _billed(event: UsageEvent) -> EngineTokens:
    return EngineTokens(event.input_tokens, event.output_tokens, event.cache_hit_tokens)


def _engine(event: UsageEvent) -> EngineTokens:
    """What the engine itself counted; the billed counts where the event does not say."""
    if not tells(event):
        return _billed(event)
    stated = (event.engine_input_tokens, event.engine_output_tokens, event.engine_cached_tokens)
    return EngineTokens(*(b if s is None else s for s, b in zip(stated, _billed(event), strict=True)))
