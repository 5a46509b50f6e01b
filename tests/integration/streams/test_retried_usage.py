"""Requests with more than one attempt, read with all that belongs to them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from streams.ingest.apply import ChunkApplier
from streams.retention import retention_store
from streams.usage import usage_store
from streams.usage.event_reader import positions
from tests.builders import uuid_v7
from tests.integration.streams.test_further_arrivals import ENGINE, STREAM, correction, send
from tests.integration.streams.test_retention import retain

OCTOBER = (datetime(2026, 10, 1, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC))
NOVEMBER = (datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC))
IN_OCTOBER, IN_NOVEMBER = {"timestamp": "2026-10-31T23:59:59Z"}, {"timestamp": "2026-11-01T00:00:01Z"}
FIRST: dict[str, Any] = {"attempt": 1, "status": "aborted"} | IN_OCTOBER
SECOND: dict[str, Any] = {"attempt": 2} | IN_NOVEMBER


@pytest.mark.parametrize("month", [OCTOBER, NOVEMBER])
def test_all_attempts_of_a_request_are_found_from_each_month_that_has_one(
    applier: ChunkApplier, connection: psycopg.Connection, month: tuple[datetime, datetime]
) -> None:
    send(applier, connection, FIRST, SECOND, {"request_id": "alone"} | IN_OCTOBER)
    found = list(usage_store.retried_usage(connection, *month))
    assert [(u.attempt, u.quantity.status, u.completed_at.month) for u in found] == [(1, "aborted", 10), (2, "ok", 11)]


def test_corrections_come_along_and_what_was_superseded_does_not(
    applier: ChunkApplier, connection: psycopg.Connection
) -> None:
    send(applier, connection, STREAM | IN_OCTOBER, correction(output_tokens=2), ENGINE | IN_NOVEMBER, SECOND)
    raw = list(usage_store.raw_quantities(connection, OCTOBER[0], NOVEMBER[1]))
    found = list(usage_store.retried_usage(connection, *NOVEMBER))
    for measure in ("requests", "output_tokens", "input_tokens"):
        assert sum(getattr(u.quantity, measure) for u in found) == sum(getattr(q, measure) for q in raw)
    assert sum(u.quantity.requests for u in found) == 2


def test_what_came_later_takes_no_attempts_place_in_what_was_cut_before(
    applier: ChunkApplier, connection: psycopg.Connection
) -> None:
    third, better = {"attempt": 3} | IN_NOVEMBER, ENGINE | SECOND
    send(applier, connection, FIRST, STREAM | SECOND)
    (below,) = [{source: position} for source, position in positions(connection).items()]
    then = list(usage_store.retried_usage(connection, *OCTOBER))
    assert [(u.attempt, u.quantity.usage_source) for u in then] == [(1, "engine"), (2, "stream")]
    send(applier, connection, better, third)
    assert [u.attempt for u in usage_store.retried_usage(connection, *OCTOBER)] == [1, 2, 3]
    assert list(usage_store.retried_usage(connection, *OCTOBER, below)) == then
    assert list(usage_store.retried_usage(connection, *OCTOBER, {})) == []


@pytest.mark.parametrize("request_id", ["req-0", uuid_v7(datetime(2026, 10, 31, 23, 59, tzinfo=UTC))])
def test_first_attempts_are_found_also_where_their_identities_are_forgotten_and_their_events_are_not(
    applier: ChunkApplier, connection: psycopg.Connection, request_id: str
) -> None:
    """Else a month that is rated once more would bill both attempts."""
    send(applier, connection, FIRST | {"request_id": request_id}, SECOND | {"request_id": request_id})
    found = [list(usage_store.retried_usage(connection, *month)) for month in (OCTOBER, NOVEMBER)]
    assert [len(each) for each in found] == [2, 2]
    closed = NOVEMBER[1] + timedelta(days=31)
    retention_store.set_closed_before(connection, closed, actor="ada")
    retain(connection, closed + timedelta(days=60))
    assert connection.execute("select count(*) from usage.event_identities").fetchone() == (0,)
    assert [list(usage_store.retried_usage(connection, *month)) for month in (OCTOBER, NOVEMBER)] == found
