"""Positions and messages of a chunk, without a database."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.errors import PositionGap
from streams.ingest.feed_topics import appended_at
from streams.rules.chunks import Accepted, Refused, digest, holes, late_before, not_yet_applied, read
from tests.builders import RECEIVED, event_json, make_record


@given(first=st.integers(0, 50), length=st.integers(1, 50), next_position=st.integers(0, 120))
def test_a_chunk_is_applied_from_the_next_position_on_or_refused(first: int, length: int, next_position: int) -> None:
    records = [make_record(position, b"") for position in range(first, first + length)]
    if first > next_position:
        with pytest.raises(PositionGap):
            not_yet_applied("s", next_position, records)
    else:
        left = [record.position for record in not_yet_applied("s", next_position, records)]
        assert left == list(range(max(first, next_position), first + length))


@given(hole=st.integers(1, 8))
def test_a_hole_within_a_chunk_is_refused(hole: int) -> None:
    records = [make_record(position, b"") for position in range(10) if position != hole]
    with pytest.raises(PositionGap) as caught:
        not_yet_applied("s", 0, records)
    assert (caught.value.expected, caught.value.found) == (hole, hole + 1)
    assert holes(0, records) == [(hole, hole + 1)]


@example(there={0, 1, 2, 3, 4, 5, 7, 8}, empty=set(), due=8)
@given(there=st.sets(st.integers(0, 12), min_size=1), empty=st.sets(st.integers(0, 12)), due=st.integers(0, 12))
def test_only_positions_that_are_proven_empty_may_be_missing(there: set[int], empty: set[int], due: int) -> None:
    records = [make_record(position, b"") for position in sorted(there)]
    ranges: list[tuple[int, int]] = []
    for position in sorted(empty):
        begin = ranges.pop()[0] if ranges and ranges[-1][1] == position else position
        ranges.append((begin, position + 1))
    missing = set(range(due, max(there) + 1)) - there
    assert missing == {position for first, after in holes(due, records) for position in range(first, after)}
    if missing <= empty:
        assert [r.position for r in not_yet_applied("s", due, records, ranges)] == sorted(p for p in there if p >= due)
    else:
        with pytest.raises(PositionGap) as caught:
            not_yet_applied("s", due, records, ranges)
        assert missing & set(range(caught.value.expected, caught.value.found)) - empty


def test_records_out_of_order_are_refused() -> None:
    with pytest.raises(PositionGap):
        not_yet_applied("s", 3, [make_record(position, b"") for position in (3, 5, 4)], [(4, 5)])


def test_a_good_message_is_accepted_with_its_completion() -> None:
    message = read(make_record(0, timestamp="2026-11-01T10:00:00+01:00"))
    assert isinstance(message, Accepted)
    assert message.completed_at.isoformat() == "2026-11-01T09:00:00+00:00"


@pytest.mark.parametrize(("microseconds_late", "accepted"), [(0, True), (1, False)])
def test_an_event_may_be_five_minutes_ahead_of_the_broker_and_no_more(microseconds_late: int, accepted: bool) -> None:
    at = RECEIVED + timedelta(minutes=5, microseconds=microseconds_late)
    message = read(make_record(0, timestamp=at.isoformat()))
    assert isinstance(message, Accepted) is accepted
    if isinstance(message, Refused):
        assert message.reason == "future"


@pytest.mark.parametrize(
    ("value", "reason", "tenant_id"),
    [
        (b'{"tenant_id": "tenant_7", ', "torn", None),
        (event_json(tenant_id="tenant_7", output_tokens=-1), "invalid", "tenant_7"),
        (b'{"tenant_id": "a\\u0000b"}', "invalid", None),
        (event_json(schema_version=9), "unsupported", "tenant_1"),
        (b"", "torn", None),
    ],
)
def test_a_bad_message_is_refused_with_its_tenant_where_it_can_be_read(
    value: bytes, reason: str, tenant_id: str | None
) -> None:
    message = read(make_record(0, value))
    assert isinstance(message, Refused)
    assert (message.reason, message.tenant_id) == (reason, tenant_id)


def test_the_digest_depends_on_every_message_and_position() -> None:
    base = digest([make_record(0, b"ab"), make_record(1, b"c")])
    assert base == digest([make_record(0, b"ab"), make_record(1, b"c")])
    assert base != digest([make_record(0, b"a"), make_record(1, b"bc")])
    assert base != digest([make_record(1, b"ab"), make_record(2, b"c")])


@pytest.mark.parametrize("timestamp_ms", [-(2**63), -62_135_596_800_000, -1, 0, 253_402_300_799_999, 2**63 - 1])
def test_an_append_time_that_no_broker_gives_can_be_reckoned_with(timestamp_ms: int) -> None:
    record = make_record(0)._replace(appended_at=appended_at(timestamp_ms))
    assert isinstance(read(record), Accepted if timestamp_ms > 0 else Refused)
    assert late_before(record.appended_at) - timedelta(days=45) < record.appended_at
