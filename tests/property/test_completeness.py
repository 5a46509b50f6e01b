"""The time up to which everything is there never moves back by something arriving, and never lies too late."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.replica_reports import Heartbeat, reported_at
from streams.completeness.complete_to import Boot, TenantShare, complete_to, tenant_complete_to
from streams.ingest.replica_chunks import Said, news

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)


def at(second: int) -> datetime:
    return NOON + timedelta(seconds=second)


class Replica:
    """A boot that makes an event whenever told, and a heartbeat each second; some events reach us, in any order.

    One that is killed leaves a request behind whose progress came to the disk `late` seconds before: recovery numbers
    it last, gives it that time, and says farewell behind it.
    """

    def __init__(self, number: int, seconds: list[int], end: str, late: int) -> None:
        self.boot = Boot(f"r{number}", "b", first_received_at=at(0), last_received_at=at(0), begun_at=at(0))
        self.completed = dict[int, datetime]()
        killed = end == "killed"
        reports = list[Heartbeat]()
        for second, events in enumerate(seconds):
            for _ in range(events):
                self.completed[len(self.completed) + 1] = at(second) + timedelta(milliseconds=500)
            lost_from = max(at(0), at(second + 1 - late)) if killed else None
            reports.append(
                Heartbeat(replica_id="r", boot_id="b", at=at(second + 1).isoformat(), last_seq=len(self.completed),
                          started=0, ended=0, open=killed, lost_from=lost_from.isoformat() if lost_from else None)
            )  # fmt: skip
        if killed:
            self.completed[len(self.completed) + 1] = max(at(0), at(len(seconds) - late))
        self.farewell_at = at(len(seconds)) if end != "running" else None
        self.is_told_last = killed
        boots = news(Said(report, reported_at(report), at(0)) for report in reports).boots.values()
        self.heartbeat_at = max((boot.heartbeat_at for boot in boots if boot.heartbeat_at), default=None)
        self.marks = [(mark.proves_to, last_seq) for boot in boots for last_seq, mark in boot.marks.items()]
        self.received = set[int]()

    def seen(self) -> Boot:
        """The boot as far as its events have arrived."""
        through = next(n for n in range(len(self.completed) + 1) if n + 1 not in self.received)
        proven = max((when for when, last in self.marks if last <= through), default=None)
        last_seq, farewell_at = len(self.completed), self.farewell_at
        if self.is_told_last and last_seq not in self.received:
            last_seq, farewell_at = last_seq - 1, None
        return replace(
            self.boot, heartbeat_at=self.heartbeat_at, last_seq=last_seq, farewell_at=farewell_at,
            received_through=through, highest=max(self.received, default=0), proven_to=proven,
        )  # fmt: skip

    def missing_before(self, when: datetime) -> set[int]:
        """Events completed before `when` that have not arrived."""
        return {n for n, completed in self.completed.items() if completed < when and n not in self.received}


Spec = tuple[list[int], str, int]
ENDS = st.sampled_from(["running", "farewell", "killed"])
REPLICAS = st.lists(st.tuples(st.lists(st.integers(0, 3), max_size=5), ENDS, st.integers(0, 3)), min_size=1, max_size=4)


@given(specs=REPLICAS, data=st.data())
def test_what_no_disk_had_holds_back_at_the_last_durable_heartbeat_until_it_is_written_off(
    specs: list[Spec], data: st.DataObject
) -> None:
    replicas = [Replica(number, *spec) for number, spec in enumerate(specs)]
    for replica in replicas:
        replica.received = set(replica.completed)
    *others, one = (replica.seen() for replica in replicas)
    durable_to = data.draw(st.sampled_from([None, *(when for when, _ in replicas[-1].marks)]))
    undurable = replace(one, not_durable=True, durable_to=durable_to)
    found = complete_to([*others, undurable])
    assert found.complete_to is not None
    assert found.complete_to <= (durable_to or at(0))
    assert complete_to([*others, replace(undurable, written_off=True)]) == complete_to(
        [*others, replace(one, written_off=True)]
    )


@given(specs=REPLICAS, data=st.data())
def test_arrivals_never_move_it_back_and_nothing_before_it_is_missing(specs: list[Spec], data: st.DataObject) -> None:
    replicas = [Replica(number, *spec) for number, spec in enumerate(specs)]
    events = [(replica, n) for replica in replicas for n in replica.completed]
    before = complete_to(replica.seen() for replica in replicas).complete_to
    for replica, number in data.draw(st.permutations(events)):
        replica.received.add(number)
        now = complete_to(other.seen() for other in replicas).complete_to
        assert before is not None, "every replica has announced itself"
        assert now is not None
        assert now >= before
        assert not any(other.missing_before(now) for other in replicas)
        before = now
    ends = [at(len(seconds)) for seconds, end, _ in specs if end == "running"]
    assert before == (min(ends) if ends else max(at(len(seconds)) for seconds, *_ in specs))


def test_without_a_replica_nothing_is_known() -> None:
    assert complete_to([]).complete_to is None


def test_a_boot_known_from_its_events_alone_has_proven_nothing() -> None:
    silent = Boot("r1", "b", received_through=5, highest=5)
    running = Boot("r2", "b", begun_at=at(0), heartbeat_at=at(9), proven_to=at(9))
    found = complete_to([silent, running])
    assert (found.complete_to, found.held_back_by) == (None, (("r1", "b"),))


def test_a_gap_holds_back_to_the_last_heartbeat_below_it_and_is_named() -> None:
    gap = Boot(
        "r1", "b", begun_at=at(0), heartbeat_at=at(9), last_seq=7, received_through=3, highest=7, proven_to=at(4)
    )
    running = Boot("r2", "b", begun_at=at(0), heartbeat_at=at(9), proven_to=at(9))
    found = complete_to([gap, running])
    assert (found.complete_to, found.held_back_by) == (at(4), (("r1", "b"),))


def test_a_boot_without_farewell_holds_back_until_it_is_written_off() -> None:
    broken = Boot(
        "r1", "b1", begun_at=at(0), heartbeat_at=at(3), last_seq=2, received_through=2, highest=2, proven_to=at(3)
    )
    running = Boot("r1", "b2", begun_at=at(5), heartbeat_at=at(9), proven_to=at(9))
    assert complete_to([broken, running]).complete_to == at(3)
    assert complete_to([replace(broken, farewell_at=at(3)), running]).complete_to == at(9)
    assert complete_to([replace(broken, written_off=True), running]).complete_to == at(9)


def test_a_farewell_with_numbers_missing_holds_back_those_tenants_whose_they_are() -> None:
    ended = Boot("r1", "b", begun_at=at(0), heartbeat_at=at(3), last_seq=5, received_through=2, highest=5,
                 farewell_at=at(4), proven_to=at(1))  # fmt: skip
    running = Boot("r2", "b", begun_at=at(0), heartbeat_at=at(9), proven_to=at(9))
    share = TenantShare(reported=2, counted=2, reported_in_all=5)
    for shares, expected in (
        ({}, at(1)),
        ({ended.key: share}, at(9)),
        ({ended.key: replace(share, reported=0, counted=0)}, at(9)),
        ({ended.key: replace(share, counted=1)}, at(1)),
        ({ended.key: replace(share, reported_in_all=4)}, at(1)),
    ):
        assert tenant_complete_to([ended, running], shares).complete_to == expected
