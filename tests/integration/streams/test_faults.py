"""Workers that are killed, stopped, evicted and restarted: nothing is lost and nothing counts twice.

Real workers on the real Kafka and the real database, in dirty traffic. After each fault the database is consistent;
at the end everything that was sent is there once (tests/simulation/invariants.py says what that means).
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from confluent_kafka import Consumer, ConsumerGroupState, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from serving_adapter.identity import Identity
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS
from streams.ingest.apply import STEPS
from streams.ingest.replica_apply import REPORT_STEPS
from tests.builders import report_json
from tests.integration.streams.conftest import BOTH_READERS
from tests.simulation.faults import Fault
from tests.simulation.line import (
    Line,
    Worker,
    ended,
    killed,
    memory_of,
    told_to_end,
    wait_for,
    wait_until_stopped,
)
from tests.simulation.slow_link import SlowLink
from tests.simulation.traffic import BEGIN

STANDS_STILL_S = 8
GROWS_AT_MOST_MIB = 100
"""A fetch of each partition, what waits, and a chunk with its copies (60 to 70 seen); not the 180 MB that are sent."""

# Inside a step: while its statement runs, which is held up by a lock on what it writes. The worker is stopped before.
INSIDE = {
    "lock": ("begun", "select 1 from usage.sources for update"),
    "count": ("staged", "lock table usage.windows_1h in share mode"),
    "feed": ("staged", "lock table usage.quota_feed in share mode"),
    "further arrival": ("counted", "lock table usage.superseded_events in share mode"),
    "quarantine": ("counted", "lock table usage.quarantine in share mode"),
    "record": ("quarantined", "lock table usage.applied_chunks in share mode"),
    "advance": ("quarantined", "lock table usage.sources in share mode"),
}


def test_a_worker_killed_between_any_two_steps_leaves_all_of_a_chunk_or_nothing(line: Line) -> None:
    line.send(900)
    for step in STEPS:
        # Not the first chunk: what was applied before is there to be damaged
        killed(line.worker(Fault(step, nth=2)))
        line.consistent()
    line.finish()


def test_a_worker_killed_inside_any_step_leaves_nothing_of_the_chunk(line: Line) -> None:
    line.send(900)
    for before, lock in INSIDE.values():
        worker = line.struck(Fault(before, nth=2, how="stop"))
        with line.locked(lock):
            worker.send_signal(signal.SIGCONT)
            line.wait_until_blocked(worker)
            positions = line.next_positions()
            worker.kill()
            killed(worker)
            assert line.next_positions() == positions
        line.consistent()
    line.finish()


def test_a_worker_killed_at_any_step_of_the_replicas_reports(line: Line) -> None:
    """What a report says stands there as if nobody had been killed: the last state, and everything that was counted."""
    tenant, model = line.traffic.tenants[0], "m"
    producer = Producer(line.kafka.client())
    topic = REPLICAS.name(line.kafka.topic_prefix)
    reports = 0

    def report(kind: str, last_seq: int) -> None:
        nonlocal reports
        totals = [{"tenant_id": tenant, "model": model, "events": last_seq, "input_tokens": 10 * last_seq,
                   "output_tokens": last_seq, "cache_hit_tokens": 0}]  # fmt: skip
        more = {"last_seq": last_seq, "totals": totals} if kind == "heartbeat" else {}
        producer.produce(topic, report_json(kind, **more), b"r1")
        reports += 1

    def state() -> tuple[object, ...] | None:
        return line.connection.execute(
            "select b.last_seq, b.started, r.events, r.input_tokens, (select sum(applied)::int8 from"
            " usage.applied_chunks where source like '%%.replicas.v1/%%') from usage.boots as b"
            " join usage.replica_reported as r using (replica_id, boot_id)"
        ).fetchone()

    report("boot", 0)
    last_seq = 0
    for step in REPORT_STEPS:
        for _ in range(60):  # more than a chunk
            last_seq += 3
            report("heartbeat", last_seq)
        assert producer.flush(60) == 0
        killed(line.worker(Fault(step, nth=2), "--chunk", "20"))
    line.drain()
    assert state() == (last_seq, last_seq, last_seq, 10 * last_seq, reports)


Shares = dict[str | None, set[tuple[str, int]]]
NO_COORDINATOR = (
    KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS
)  # fmt: skip


def members(line: Line) -> Shares:
    """The group's members by their own names (None: it has none), and what each has been given; none while it moves."""
    group = f"{line.kafka.topic_prefix}.streams"
    admin = AdminClient(line.kafka.client())  # held: its answers end with it
    (answer,) = admin.describe_consumer_groups([group]).values()
    try:
        found = answer.result()
    except KafkaException as error:
        if error.args[0].code() not in NO_COORDINATOR:
            raise
        return {}
    if found.state is not ConsumerGroupState.STABLE:
        return {}
    return {
        member.group_instance_id: {(at.topic, at.partition) for at in member.assignment.topic_partitions}
        for member in found.members
    }


