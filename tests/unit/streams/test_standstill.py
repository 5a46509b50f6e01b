"""When a consumer hangs, and when it is only slow."""

from __future__ import annotations

from streams.ingest.sources import Partition
from streams.workers.standstill import IDLE_S, TAKEN_OF_OTHERS, Standstill

PARTITIONS = [Partition("usage.v1", number) for number in range(24)]
ONE = PARTITIONS[0]
CHECK_S = 10


def test_a_reader_that_is_always_at_work_does_not_hang_however_long_a_partition_waits_for_its_turn() -> None:
    """Chunks of 3 s each: each of 24 partitions has its turn every 72 s."""
    standstill, positions = Standstill(), dict.fromkeys(PARTITIONS, 0)
    for chunk in range(1, 240):
        positions[PARTITIONS[chunk % 24]] += 2000
        now = 3.0 * chunk
        assert standstill.see(positions, now, busy_s=now, taken=chunk) is None


def test_nothing_that_comes_while_nothing_is_to_be_done_is_a_consumer_that_hangs() -> None:
    standstill = Standstill()
    assert [standstill.see({ONE: 5}, at, 0.0, 0) for at in (0.0, IDLE_S)] == [None, None]
    assert standstill.see({ONE: 5}, IDLE_S + 1, 0.0, 0) == ONE


def test_a_reader_that_waits_for_the_database_does_not_hang() -> None:
    standstill = Standstill()
    assert [standstill.see({ONE: 5}, at, busy_s=at, taken=0) for at in (0.0, 1000.0, 2000.0)] == [None] * 3


def test_a_partition_that_moves_on_or_was_at_its_end_begins_anew() -> None:
    standstill = Standstill()
    times = [n * CHECK_S for n in range(100)]
    assert [standstill.see({ONE: at}, at, 0.0, 0) for at in times] == [None] * 100
    assert standstill.see({}, 2000.0, 0.0, 0) is None
    assert standstill.see({ONE: times[-1]}, 3000.0, 0.0, 0) is None


def test_a_partition_that_never_has_its_turn_is_told_however_busy_the_reader_is() -> None:
    standstill = Standstill()
    assert standstill.see({ONE: 5}, 0.0, 0.0, 0) is None
    assert standstill.see({ONE: 5}, 1.0, 1.0, TAKEN_OF_OTHERS + 1) is None
    assert standstill.see({ONE: 5}, 100.0, 100.0, TAKEN_OF_OTHERS + 1) == ONE
