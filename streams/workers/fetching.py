"""Faust's Kafka transport with a shorter wait at the broker, and back-pressure that treats partitions alike.

A consumer asks its broker for all partitions that it has nothing of in hand, and waits for that answer before it asks
for others. Faust lets the broker wait 1.5 s for something to say, which is fixed in its code: one silent partition
(replicas that report nothing) could hold back busy ones for as long.

Where a stream's buffer fills, Faust stops the partition that filled it, and lets one stopped partition go on for each
message taken, in no order: under steady load some wait for seconds (measured: 3 s at 10,000 events/s). Here nothing is
fetched at all while chunks wait; meanwhile every partition's next chunk grows, and the next fetch brings all of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

from faust.transport.drivers import aiokafka as driver

from streams.workers import lenient_batches

FETCH_WAIT_MS: Final = 50
"""How long the broker may wait for messages: 20 questions a second of a silent topic cost it nothing to speak of."""
WAITING_CHUNKS: Final = 2
"""With so many waiting nothing is fetched. One fetch brings at most POLL_MESSAGES more, for all partitions."""
LOOK_EVERY_S: Final = 0.005


class _PromptThread(driver.AIOKafkaConsumerThread):
    def _create_worker_consumer(self, transport: Any) -> Any:
        lenient_batches.install()
        consumer = super()._create_worker_consumer(transport)
        # Read when it starts; the versions of both are pinned
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS
        consumer._isolation_level = "read_committed"
        return consumer

    def waits(self) -> None:
        """Nothing is fetched, and nobody is gone: aiokafka leaves the group where it sees neither for too long."""
        if self._consumer is not None:
            self._consumer._subscription._last_fetch_ended = time.monotonic()


class _PromptConsumer(driver.Consumer):
    def _new_consumer_thread(self) -> _PromptThread:
        return _PromptThread(self, loop=self.loop, beacon=self.beacon)

    async def getmany(self, timeout: float) -> AsyncIterator[Any]:
        """Faust's own, once there is room."""
        while (
            self.flow_active
            and not self.should_stop
            and cast(PromptTransport, self.transport).waiting() >= WAITING_CHUNKS
        ):
            cast(_PromptThread, self._thread).waits()
            await asyncio.sleep(LOOK_EVERY_S)
        async for fetched in super().getmany(timeout):
            yield fetched


class PromptTransport(driver.Transport):
    """What `app.transport` is set to."""

    Consumer = _PromptConsumer
    waiting: Callable[[], int]
    """How many chunks wait to be applied."""
