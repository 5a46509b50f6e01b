"""What is done beside running workers in dirty traffic: partitions added to the topic, windows rebuilt."""

from __future__ import annotations

from serving_adapter.topics import USAGE
from streams.usage.rebuild import rebuild
from tests.integration.streams.conftest import BOTH_READERS
from tests.simulation import invariants
from tests.simulation.line import Line, ended, wait_for

MORE_PARTITIONS = USAGE.partitions + 4


@BOTH_READERS
def test_partitions_are_added_in_mid_traffic_and_earlier_events_come_again_through_other_ones(line: Line) -> None:
    worker = line.worker(None, "--metadata-age-ms", "500")
    early = line.send(300)
    line.wait_for_positions(50, worker)
    line.grow(MORE_PARTITIONS)
    line.send(300)
    line.resend(early)
    line.wait_for_positions(line.traffic.expected.messages, worker)
    line.settled()
    assert len(line.next_positions()) == MORE_PARTITIONS
    applied, duplicates = line.connection.execute(
        "select sum(applied)::int8, sum(duplicates)::int8 from usage.applied_chunks where source = any(%s)",
        ([f"kafka:{line.topic}/{number}" for number in range(USAGE.partitions, MORE_PARTITIONS)],),
    ).fetchone() or (0, 0)
    assert applied > 0
    assert duplicates > 0
    worker.terminate()
    ended(worker, 0)


def test_windows_are_rebuilt_again_and_again_beside_a_running_worker(line: Line) -> None:
    """In each round a window is damaged first, so that there is always something to replace."""
    worker = line.worker(None, "--chunk", "20")
    line.send(300)
    rounds = 0

    def rebuilt() -> bool:
        nonlocal rounds
        with line.connection.transaction():
            line.connection.execute("lock table usage.sources in exclusive mode")  # no chunk is in our way
            line.connection.execute(
                "update usage.windows_1h set output_tokens = output_tokens + 1 where tenant_id ="
                " (select min(tenant_id) from usage.windows_1h)"
            )
        rounds += bool(rebuild(line.connection, *invariants.EVER, actor="test", apply=True).replaced)
        if sum(line.next_positions().values()) < line.traffic.expected.messages:
            return False
        if rounds <= 2:  # a fast worker was through with it before
            line.send(50)
        return rounds > 2

    wait_for(rebuilt, "everything is applied, and was rebuilt meanwhile", worker)
    line.settled()
    worker.terminate()
    ended(worker, 0)