def wait_for_shares(line: Line, names: Sequence[str], worker: Worker) -> Shares:
    """Wait until each has partitions, the same for two seconds: a group that has just begun may be divided anew."""
    known: list[Shares] = []

    def all_have_theirs() -> bool:
        known.append(members(line))
        last = known[-20:]
        return len(last) == 20 and all(each == last[0] for each in last) and all(map(last[0].get, names))

    wait_for(all_have_theirs, "all have theirs", worker)
    return known[-1]


@BOTH_READERS
def test_two_workers_killed_at_once(line: Line) -> None:
    """Each holds partitions of its own, and is in mid-transaction."""
    faults = [Fault("counted", nth=3, how="stop"), Fault("advanced", nth=2, how="stop")]
    workers = [line.worker(fault, "--chunk", "20", name=fault.step) for fault in faults]
    wait_for_shares(line, [fault.step for fault in faults], workers[0])
    line.send(900)
    for worker in workers:
        wait_until_stopped(worker)
    positions = line.next_positions()
    for worker in workers:
        worker.kill()
    for worker in workers:
        killed(worker)
    line.consistent()
    assert line.next_positions() == positions
    line.finish()


@pytest.mark.parametrize(("reader", "step"), [("faust", "counted"), ("faust", "committed"), ("bare", "counted")])
def test_a_worker_that_wakes_after_its_partitions_were_given_away_writes_nothing_twice(line: Line, step: str) -> None:
    """Stopped in mid-transaction it holds its partition's row: the database lets go of it, and the others go on."""
    line.send(400)
    zombie = line.struck(Fault(step, nth=2, how="stop"), name=None)
    line.drain()
    line.settled()
    zombie.send_signal(signal.SIGCONT)
    line.send(200)
    line.wait_for_positions(line.traffic.expected.messages, zombie)
    line.settled()
    told_to_end(zombie)
    ended(zombie, 0)


@BOTH_READERS
def test_a_rebalance_storm(line: Line) -> None:
    dice = random.Random(line.seed)
    workers = [line.worker(name=None)]
    for _ in range(6):
        line.send(150)
        workers.append(line.worker(name=None))
        line.wait_for_positions(int(line.traffic.expected.messages * 0.5))
        leaving = workers.pop(dice.randrange(len(workers) - 1))
        leaving.send_signal(dice.choice((signal.SIGTERM, signal.SIGKILL)))
    line.wait_for_positions(line.traffic.expected.messages, workers[-1])
    line.settled()
    for worker in workers:
        told_to_end(worker)
        ended(worker, 0)


def ask_for_the_place(line: Line, name: str) -> None:
    """As a worker's own client does that heard of no broker for a session's time."""
    again = Consumer(
        line.kafka.client(
            **{"group.id": f"{line.kafka.topic_prefix}.streams", "group.instance.id": name,
               "session.timeout.ms": 60_000, "partition.assignment.strategy": "range", "enable.auto.commit": False}
        )
    )  # fmt: skip
    given: list[TopicPartition] = []
    topics = [line.topic, REPLICAS.name(line.kafka.topic_prefix)]  # as the worker's: nothing is divided anew
    again.subscribe(topics, on_assign=lambda _consumer, partitions: given.extend(partitions))
    while not given:
        again.poll(0.1)
    again.close()


