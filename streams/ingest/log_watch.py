"""Are the logs still those that positions are about? A partition whose log is not stands still, and is alerted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import psycopg

from streams import alerts
from streams.alerts import Alert
from streams.ingest import sources
from streams.ingest.feed_topics import FeedTopic
from streams.ingest.log_proof import LogProof
from streams.ingest.logs import Log
from streams.ingest.sources import Partition, SourceState
from streams.ingest.tally import Tally


class LogWatch:
    """One reader's: what it finds is in `tally.stopped`."""

    def __init__(self, tally: Tally, say: Callable[[str], None]) -> None:
        self._tally = tally
        self._say = say
        self._agreed: dict[Partition, int] = {}
        """How far each was applied when its epoch was last the stored one: what came since may lie behind a cut."""

    def compare(self, connection: psycopg.Connection, feed: FeedTopic) -> None:
        """Read positions, then the log: whatever other workers apply in between, its end is not before a position.

        What disagrees is asked about once more: a log's beginning may have moved past a position that moved on as well.
        """
        for _ in range(2):
            stored = sources.states(connection, feed.topic)
            log = feed.read_log()
            going = {n: state for n, state in stored.items() if state.stopped_because is None}
            found = {n: why for n, state in going.items() if (why := sources.disagreement(state, log, n))}
            if not found:
                break
        found |= self._not_what_was_applied(connection, feed, log, {n: s for n, s in going.items() if n not in found})
        for number, why in found.items():
            self.stop(connection, Partition(feed.topic, number), stored[number].source, why)
        for number, state in stored.items():
            if state.stopped_because is not None:
                self.note_stopped(Partition(feed.topic, number), state)

    def _not_what_was_applied(
        self, connection: psycopg.Connection, feed: FeedTopic, log: Log, going: Mapping[int, SourceState]
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
                    begins = log.begins[number]
                    at = proof.differs_at(connection, state.source, partition, since=since, begins=begins)
                    if at is not None:
                        found[number] = f"from position {at} on the log has other messages: {sources.TRUNCATED}"
                        continue
                    sources.note_epoch(connection, state.source, epoch)
                self._agreed[partition] = state.next_position
        return found

    def note_stopped(self, partition: Partition, state: SourceState) -> None:
        """A partition was stopped before we came, or by another worker: it stands still for all."""
        if partition not in self._tally.stopped:
            self._tally.stopped[partition] = str(state.stopped_because)
            self._say(f"STOPPED {state.source}: {state.stopped_because}; `tollbook streams resolve` lets it go on")

    def stop(self, connection: psycopg.Connection, partition: Partition, source: str, why: str) -> None:
        """Leave a partition standing, for all workers, and alert it."""
        self._tally.stopped[partition] = why
        self._say(f"STOPPED {source}: {why}; `tollbook streams resolve` lets it go on")
        with connection.transaction():
            stopped = sources.mark_stopped(connection, source, why)
            if stopped is not None:  # each stop is alerted once, by whoever notes it
                position, at = stopped
                subject = {"source": source, "position": position, "why": why, "since": at.isoformat()}
                alert = Alert("source_stopped", source, subject, f"{source} stands still: {why}", at)
                alerts.raise_all(connection, [alert])
