"""Are the logs still those that positions are about? A partition whose log is not stands still, and is alerted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import psycopg

from serving_adapter.errors import KafkaUnavailable
from streams import alerts
from streams.alerts import Alert
from streams.ingest import log_proof, sources
from streams.ingest.feed_topics import FeedTopic
from streams.ingest.log_proof import LogProof
from streams.ingest.logs import Log
from streams.ingest.sources import Partition, SourceState
from streams.ingest.tally import Tally


class Known(NamedTuple):
    """By which leader epoch a log is known to hold what was applied of it, since when (monotonic seconds)."""

    epoch: int
    since: float


class LogWatch:
    """One reader's: what it finds is in `tally.stopped`."""

    def __init__(self, tally: Tally, say: Callable[[str], None]) -> None:
        self._tally = tally
        self._say = say
        self._agreed: dict[Partition, int] = {}
        """How far each was applied when its epoch was last the stored one: what came since may lie behind a cut."""
        self._known: dict[Partition, Known] = {}

    def compare(self, connection: psycopg.Connection, feed: FeedTopic) -> None:
        """Read positions, then the log: whatever other workers apply in between, its end is not before a position.

        What disagrees is asked about once more: a log's beginning may have moved past a position that moved on as well.
        """
        for _ in range(2):
            stored = sources.states(connection, feed.topic)
            log, read_at = feed.read_log(), time.monotonic()
            going = {n: state for n, state in stored.items() if state.stopped_because is None}
            found = {n: why for n, state in going.items() if (why := sources.disagreement(state, log, n))}
            if not found:
                break
        agreeing = {n: s for n, s in going.items() if n not in found}
        found |= self._not_what_was_applied(connection, feed, log, read_at, agreeing)
        for number, why in found.items():
            self.stop(connection, feed, number, stored[number].source, why)
        for number, state in stored.items():
            if state.stopped_because is not None:
                self.note_stopped(Partition(feed.topic, number), state)

    def _not_what_was_applied(
        self,
        connection: psycopg.Connection,
        feed: FeedTopic,
        log: Log,
        read_at: float,
        going: Mapping[int, SourceState],
    ) -> dict[int, str]:
        """Where the leader epoch is another one, and the log does not hold what was applied, and why."""
        found = {}
        with contextlib.ExitStack() as opened:
            proof: LogProof | None = None
            for number, state in going.items():
                partition, epoch = Partition(feed.topic, number), log.epochs[number]
                since = min(self._agreed.get(partition, state.next_position), state.next_position)
                if 0 <= epoch < state.leader_epoch:
                    found[number] = f"the leader epoch was {state.leader_epoch}, now {epoch}: {sources.TRUNCATED}"
                    continue
                if epoch > state.leader_epoch:
                    if proof is None:
                        proof = opened.enter_context(contextlib.closing(LogProof(feed.kafka)))
                    held = proof.held(connection, state.source, partition, log, since)
                    if held.differs:
                        why = f"the log has other messages: {sources.TRUNCATED}"
                        found[number] = sources.with_go_on(why, held.to)
                        continue
                    if not sources.note_epoch(connection, state, epoch):
                        continue  # what was applied meanwhile is compared the next time
                self._agreed[partition] = state.next_position
                self.note_known(partition, epoch, read_at)
        return found

    def note_known(self, partition: Partition, epoch: int, since: float) -> None:
        """By this epoch, whoever compared it, the log holds what was applied of it. What was fetched before may be of
        another log."""
        known = self._known.get(partition)
        if known is None or known.epoch != epoch:
            self._known[partition] = Known(epoch, since)

    def knows(self, partition: Partition, leader_epoch: int) -> bool:
        """Whether the log was compared under the leader that appended a message, or a later one (-1: not told)."""
        known = self._known.get(partition)
        return leader_epoch < 0 or (known is not None and (known.epoch < 0 or known.epoch >= leader_epoch))

    def epoch_of(self, partition: Partition) -> int | None:
        """The epoch by which the log is known; None where no broker tells any."""
        known = self._known.get(partition)
        return known.epoch if known is not None and known.epoch >= 0 else None

    def knew_after(self, partition: Partition, fetched_at: float) -> bool:
        """Whether another leader was found only after a fetch (monotonic seconds): then it is made again."""
        known = self._known.get(partition)
        return known is not None and fetched_at < known.since

    def note_stopped(self, partition: Partition, state: SourceState) -> None:
        """A partition was stopped before we came, or by another worker: it stands still for all."""
        if partition not in self._tally.stopped:
            self._tally.stopped[partition] = str(state.stopped_because)
            self._say(f"STOPPED {state.source}: {state.stopped_because}; `tollbook streams resolve` lets it go on")

    def stop(self, connection: psycopg.Connection, feed: FeedTopic, number: int, source: str, why: str) -> None:
        """Leave a partition standing, for all workers, and alert it: of a log that was cut, where it goes on."""
        partition = Partition(feed.topic, number)
        if why.endswith(sources.TRUNCATED):
            with contextlib.suppress(KafkaUnavailable):  # `resolve` looks for itself
                held = log_proof.held(feed.kafka, connection, source, partition, feed.log)
                why = sources.with_go_on(why, held.to)
        self._tally.stopped[partition] = why
        self._say(f"STOPPED {source}: {why}; `tollbook streams resolve` lets it go on")
        with connection.transaction():
            stopped = sources.mark_stopped(connection, source, why)
            if stopped is not None:  # each stop is alerted once, by whoever notes it
                position, at = stopped
                subject = {"source": source, "position": position, "why": why, "since": at.isoformat()}
                alert = Alert("source_stopped", source, subject, f"{source} stands still: {why}", at)
                alerts.raise_all(connection, [alert])