@BOTH_READERS
def test_a_worker_takes_its_place_again_under_its_own_name(line: Line) -> None:
    """Static membership: its partitions wait for it, nobody else's are moved; and two of one name do no harm."""
    patient = ("--session-timeout-s", "60")  # longer than any restart takes
    line.send(300)
    other = line.worker(None, *patient, name="two")
    first = line.worker(None, *patient)
    before = wait_for_shares(line, ["one", "two"], other)
    first.kill()
    again = line.worker(None, *patient)
    line.send(300)
    line.wait_for_positions(line.traffic.expected.messages, again)
    wait_for(lambda: members(line) == before, "each has what it had", again)
    if line.reader == "bare":  # aiokafka asks anew of itself
        ask_for_the_place(line, "one")
    line.send(100)
    line.wait_for_positions(line.traffic.expected.messages, again)
    twin = line.worker(None, *patient)
    line.send(100)
    line.wait_for_positions(line.traffic.expected.messages, other)
    line.settled()
    if line.reader == "bare":
        assert "another worker runs under this name" in ended(again, 1)
    wait_for(lambda: set(members(line)) == {"one", "two"}, "both are there", other)
    twin.kill()


@BOTH_READERS
def test_what_was_fetched_and_dropped_is_read_again_though_nothing_follows(line: Line) -> None:
    """What Faust drops at a rebalance, or we while Kafka cannot be asked, must not wait for a later message."""
    line.send(50)  # one chunk a partition: no later one shows the gap
    worker = line.worker(None, "--ask-in-vain", "--chunk", "1000")
    line.wait_for_positions(line.traffic.expected.messages, worker)
    line.settled()


@BOTH_READERS
def test_sigterm_finishes_the_chunk_in_hand(line: Line) -> None:
    line.send(300)
    worker = line.worker(Fault("counted", nth=2, how="terminate"), "--chunk", "50")
    said = ended(worker, 0)
    chunks = line.connection.execute("select count(*) from usage.applied_chunks").fetchone()
    assert chunks == (2,), said
    line.finish()


class NotText(str):
    """A header's name that is not UTF-8."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        return b"\xff\xfe"


async def send_in_one_batch(line: Line, values: list[bytes], headers: list[tuple[str, bytes]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=line.kafka.bootstrap)
    await producer.start()
    try:
        sent = [await producer.send(line.topic, value, partition=0, headers=headers) for value in values]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()


@BOTH_READERS
def test_messages_that_nobody_can_read_and_large_ones(
    line: Line, kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Faust would acknowledge what it cannot decode, and restart its agent; here it is quarantined, whole."""
    tenant = line.traffic.tenants[0]
    event = {"tenant_id": tenant, "model": "m", "input_tokens": 1, "output_tokens": 1, "timestamp": BEGIN.isoformat()}
    large, too_large = (
        json.dumps(event | {"request_id": f"large-{size}", "unknown_field": "x" * size}).encode()
        for size in (999_000, 1_000_000)
    )
    rubbish = [(None, None), (b"\xff\xfe", b"\x00\xff"), (b"", b""), (b"k" * 1000, b"[]"), (None, b"null")]
    producer = Producer(kafka.client(**{"message.max.bytes": 1_040_000}))
    for key, value in [*rubbish, (tenant.encode(), large), (tenant.encode(), too_large)]:
        producer.produce(line.topic, value, key, partition=0, headers=[("content-type", b"\xff"), ("empty", None)])
    assert producer.flush(60) == 0
    for module in ("producer", "message_accumulator"):
        builder = f"aiokafka.producer.{module}.DefaultRecordBatchBuilder"
        monkeypatch.setattr(builder, _DefaultRecordBatchBuilderPy)
    unnamed = json.dumps(event | {"request_id": "unnamed"}).encode()
    asyncio.run(send_in_one_batch(line, [unnamed, b"{"], headers=[(NotText("x"), b"v")]))
    expected = line.traffic.expected
    line.send(100)
    expected.quarantine.update({"torn": 4, "invalid": 3, "too_large": 1})
    expected.rows.add((Identity(tenant, "large-999000", 1, "usage", 0), "engine"))
    expected.sums[tenant, "m", "", "tenant", "engine", BEGIN] = [1, 1, 0, 1, 0]
    expected.messages += len(rubbish) + 4
    line.finish()
    held = line.connection.execute(
        "select message_key, message, is_null, header_names, header_values from usage.quarantine"
        " where source like '%/0' and position < 7 order by position"
    ).fetchall()
    names, values = [b"content-type", b"empty"], [b"\xff", None]
    assert held == [
        (key, value or b"", value is None, names, values) for key, value in [*rubbish, (tenant.encode(), too_large)]
    ]
    whole, torn = line.connection.execute(
        "select message, reason, detail, header_names from usage.quarantine where source like '%/0'"
        " and position in (7, 8) order by position"
    )
    assert whole[:3] == (unnamed, "invalid", "headers: a name is not UTF-8")
    assert torn[:2] == (b"{", "torn")
    assert whole[3] == torn[3] == ([b"\xff\xfe"] if line.reader == "faust" else [])  # librdkafka tells no name then


