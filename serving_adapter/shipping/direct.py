"""Events that memory alone holds, straight to Kafka: `serve_memory` while the spool's disk is full or fails.

A thread of the adapter's own process. What the disk takes after all is shipped a second time; events have identities.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Final

from serving_adapter.errors import AdapterError
from serving_adapter.events import UsageEvent, encode
from serving_adapter.ingest import cloud_event_headers
from serving_adapter.producer import EventProducer

MOST_KEPT: Final = 200_000
"""Events that wait for Kafka, some 500 bytes each; beyond that the latest are lost, and counted."""
BATCH: Final = 1000
RETRY_AFTER_S: Final = 1.0
WAIT_S: Final = 1.0
ENDED_WITHIN_S: Final = 25.0


class DirectShipper:
    """From a queue in memory to the usage topic."""

    def __init__(self, open_producer: Callable[[], EventProducer], replica_id: str) -> None:
        """`open_producer` may raise AdapterError; it is asked again after a failure."""
        self.sent = 0
        self.lost = 0
        self._open = open_producer
        self._source = f"tollbook-adapter/{replica_id}"
        self._queue: queue.Queue[UsageEvent | None] = queue.Queue(MOST_KEPT)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tollbook-direct", daemon=True)
        self._thread.start()

    def put(self, event: UsageEvent) -> None:
        """Send it as soon as Kafka takes it."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            self.lost += 1

    def stop(self) -> None:
        """Send what waits, if Kafka takes it soon."""
        self._stop.set()
        with contextlib.suppress(queue.Full):  # a full queue wakes it, too
            self._queue.put_nowait(None)
        self._thread.join(ENDED_WITHIN_S)

    def _run(self) -> None:
        producer: EventProducer | None = None
        while (batch := self._batch()) or not self._stop.is_set():
            while batch:
                try:
                    producer = producer or self._open()
                    for event in batch:
                        headers = cloud_event_headers(event, self._source)
                        producer.send(event.tenant_id.encode(), encode(event), headers, may_be_refused=True)
                    refused = len(producer.settle())
                    self.lost += refused
                    self.sent += len(batch) - refused
                    batch = []
                except AdapterError:
                    producer = None
                    if self._stop.wait(RETRY_AFTER_S):
                        self.lost += len(batch) + self._queue.qsize()
                        return

    def _batch(self) -> list[UsageEvent]:
        """What waits; waits for the first, a while."""
        try:
            found = [self._queue.get(timeout=WAIT_S)]
        except queue.Empty:
            return []
        while len(found) < BATCH:
            try:
                found.append(self._queue.get_nowait())
            except queue.Empty:
                break
        return [event for event in found if event is not None]
