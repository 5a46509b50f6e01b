"""A line of one's own: topics, a database, traffic, and workers as processes of the real thing."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Final, LiteralString

import psycopg
from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]
from psycopg import sql

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.producer import EventProducer
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams import tenants
from streams.database import connect
from streams.ingest import log_proof, resolving, sources
from streams.ingest.logs import Log, LogReader
from streams.usage import quarantine
from tests.simulation import invariants
from tests.simulation.faults import Fault
from tests.simulation.traffic import Message, Row, Traffic

PATIENCE_S: Final = 120
"""After so long without what is waited for, something hangs. No test measures time by it."""

Worker = subprocess.Popen[str]


def reader_of(seed: int) -> str:
    """What workers read Kafka with where a seed is to choose: `faust` or `bare`."""
    return ("bare", "faust")[seed % 2]


class Line:
    """Traffic goes in by `send`; workers are started by `worker`; `finish` applies the rest and checks everything."""

    def __init__(self, kafka: KafkaSettings, database_url: str, seed: int) -> None:
        self.seed = seed
        self.reader = "faust"
        """What its workers read Kafka with: `faust` or `bare`."""
        self.kafka = kafka
        self.database_url = database_url
        self.topic = USAGE.name(kafka.topic_prefix)
        self.traffic = Traffic(seed)
        self._connection: psycopg.Connection = connect(database_url)
        tenants.register(self.connection, [(tenant, tenant) for tenant in self.traffic.tenants], actor="test")
        self._producer = EventProducer(kafka, self.topic)
        self._admin = AdminClient(kafka.client())
        self._workers: list[Worker] = []
        self._sent: dict[tuple[int, int], Message] = {}
        """By partition and offset, as Kafka acknowledged it."""

    def __enter__(self) -> Line:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.kill()
            worker.wait()
            if worker.stdout is not None:
                worker.stdout.close()
        self._connection.close()

    @property
    def connection(self) -> psycopg.Connection:
        """A connection to look at the database; a new one where the server was restarted."""
        try:
            self._connection.execute("select 1")
        except psycopg.OperationalError:
            self._connection = connect(self.database_url)
        return self._connection

    def send(self, requests: int) -> list[Message]:
        """Send the messages of so many further requests; returns them."""
        messages = self.traffic.round(requests)
        self._send(messages)
        return messages

    def resend(self, messages: Sequence[Message]) -> None:
        """Send again what each row of these messages was first said by."""
        first = {message.row: message for message in reversed(messages) if message.row is not None}
        self.traffic.expected.messages += len(first)
        self._send(list(first.values()))

    def grow(self, partitions: int) -> None:
        """Give the topic more partitions; what is sent from here on goes into all of them."""
        self._admin.create_partitions([NewPartitions(self.topic, partitions)])[self.topic].result()

        def all_there() -> bool:
            with contextlib.suppress(KafkaUnavailable):  # the new ones have no leader for a moment
                return len(self.log().ends) == partitions
            return False

        wait_for(all_there, "the topic has its new partitions")
        self.reconnect()

    def reconnect(self) -> None:
        """Send by a producer that knows the topic as it is now, and nothing of what it was."""
        self._producer = EventProducer(self.kafka, self.topic)

    def _send(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._producer.send(message.tenant_id.encode(), message.value, told=partial(self._note, message))
        self._producer.flush()

    def _note(self, message: Message, partition: int, offset: int) -> None:
        self._sent[partition, offset] = message

    def due(self) -> set[Row]:
        """The usage that messages which are passed must have left."""
        positions = self.next_positions()
        return {
            message.row
            for (partition, offset), message in self._sent.items()
            if offset < positions.get(partition, 0) and message.row is not None and message.row[0].kind == "usage"
        }

    def consistent(self) -> None:
        """What holds after any kill: events are the distinct ones sent, up to the positions; invariants.consistent."""
        before = self.due()
        stored = invariants.stored_rows(self.connection)
        after = self.due()  # what was committed as its worker died may be seen in between
        assert before <= stored.keys(), "events are lost"
        assert {row for row in stored if row[0].kind == "usage"} <= after, "events that were not sent, or not passed"
        assert set(stored.values()) <= {1}, "events are doubled"
        invariants.consistent(self.connection)

    def worker(self, fault: Fault | None = None, *options: str, name: str | None = "one") -> Worker:
        """Start a worker, of small chunks: many moments to be struck at.

        With a name it takes the place of a dead one of that name at once; without, the group waits for the dead.
        """
        command = [sys.executable, "-m", "tests.simulation.worker", "--reader", self.reader, *options]
        if name is not None:
            command += ["--instance", name]
        if fault is not None:
            command += ["--fault", fault.text]
        return self.process(command)

    def process(self, command: list[str]) -> Worker:
        """Start a process on this line's topics and database; it is killed when the line ends."""
        environ = os.environ | {
            "MALLOC_ARENA_MAX": "2",  # else how much memory it takes hangs on how many processors there are
            "TOLLBOOK_KAFKA": self.kafka.bootstrap,
            "TOLLBOOK_TOPIC_PREFIX": self.kafka.topic_prefix,
            "TOLLBOOK_DATABASE_URL": self.database_url,
        }
        worker = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._workers.append(worker)
        return worker

    def struck(self, fault: Fault, *options: str, name: str | None = "one") -> Worker:
        """Start a worker and wait until its fault has stopped it (SIGSTOP)."""
        assert fault.how == "stop"
        worker = self.worker(fault, *options, name=name)
        wait_until_stopped(worker)
        return worker

    def drain(self) -> None:
        """Let a worker apply what is there."""
        ended(self.worker(None, "--drain"), 0)

    def finish(self) -> None:
        """Apply the rest; then nothing may be missing, nothing there twice."""
        self.drain()
        self.settled()

    def settled(self) -> None:
        """What holds once everything is applied and a worker has released what waited for it."""
        assert self.lag() == 0
        wait_for(lambda: "orphan" not in quarantine.counts(self.connection), "orphans are released")
        invariants.complete(self.connection, self.traffic.expected)

    def log(self) -> Log:
        """The topic as it is now."""
        return LogReader(self.kafka, self.topic).read()

    def hints(self) -> dict[int, int]:
        """What Kafka holds as the group's committed offsets; partitions without one are left out."""
        group = f"{self.kafka.topic_prefix}.streams"
        (answer,) = self._admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
        found = answer.result().topic_partitions or []
        return {at.partition: at.offset for at in found if at.topic == self.topic and at.offset >= 0}

    def stopped(self) -> dict[int, str]:
        """Partitions that stand still, and why."""
        states = sources.states(self.connection, self.topic)
        return {partition: state.stopped_because for partition, state in states.items() if state.stopped_because}

    def alerted(self) -> set[str]:
        """The sources of which it was alerted that they stand still."""
        return {key for (key,) in self.connection.execute("select key from usage.alerts where kind = 'source_stopped'")}

    def resolve(self, to: Mapping[int, int]) -> None:
        """Let partitions that stand still go on, each at its position."""
        reader = LogReader(self.kafka, self.topic)
        for partition, position in to.items():
            resolving.resolve(
                self.connection, self.topic, reader.read, partition, position, reason="looked at it", actor="ada",
                find_held=partial(log_proof.held, self.kafka),
            )  # fmt: skip

    def commit_to_the_end(self) -> None:
        """Commit for the group, which nobody is in, that everything was read."""
        ends = [TopicPartition(self.topic, partition, end) for partition, end in self.log().ends.items()]
        group = ConsumerGroupTopicPartitions(f"{self.kafka.topic_prefix}.streams", ends)
        (answer,) = self._admin.alter_consumer_group_offsets([group]).values()
        answer.result()

    def lag(self) -> int:
        """Messages that are not applied yet."""
        return sources.lag(self.connection, self.log())

    def next_positions(self) -> dict[int, int]:
        """Each partition's stored position."""
        return {p: state.next_position for p, state in sources.states(self.connection, self.topic).items()}

    def wait_for_positions(self, least: int, worker: Worker | None = None) -> None:
        """Wait until so many messages are applied."""
        wait_for(lambda: sum(self.next_positions().values()) >= least, f"{least} messages are applied", worker)

    @contextmanager
    def locked(self, statement: str) -> Iterator[None]:
        """Inside the block another session holds the locks that the statement takes."""
        with psycopg.connect(self.database_url) as other:
            other.execute(statement)
            yield
            other.rollback()

    def wait_until_blocked(self, worker: Worker) -> None:
        """Wait until a worker waits for a lock of the database."""
        self._wait_for_session("wait_event_type = 'Lock'", worker)

    def wait_until_in_transaction(self, worker: Worker) -> None:
        """Wait until a worker is held in mid-transaction (its fault's `hold`)."""
        self._wait_for_session("state = 'idle in transaction' and state_change < now() - interval '0.5 s'", worker)

    def _wait_for_session(self, condition: LiteralString, worker: Worker) -> None:
        query = sql.SQL(
            "select 1 from pg_stat_activity where datname = current_database()"
            " and application_name = 'tollbook streams' and {}"
        ).format(sql.SQL(condition))
        with connect(self.database_url, as_login=True) as looking:  # the application sees no more than its own sessions
            wait_for(lambda: looking.execute(query).fetchone() is not None, f"a session where {condition}", worker)