def test_one_tenant_with_half_of_all_traffic(line: Line) -> None:
    line.traffic.tenants[:] = [line.traffic.tenants[0]] * len(line.traffic.tenants) + line.traffic.tenants[1:]
    line.send(800)
    workers = [line.worker(None, "--drain", name=name) for name in ("one", "two")]
    for worker in workers:
        ended(worker, 0)
    busiest = line.connection.execute("select max(next_position) from usage.sources where source like 'kafka:%'")
    assert busiest.fetchone()[0] > line.traffic.expected.messages * 0.45
    line.settled()


def test_wait_for_is_not_satisfied_by_silence(line: Line) -> None:
    """The tests' own guard: a worker that ends early is noticed."""
    worker = line.worker(Fault("begun"))
    line.send(10)
    with pytest.raises(AssertionError, match="ended before"):
        wait_for(lambda: False, "never", worker)


def test_a_database_that_is_slow_and_then_stands_still(line: Line) -> None:
    """For longer than the group's session, than the server waits for a silent transaction, than Kafka for a poll."""
    with SlowLink(line.database_url, delay_s=0.01) as link:
        line.database_url = link.url
        worker = line.worker(None, "--chunk", "50", "--max-poll-s", str(STANDS_STILL_S / 2))
        line.send(250)
        line.wait_for_positions(100, worker)
        link.hold()
        line.send(250)  # more than waits to be applied: nothing is fetched meanwhile
        time.sleep(STANDS_STILL_S)
        link.go()
        line.wait_for_positions(line.traffic.expected.messages, worker)
        line.settled()
        told_to_end(worker)
        ended(worker, 0)


@BOTH_READERS
def test_memory_does_not_grow_with_messages_of_a_megabyte(line: Line) -> None:
    """The largest chunk that is allowed, of the largest messages: bytes bound what is held, not numbers. Nothing is
    applied for a while, so that whoever would not stop fetching holds all of it."""
    worker = line.worker(None, "--chunk", "10000")
    line.send(20)
    line.wait_for_positions(line.traffic.expected.messages, worker)
    seen = [memory_of(worker)]
    line.traffic.padding = 940_000

    def fetches_no_more() -> bool:
        seen.append(memory_of(worker))
        return len(seen) > 60 and max(seen[-40:]) - min(seen[-40:]) <= 4  # for two seconds

    with line.locked("lock table usage.windows_1h in share mode"):
        line.send(120)
        line.wait_until_blocked(worker)
        wait_for(fetches_no_more, "its memory stands still", worker)
        stands_at = sum(line.next_positions().values())
    line.wait_for_positions(stands_at + 1, worker)
    grown = max(seen) - seen[0]
    assert grown < GROWS_AT_MOST_MIB, f"{grown} MiB"
