"""What a reader of Kafka does beside reading, whichever client it reads with: look for what was dropped on the way, for
logs that went quiet, for the end of a drain; and say how far it is.

The reader says where its fetching is and seeks to where it is told; everything here may block, and is called off its
loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from streams.errors import WorkerCrashed
from streams.ingest.ingestion import Ingestion
from streams.ingest.sources import Partition, SourceState
from streams.workers.standstill import IDLE_S, Standstill

SESSION_TIMEOUT_S: Final = 6
"""A worker that was killed is missed after this; its partitions then move."""
METADATA_AGE_MS: Final = 30_000
"""How soon a topic that was made again, or has more partitions, is noticed."""
HINT_EVERY_S: Final = 1.0
REPORT_EVERY_S: Final = 2.0
DRAIN_CHECK_EVERY_S: Final = 0.25
SWEEP_EVERY_S: Final = 2.0
SIGN_EVERY_S: Final = 1.0
UPKEEP_EVERY_S: Final = 1.0
QUIET_S: Final = 3.0
"""With nothing in hand for so long, what was fetched and is not applied was dropped on the way."""
LOG_CHECK_EVERY_S: Final = 10.0
QUIET_BESIDE_OTHERS_S: Final = 20.0
"""The same for one partition while others are at work: longer than anything waits its turn."""
READ_AGAIN_TIMES: Final = 3
"""After so many times there really is nothing, though the log does not say why."""

Fetched = Mapping[Partition, int | None]
"""Which position is fetched next of each partition that is ours; None: not known."""


class Sweeper:
    """One reader's."""

    def __init__(self, ingestion: Ingestion, say: Callable[[str], None]) -> None:
        self._ingestion = ingestion
        self._say = say
        self._drain_to = {p: end for feed in ingestion.feeds.values() for p, end in feed.ends.items()}
        self._taken_at = self._begun_at = time.monotonic()
        self._taken_of: dict[Partition, float] = {}
        self._taken = 0
        self._standstill = Standstill()
        self._logs_read_at = time.monotonic()
        self._read_again: dict[Partition, int] = {}
        self._reported = 0
        self._reported_at = time.monotonic()

    def took(self, partition: Partition) -> None:
        """Something of a partition was taken in hand, or is done."""
        self._taken += 1
        self._taken_at = self._taken_of[partition] = time.monotonic()

    def moved(self, partitions: Iterable[Partition]) -> None:
        """These were applied further."""
        for partition in partitions:
            self._read_again.pop(partition, None)

    def look(self) -> dict[Partition, SourceState]:
        """Release some corrections whose original has come; the stored states. Raises as `Ingestion.stored` does."""
        return self._ingestion.sweep()

    def dropped(
        self, states: Mapping[Partition, SourceState], fetched: Fetched, *, in_hand: bool
    ) -> dict[Partition, int]:
        """Where to go back to, where more was fetched than is applied and nothing of it has come up for a while.

        A client drops what it had fetched before a rebalance, and we what came while Kafka could not be asked. A later
        message would show the gap; this is for when there is none. What holds nothing, like the marker with which a
        transaction ends, is passed over. `in_hand`: something is being applied, or waits.
        """
        now = time.monotonic()
        all_quiet = not in_hand and self._taken_at <= now - QUIET_S
        back_to = {}
        for partition, position in fetched.items():
            if partition not in states or not self._goes_on(partition):
                continue
            due = states[partition].next_position
            if (position or 0) <= due:
                continue
            times = self._read_again.get(partition, 0)
            if all_quiet and self._ingestion.pass_over(partition, due, position or 0):
                self.took(partition)
            elif all_quiet and times < READ_AGAIN_TIMES:
                if partition not in self._ingestion.asked_in_vain:
                    self._read_again[partition] = times + 1
                back_to[partition] = due
            elif not all_quiet and self._taken_of.get(partition, self._begun_at) <= now - QUIET_BESIDE_OTHERS_S:
                self._taken_of[partition] = now
                back_to[partition] = due
        return back_to

    def check_logs(self, states: Mapping[Partition, SourceState], ours: Iterable[Partition]) -> None:
        """Where nothing comes: is there nothing, or another log, or does the consumer hang?

        Raises WorkerCrashed if it hangs, and as `Ingestion.read_logs` does.
        """
        now = time.monotonic()
        if now - self._logs_read_at < LOG_CHECK_EVERY_S:
            return
        self._logs_read_at = now
        self._ingestion.read_logs()
        ends = {p: end for feed in self._ingestion.feeds.values() for p, end in feed.ends.items()}
        behind = {
            partition: states[partition].next_position
            for partition in ours
            if partition in states
            and self._goes_on(partition)
            and ends.get(partition, 0) > states[partition].next_position
            and self._read_again.get(partition, 0) < READ_AGAIN_TIMES  # in vain
        }
        stuck = self._standstill.see(behind, now, self._ingestion.busy_s, self._taken)
        if stuck is not None:
            raise WorkerCrashed(f"{stuck}: nothing comes for {IDLE_S:.0f} s, and there is something")

    def waiting(self, states: Mapping[Partition, SourceState]) -> list[Partition]:
        """Partitions that are not applied up to the end that the log had when we started, and could be."""
        return [p for p, end in self._drain_to.items() if self._goes_on(p) and states[p].next_position < end]

    def is_drained(self, fetched: Fetched | None) -> bool:
        """Whether everything is applied that was there when we started; orphans are then released.

        `fetched` = None while something is in hand. Raises as `Ingestion.stored` does.
        """
        waiting = self.waiting(self._ingestion.stored())
        if waiting and fetched is not None:
            waiting = [partition for partition in waiting if not self._has_nothing_left(partition, fetched)]
        if waiting:
            return False
        self._ingestion.release_orphans()
        return True

    def report(self) -> None:
        """Say how far this worker is, when something has changed."""
        now, tally = time.monotonic(), self._ingestion.tally
        if tally.seen == self._reported:
            return
        rate = (tally.seen - self._reported) / (now - self._reported_at)
        self._reported, self._reported_at = tally.seen, now
        self._say(
            f"applied {tally.applied:,}, duplicates {tally.duplicates:,}, quarantined {tally.quarantined:,}"
            f" ({rate:,.0f} messages/s)"
        )

    def _goes_on(self, partition: Partition) -> bool:
        return partition not in self._ingestion.tally.stopped

    def _has_nothing_left(self, partition: Partition, fetched: Fetched) -> bool:
        """Whether everything readable was read, though the log goes on: then it stands still."""
        end = self._drain_to[partition]
        if self._read_again.get(partition, 0) < READ_AGAIN_TIMES or (fetched.get(partition) or 0) < end:
            return False
        why = f"the log ends at {end}, but what is left has no message"
        self._ingestion.stand_still(partition, why)
        return True
