"""The situations in which Faust's own acknowledgement loses messages without a word. Our worker loses none in any.

Faust 0.15.3 commits an offset when it believes a message was processed: in the `finally` of a batch whose body failed,
at shutdown in the middle of one, across a gap at the head. Here no offset counts but the one that moves in the
transaction of the events; what Kafka is told is at most that, and is told at every moment (`--eager`).
"""

from __future__ import annotations

import signal

import pytest

from tests.integration.streams.conftest import BOTH_READERS
from tests.simulation.faults import Fault
from tests.simulation.line import Line, Worker, ended, killed, wait_for
from tests.simulation.worker import CUT_OFF

FAULTY_AGENT = [
    pytest.param("faust", (), id="the worker crashes"),
    pytest.param("faust", ("--restart-agent", "--drain"), id="Faust restarts the agent"),
    pytest.param("bare", (), id="the bare consumer crashes"),
]


def no_hint_is_ahead(line: Line) -> None:
    hints = line.hints()  # first: positions only grow
    positions = line.next_positions()
    assert all(at <= positions[partition] for partition, at in hints.items()), (hints, positions)


def watch_hints(line: Line, worker: Worker) -> None:
    """Compare what Kafka was told with what is stored, until the worker ends."""
    while worker.poll() is None:
        no_hint_is_ahead(line)


@pytest.mark.parametrize(("reader", "options"), FAULTY_AGENT)
@pytest.mark.parametrize("nth", [pytest.param(1, id="first chunk"), pytest.param(25, id="after commits")])
def test_an_exception_in_the_body_of_a_batch(line: Line, options: tuple[str, ...], nth: int) -> None:
    """Nothing committed before, or offsets committed and more chunks in the agent's buffer: the batch comes again."""
    line.send(500)
    worker = line.worker(Fault("counted", nth, "raise"), "--chunk", "20", "--eager", *options)
    watch_hints(line, worker)
    ended(worker, 0 if options else 1)
    if nth > 1:
        assert line.hints(), "nothing was ever committed: the situation was not reached"
    no_hint_is_ahead(line)
    line.finish()


@pytest.mark.parametrize("step", ["counted", "advanced"])
def test_a_shutdown_that_does_not_wait_for_the_batch(line: Line, step: str) -> None:
    line.send(300)
    fault = Fault(step, 5, "terminate")
    worker = line.worker(fault, "--chunk", "20", "--eager", "--do-not-wait")
    watch_hints(line, worker)
    assert CUT_OFF in ended(worker, 0), "the situation was not reached"
    no_hint_is_ahead(line)
    line.finish()


@BOTH_READERS
@pytest.mark.parametrize("nth", [1, 12])
def test_a_commit_while_a_batch_is_in_flight_ends_before_it(line: Line, nth: int) -> None:
    """At the head of a partition, or behind what is stored, what is in flight is not committed, and is read again."""
    line.send(300)
    worker = line.worker(Fault("advanced", nth, "hold"), "--chunk", "20", "--eager")
    line.wait_until_in_transaction(worker)
    no_hint_is_ahead(line)
    worker.send_signal(signal.SIGKILL)
    killed(worker)
    no_hint_is_ahead(line)
    line.finish()


@BOTH_READERS
def test_a_hint_beyond_everything_is_not_believed(line: Line) -> None:
    """Whoever commits too much, by whatever error: the stored position is where reading begins."""
    line.send(200)
    ended(line.worker(None, "--drain", name=None), 0)  # leaves the group: its offsets can be set from outside
    line.send(200)
    line.commit_to_the_end()
    wait_for(lambda: sum(line.hints().values()) == line.traffic.expected.messages, "everything is committed")
    line.send(100)
    line.finish()
