"""The shipper: reads each boot's spool up to its durable mark, sends events to Kafka, and stores how far it is.

The position moves only once Kafka has acknowledged everything before it. A kill in between sends some events again:
they have identities. A boot whose process is gone is recovered here, and its farewell said once its events are there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from serving_adapter import replica_reports
from serving_adapter.clock import ReplicaClock
from serving_adapter.errors import AdapterError, RefusedEvent
from serving_adapter.events import decode, key_of
from serving_adapter.ingest import cloud_event_headers
from serving_adapter.producer import EventProducer
from serving_adapter.replica_reports import MOST_TOTALS
from serving_adapter.settings import KafkaSettings
from serving_adapter.shipping import poison
from serving_adapter.shipping.archive import Archive, ArchiveFailed
from serving_adapter.shipping.position import Shipped, load, store
from serving_adapter.shipping.shipping_figures import ShippingFigures
from serving_adapter.spool.folders import BootFolder, boots
from serving_adapter.spool.reader import Unreadable, durable_position, read_from
from serving_adapter.spool.records import Replay, SpoolUnreadable, ends_boot, event_bytes
from serving_adapter.spool.recovery import recover, replay
from serving_adapter.topics import REPLICAS, USAGE

BATCH: Final = 1000
"""Events between two stored positions: so many are sent again after a kill, at most."""
DELIVER_WITHIN_S: Final = 30.0
POLL_S: Final = 0.1
MOST_PAUSE_S: Final = 30.0
WITHOUT_ARCHIVE: Final = (
    "WARNING: no --archive: segments stay on this disk after they are shipped. Once they fill the spool's bound, "
    "the replica refuses requests, or serves what no disk has (policy of [spool])"
)

Say = Callable[[str], None]


@dataclass(slots=True)
class Producers:
    """The two topics; made anew after a failure, because a producer that lost a message sends no more."""

    kafka: KafkaSettings
    _usage: EventProducer | None = None
    _replicas: EventProducer | None = None

    def usage(self) -> EventProducer:
        """For events. Raises KafkaUnavailable."""
        if self._usage is None:
            self._usage = EventProducer(self.kafka, USAGE.name(self.kafka.topic_prefix), DELIVER_WITHIN_S)
        return self._usage

    def replicas(self) -> EventProducer:
        """For what replicas say. Raises KafkaUnavailable."""
        if self._replicas is None:
            self._replicas = EventProducer(self.kafka, REPLICAS.name(self.kafka.topic_prefix), DELIVER_WITHIN_S)
        return self._replicas

    def forget(self) -> None:
        """They have failed."""
        self._usage = self._replicas = None


class Shipper:
    """Ships every boot below a root."""

    def __init__(
        self, root: Path, producers: Producers, *, archive: Archive | None = None, say: Say = print, batch: int = BATCH
    ) -> None:
        self._root = root
        self._producers = producers
        self._archive = archive
        self._say = say
        self._batch = batch
        self._clock = ReplicaClock()
        self._shipped: dict[Path, Shipped] = {}
        self._troubles: dict[Path, str] = {}
        self._finished: set[Path] = set()
        """Boots of which nothing more will come, and nothing is left to archive: looked at no more."""
        self.figures = ShippingFigures()

    @property
    def frees_the_disk(self) -> bool:
        """Whether what was shipped leaves the disk."""
        return self._archive is not None

    def ship(self) -> int:
        """Send what is durable and not sent yet, of all boots; how many events.

        Raises KafkaUnavailable, DeliveryFailed: then call it again.
        """
        sent = 0
        for folder in self._unfinished():
            try:
                sent += self._ship_boot(folder)
            except (SpoolUnreadable, ArchiveFailed, OSError) as error:  # this boot's own trouble: the others go on
                self._complain(folder, error)
                self.figures.seen(folder.path, level=False, over=False)
        return sent

    def _unfinished(self) -> list[BootFolder]:
        if not self._finished:
            return boots(self._root)
        found = sorted(path for path in self._root.glob("*/*") if path not in self._finished)
        return [BootFolder(path) for path in found if not path.name.startswith(".") and (path / "lock").exists()]

    def _complain(self, folder: BootFolder, error: Exception) -> None:
        """Once for each trouble."""
        if self._troubles.get(folder.path) != str(error):
            self._say(f"{folder.path}: {error}")
        self._troubles[folder.path] = str(error)

    def _ship_boot(self, folder: BootFolder) -> int:
        shipped = self._shipped.get(folder.path) or load(folder)
        before = shipped.events
        if not shipped.done:
            self._recover(folder)
            while (after := self._ship_batch(folder, shipped)) != shipped:
                shipped = after
            if shipped.farewell and shipped.position == durable_position(folder):
                self._say_farewell(folder)
                shipped = replace(shipped, done=True)
                store(folder, shipped)
        self._shipped[folder.path] = shipped
        level = shipped.done or shipped.position == durable_position(folder)
        self.figures.seen(folder.path, level=level, over=shipped.done)
        if self._archive is not None:
            self._archive.take(folder, shipped)
        if shipped.done:
            self._finished.add(folder.path)
            self._troubles.pop(folder.path, None)
            del self._shipped[folder.path]
        return shipped.events - before

    def _recover(self, folder: BootFolder) -> None:
        try:
            found = recover(folder, self._clock.now_ns)
        except SpoolUnreadable as error:  # what is whole is shipped all the same; who is open there needs a person
            self._complain(folder, error)
            return
        if found is not None:
            self._say(
                f"{folder.replica_id} {folder.boot_id}: broke off, {found.lost} requests lost,"
                f" {found.torn_bytes} torn bytes cut off, {len(found.damage)} stretches damaged"
            )

    def _ship_batch(self, folder: BootFolder, shipped: Shipped) -> Shipped:
        """The next events; stored once Kafka has them."""
        after = shipped
        for found in read_from(folder, shipped.position):
            segment, offset = found.after
            after = replace(after, segment=segment, offset=offset, farewell=False)
            if isinstance(found, Unreadable):
                self._say(f"{folder.path}: {found.begin} to {found.after} cannot be read: what it held is missing")
                after = replace(after, unreadable=after.unreadable + 1)
            elif ends_boot(found.payload):
                after = replace(after, farewell=True)
            elif (event := event_bytes(found.payload)) is not None:
                headers = _headers(event, folder)
                self._producers.usage().send(key_of(event), event, headers, may_be_refused=True)
                after = replace(after, events=after.events + 1)
            if after.events - shipped.events >= self._batch:
                break
        if after != shipped:
            if after.events > shipped.events:
                for refused in self._producers.usage().settle():
                    self._set_aside(folder, refused.value, refused.reason)
                    after = replace(after, events=after.events - 1, poison=after.poison + 1)
            store(folder, after)
            self.figures.events += after.events - shipped.events
            self.figures.poison += after.poison - shipped.poison
            self.figures.unreadable += after.unreadable - shipped.unreadable
        return after

    def _say_farewell(self, folder: BootFolder) -> None:
        """In the name of a boot that is over: its last number is final. Saying it twice changes nothing."""
        state, _, _ = replay(folder)
        producer = self._producers.replicas()
        for report in farewells(state):
            replica_reports.send(producer, report)
        producer.flush()

    def _set_aside(self, folder: BootFolder, event: bytes, reason: str) -> None:
        """An event that Kafka will never take: whole into a file, so that the others go on."""
        aside = poison.set_aside(self._root, folder.path.name, event)
        self._say(f"{folder.path}: an event was set aside in {aside}: {reason}")


def farewells(state: Replay) -> list[replica_reports.Farewell]:
    """A boot's farewell, with its totals over as many messages as they need."""
    if state.boot is None or state.farewell is None:
        return []
    totals = state.tally.all()
    parts = [totals[i : i + MOST_TOTALS] for i in range(0, len(totals), MOST_TOTALS)] or [[]]
    said = state.farewell
    return [
        replica_reports.Farewell(
            replica_id=state.boot.replica_id, boot_id=state.boot.boot_id, at=said.at, last_seq=said.last_seq,
            started=said.started, ended=said.ended, totals=part,
        )
        for part in parts
    ]  # fmt: skip


def keep_shipping(shipper: Shipper, producers: Producers, stop: threading.Event, say: Say = print) -> None:
    """Ship until told to stop, and what is there a last time. While Kafka is away, pause 1, 2, 4 … 30 s."""
    if not shipper.frees_the_disk:
        say(WITHOUT_ARCHIVE)
    failures = 0
    while True:
        last = stop.is_set()
        try:
            sent = shipper.ship()
            shipper.figures.turned(failed=False)
            if failures:
                say(f"shipping again after {failures} failures")
            failures = 0
        except AdapterError as error:
            producers.forget()
            shipper.figures.turned(failed=True)
            if not failures:
                say(f"{error}; the spool keeps what is not shipped")
            failures += 1
            sent = 0
        if last:
            return
        if failures:
            stop.wait(min(MOST_PAUSE_S, 2.0 ** min(failures - 1, 10)))
        elif not sent:
            stop.wait(POLL_S)


def _headers(event: bytes, folder: BootFolder) -> list[tuple[str, bytes]]:
    try:
        return cloud_event_headers(decode(event), f"tollbook-adapter/{folder.replica_id}")
    except RefusedEvent:  # the streams quarantine it, with the reason
        return []