def wait_for(happened: Callable[[], bool], what: str, worker: Worker | None = None) -> None:
    """Wait until something has happened; fail if a worker ends before, or if it never does."""
    deadline = time.monotonic() + PATIENCE_S
    while not happened():
        assert worker is None or worker.poll() is None, f"ended before {what}: {worker.communicate()[0]}"
        if time.monotonic() > deadline:
            said = _end(worker) if worker is not None else ""
            raise AssertionError(f"waited in vain: {what}\n{said}")
        time.sleep(0.05)


def wait_until_stopped(worker: Worker) -> None:
    """Wait until a worker's fault has stopped it (SIGSTOP)."""
    wait_for(lambda: _is_stopped(worker), "the worker reaches the step at which it is stopped", worker)


def ended(worker: Worker, code: int) -> str:
    """Wait for a worker's end, which must be with this code (negative: by that signal); returns what it said."""
    said, _ = worker.communicate(timeout=PATIENCE_S)
    assert worker.returncode == code, f"{worker.args} ended with {worker.returncode}:\n{said}"
    return said


def told_to_end(worker: Worker) -> None:
    """Tell a worker to end (SIGTERM), once it listens: before that the signal would end it like any process."""
    wait_for(lambda: _catches(worker, signal.SIGTERM), "the worker listens to signals", worker)
    worker.terminate()


def killed(worker: Worker) -> None:
    """Wait for a worker that kills itself."""
    ended(worker, -signal.SIGKILL)


def memory_of(worker: Worker) -> int:
    """A worker's resident memory in MiB."""
    with open(f"/proc/{worker.pid}/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20


def cpu_s_of(worker: Worker) -> float:
    """Seconds of processor time that a worker has used."""
    with open(f"/proc/{worker.pid}/stat", encoding="ascii") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _end(worker: Worker) -> str:
    """Kill a worker; returns what it had said."""
    worker.kill()
    return worker.communicate()[0]


def _catches(worker: Worker, number: signal.Signals) -> bool:
    with open(f"/proc/{worker.pid}/status", encoding="ascii") as status:
        (caught,) = (line.split()[1] for line in status if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def _is_stopped(worker: Worker) -> bool:
    with open(f"/proc/{worker.pid}/stat", encoding="ascii") as stat:
        return stat.read().rpartition(")")[2].split()[0] == "T"
