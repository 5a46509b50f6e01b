"""What messages outside the stage add to their boots: numbers that are filled, events that are counted.

Refused messages, corrections and other versions of an event are few; all others are noted by `apply.COUNT_ONCE`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import psycopg

from serving_adapter.events import UsageEvent
from streams.rules.chunks import Number, number_of

FILL: Final = """
    insert into usage.number_fills (replica_id, boot_id, numbers)
    select replica_id, boot_id, array_agg(seq)
    from unnest(%s::text[], %s::text[], %s::int8[]) as arrived (replica_id, boot_id, seq) group by replica_id, boot_id
"""
COUNT: Final = """
    insert into usage.replica_usage_fills
        (replica_id, boot_id, tenant_id, model, events, input_tokens, output_tokens, cache_hit_tokens)
    select replica_id, boot_id, tenant_id, model, count(*), sum(input)::int8, sum(output)::int8, sum(cached)::int8
    from unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::int8[], %s::int8[], %s::int8[])
        as counted (replica_id, boot_id, tenant_id, model, input, output, cached)
    group by replica_id, boot_id, tenant_id, model
"""


def fill(connection: psycopg.Connection, numbers: Iterable[Number | None]) -> None:
    """Note that these numbers arrived, whatever became of their messages (rule 1.5); None for those without one."""
    arrived = [number for number in numbers if number is not None]
    if arrived:
        connection.execute(FILL, [list(column) for column in zip(*arrived, strict=True)])


def count(connection: psycopg.Connection, events: Iterable[UsageEvent]) -> None:
    """Note that events were applied for whoever numbered them. A correction's counts are signed."""
    counted = [_counted(event) for event in events]
    if counted:
        connection.execute(COUNT, [list(column) for column in zip(*counted, strict=True)])


def _counted(event: UsageEvent) -> tuple[str, str, str, str, int, int, int]:
    number = number_of(event)
    by = (number.replica_id, number.boot_id) if number else ("", "")
    return (*by, event.tenant_id, event.model, event.input_tokens, event.output_tokens, event.cache_hit_tokens)
