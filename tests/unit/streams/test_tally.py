"""The time that a reader was at work, as another thread sees it."""

from __future__ import annotations

import time
from typing import Any

from streams.ingest.tally import WorkTime


class Watched(WorkTime):
    """Is looked at after each change, when another thread could."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        super().__init__()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name != "seen":
            self.seen.append(self.seconds)


def test_the_time_at_work_never_goes_back_whenever_it_is_looked_at() -> None:
    at_work = Watched()
    for _ in range(3):
        with at_work.counted():
            began = at_work.seconds
            time.sleep(0.002)
            assert at_work.seconds >= began + 0.002
    assert at_work.seen == sorted(at_work.seen)
    assert at_work.seconds == at_work.seen[-1] >= 0.006
