"""`python -m tests.simulation.worker`: a real streams worker with a fault in it, for tests.

The services are those of the environment. What can be set is what tests need to drive the worker into the situations
in which Faust's own acknowledgement loses messages.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
from functools import partial
from typing import Any

import mode

from serving_adapter.settings import KafkaSettings
from streams.ingest.ingestion import Ingestion
from streams.ingest.sources import Partition
from streams.settings import DatabaseSettings
from streams.workers import consumer, worker
from streams.workers.coalescing import Fetched
from tests.simulation.faults import Fault, Injector

CUT_OFF = "Faust cut a batch off"


class FaultyWorker(worker.StreamsWorker):
    """The worker, with some of Faust's settings replaced; it tells when a batch in hand is cut off."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.faust_settings: dict[str, Any] = {}
        self.cut_off = threading.Event()

    def _app(self) -> Any:
        app = super()._app()
        for name, value in self.faust_settings.items():
            setattr(app.conf, name, value)
        return app

    async def _take(self, app: Any, partition: Partition, fetched: Fetched) -> None:
        try:
            await super()._take(app, partition, fetched)
        except asyncio.CancelledError:
            print(CUT_OFF, file=sys.stderr, flush=True)
            self.cut_off.set()
            raise


def ask_in_vain(ingestion: Ingestion) -> None:
    """Let the question after each partition's log fail once."""
    asked = set()
    ask = ingestion.is_same_log

    def is_same_log(partition: Partition, fetched_at: float) -> bool:
        if partition not in asked:
            asked.add(partition)
            return False
        return ask(partition, fetched_at)

    ingestion.is_same_log = is_same_log  # type: ignore[method-assign]


def main() -> int:
    """Run until drained, stopped, or struck."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fault", type=Fault.of, help="JSON of tests.simulation.faults.Fault")
    parser.add_argument("--reader", choices=("faust", "bare"), default="faust")
    parser.add_argument("--instance", help="its name in the group (static membership)")
    parser.add_argument("--drain", action="store_true")
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--eager", action="store_true", help="tell Kafka at every moment where it may begin to read")
    parser.add_argument("--do-not-wait", action="store_true", help="Faust's stream_wait_empty=False")
    parser.add_argument("--restart-agent", action="store_true", help="Faust's default supervisor instead of ours")
    parser.add_argument("--ask-in-vain", action="store_true", help="Kafka cannot be asked once for each partition")
    parser.add_argument("--metadata-age-ms", type=int, help="how soon it notices that a topic has more partitions")
    parser.add_argument("--max-poll-s", type=float, help="Faust's broker_max_poll_interval")
    parser.add_argument("--session-timeout-s", type=int, help="after which a worker that is silent is missed")
    given = parser.parse_args()
    if given.eager:
        consumer.HINT_EVERY_S = worker.HINT_EVERY_S = 0.05  # type: ignore[misc]
    if given.session_timeout_s:
        consumer.SESSION_TIMEOUT_S = worker.SESSION_TIMEOUT_S = given.session_timeout_s  # type: ignore[misc]
    if given.metadata_age_ms:
        consumer.METADATA_AGE_MS = worker.METADATA_AGE_MS = given.metadata_age_ms  # type: ignore[misc]
    injector = Injector(given.fault)
    make = FaultyWorker if given.reader == "faust" else consumer.BareConsumer
    made = make(
        KafkaSettings.from_environment(),
        DatabaseSettings.from_environment(),
        drain=given.drain,
        chunk_messages=given.chunk,
        instance=given.instance,
        say=lambda text: print(text, file=sys.stderr, flush=True),
        checkpoint=injector,
    )
    if given.ask_in_vain:
        ask_in_vain(made.ingestion)
    if isinstance(made, FaultyWorker):
        if given.eager:
            made.faust_settings["broker_commit_interval"] = 0.1
        if given.max_poll_s:
            made.faust_settings["broker_max_poll_interval"] = given.max_poll_s
        if given.do_not_wait:
            made.faust_settings["stream_wait_empty"] = False
            injector.hold = partial(made.cut_off.wait, 30)  # longer than a shutdown takes to come to it
        if given.restart_agent:
            made.faust_settings["agent_supervisor"] = mode.OneForOneSupervisor
    made.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
