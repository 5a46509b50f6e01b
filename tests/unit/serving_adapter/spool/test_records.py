"""What a boot's records come to."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from serving_adapter.spool.disk_bound import PER_OPEN_REQUEST_BYTES, DiskState, Policy, Room, room_for
from serving_adapter.spool.frames import framed
from serving_adapter.spool.records import (
    MOST_PROGRESS,
    Boot,
    Farewell,
    OpenRequest,
    Progress,
    Record,
    Replay,
    SpoolUnreadable,
    Start,
    payload_of,
    read,
)
from tests.adapter_builders import BEGUN_AT, ended, lost

LATER = "2026-11-05T10:00:07+00:00"
LAST = "2026-11-05T10:00:08+00:00"
BOOT = Boot(replica_id="r1", boot_id="b1", at=BEGUN_AT)


def numbered(request_id: str, seq: int) -> Record:
    event = ended(request_id)
    return type(event)(**{name: getattr(event, name) for name in event.__struct_fields__} | {"seq": seq})


def replayed(records: list[Record]) -> Replay:
    state = Replay()
    for record in records:
        state.feed(read(payload_of(record)))
    return state


STORY: list[Record] = [
    BOOT,
    Start(no=1, lost=lost("q1")),
    Start(no=2, lost=lost("q2")),
    Start(no=3, lost=lost("q3")),
    Progress(at=LATER, open=[OpenRequest(2, 7, 4, 2, 7, 2, 900), OpenRequest(1, 5, 1, 0, 5, 0)]),
    numbered("q1", 1),
]


def test_what_is_open_is_lost_with_the_counts_and_the_time_of_its_last_progress() -> None:
    state = replayed(STORY)
    second, third = state.lost()
    assert (second.request_id, second.seq, second.timestamp) == ("q2", 2, LATER)
    assert (second.input_tokens, second.output_tokens, second.cache_hit_tokens) == (7, 4, 2)
    assert (second.gpu_us, third.gpu_us) == (900, 0)
    assert (second.status, second.fault, second.usage_source) == ("lost", "platform", "estimate")
    assert (third.request_id, third.seq, third.timestamp, third.output_tokens) == ("q3", 3, BEGUN_AT, 0)
    assert (state.started, state.ended) == (3, 1)


def test_a_segment_begins_with_all_totals_and_all_that_is_open_however_many_there_are() -> None:
    state = replayed([BOOT])
    for number in range(1, 12_001):
        state.feed(Start(no=number, lost=lost(f"q{number}", f"tenant_{number:0100d}")))
        if number <= 6000:
            event = ended(f"q{number}", f"tenant_{number:0100d}")
            state.feed(replace(event, seq=number))
        elif number != 9000:  # which has said nothing yet
            state.feed(Progress(at=LATER if number % 2 else LAST, open=[OpenRequest(number, 5, number, 1, 5, 1, 7)]))
    head = state.head()
    assert len(b"".join(framed(payload_of(record)) for record in head)) > 1_000_000
    again = replayed([*head, *head[1:]])
    assert again.tally.all() == state.tally.all()
    assert list(again.open) == list(range(6001, 12_001))
    assert len(again.lost()) == 6000
    assert again.lost() == state.lost()
    assert max(len(record.open) for record in head if isinstance(record, Progress)) <= MOST_PROGRESS
    assert (again.started, again.ended, again.last_seq, again.last_no) == (12_000, 6000, 6000, 12_000)


def test_records_that_were_written_twice_count_once() -> None:
    state = replayed(STORY + STORY[1:])
    assert [event.request_id for event in state.lost()] == ["q2", "q3"]
    assert (state.started, state.ended, state.last_seq) == (3, 1, 1)
    assert [total.events for total in state.tally.all()] == [1]


def test_a_request_that_began_twice_is_over_when_it_has_ended_twice() -> None:
    twice = [BOOT, Start(no=1, lost=lost("q1")), Start(no=2, lost=lost("q1")), numbered("q1", 1)]
    assert [event.seq for event in replayed(twice).lost()] == [2]
    state = replayed([*twice, numbered("q1", 2)])
    assert (state.started, state.ended, state.lost()) == (2, 2, [])


def test_a_segments_head_says_all_that_the_segments_before_it_said() -> None:
    before = replayed(STORY)
    after = replayed(before.head())
    assert after.lost() == before.lost(), "with counts and times, too"
    assert (after.started, after.ended, after.last_seq, after.last_no) == (3, 1, 1, 3)
    assert after.tally.all() == before.tally.all()
    after.feed(numbered("q3", 2))
    after.feed(Farewell(at=LATER, last_seq=2, started=3, ended=2))
    assert [event.seq for event in after.lost()] == [3]


def test_a_record_of_a_later_version_is_named() -> None:
    for payload in (b"Z{}", b"S{}", b'B{"replica_id":"r","boot_id":"b","at":"x","format":2}'):
        with pytest.raises(SpoolUnreadable):
            read(payload)


FREE, TIGHT, FULL = 0, 90, 100


@pytest.mark.parametrize(
    ("policy", "used", "may_be_shed", "room"),
    [
        ("block", TIGHT, True, "durable"),
        ("block", FULL, False, "refused"),
        ("shed_free", FREE, True, "durable"),
        ("shed_free", TIGHT, True, "refused"),
        ("shed_free", TIGHT, False, "durable"),
        ("shed_free", FULL, False, "refused"),
        ("serve_memory", FULL, False, "memory"),
    ],
)
def test_the_policy_decides_who_begins_on_a_full_disk(policy: Policy, used: int, may_be_shed: bool, room: Room) -> None:
    assert room_for(policy, DiskState(used, 100, 0, failing=False), may_be_shed=may_be_shed) == room


def test_open_requests_keep_room_for_their_ends_and_a_failing_disk_is_full() -> None:
    bound = 10 * PER_OPEN_REQUEST_BYTES
    assert room_for("block", DiskState(0, bound, 9, failing=False), may_be_shed=False) == "durable"
    assert room_for("block", DiskState(0, bound, 10, failing=False), may_be_shed=False) == "refused"
    assert room_for("block", DiskState(0, bound, 0, failing=True), may_be_shed=False) == "refused"
