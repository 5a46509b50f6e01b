"""However many processes replay, live ingestion is left as much."""

from __future__ import annotations

import heapq

import pytest

from reconciliation.replay.applying import Pace

CHUNK = 2000


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_all_who_replay_keep_to_one_rate(processes: int) -> None:
    replayed, rate, seconds = 0, 10_000, 30
    paces = [Pace(rate, replayed, 0) for _ in range(processes)]
    turns = [(0.0, at) for at in range(processes)]
    while turns[0][0] < seconds:
        now, at = heapq.heappop(turns)
        replayed += CHUNK
        heapq.heappush(turns, (now + 0.01 + paces[at].due(replayed, now), at))
    # Each may have a chunk beyond it, and one second is not caught up with
    assert rate * (seconds - 2) <= replayed <= rate * (seconds + 1) + CHUNK * processes


def test_a_pause_is_not_caught_up_with() -> None:
    pace = Pace(10_000, 0, 0)
    assert pace.due(CHUNK, 0) == pytest.approx(0.2)
    assert pace.due(2 * CHUNK, 100) == 0
    assert pace.due(8 * CHUNK, 100) == pytest.approx(0.2), "a second's worth of the pause, and no more"
    assert Pace(None, 0, 0).due(10**9, 0) == 0
