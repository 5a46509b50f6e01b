"""Ways to lose events other than a shipper that drops them: found, and got back as far as anything is left of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from reconciliation.findings import finding_store
from reconciliation.findings.finding import Finding
from reconciliation.findings.look import look
from reconciliation.findings.partitions import partition_of
from reconciliation.replay import kafka_source, log_source, trial
from reconciliation.replay.material import Found
from reconciliation.replay.planning import Planner
from serving_adapter.producer import EventProducer
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams.completeness import completeness_store
from streams.ingest import resolving, sources
from streams.ingest.apply import ChunkApplier
from streams.ingest.log_proof import Held
from streams.ingest.logs import Log
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.rules.chunks import Chunk, Record
from tests.builders import REPLICA_SOURCE, make_chunk, make_report
from tests.integration.billing.conftest import World, world
from tests.integration.reconciliation.test_findings import check
from tests.integration.reconciliation.test_replay import AT, NOW, Replays, event, replays
from tests.integration.streams.conftest import register_source

__all__ = ["replays", "world"]
MAPPING = """\
log: gateway
fields: {tenant_id: tenant, request_id: id, model: model, input_tokens: input, output_tokens: output, timestamp: ended}
defaults: {cache_hit_tokens: 4}
"""
LOST = range(4, 10)


def numbered(number: int, **changed: Any) -> bytes:
    return event(number, replica_id="r1", boot_id="b1", seq=number, **changed)


def heartbeat(connection: psycopg.Connection, last_seq: int) -> None:
    """The replica says how many events of acme it has made."""
    register_source(connection, REPLICA_SOURCE, "replicas")
    totals = [{"tenant_id": "acme", "model": "llama", "events": last_seq, "input_tokens": 10 * last_seq,
               "output_tokens": 5 * last_seq, "cache_hit_tokens": 4 * last_seq}]  # fmt: skip
    reports = [
        make_report(0, "heartbeat", last_seq=3, at=AT + timedelta(minutes=3)),
        make_report(1, "heartbeat", last_seq=last_seq, totals=totals, at=AT + timedelta(minutes=last_seq)),
    ]
    ReplicaChunkApplier(connection).apply(make_chunk(*reports, source=REPLICA_SOURCE))


def looked(connection: psycopg.Connection) -> dict[str, Finding]:
    check(connection)
    return {each.kind: each for each in look(connection, AT - timedelta(days=1), NOW, NOW).found}


@pytest.fixture
def topic(world: World, replays: Replays) -> Log:
    """A topic of which acme's partition was cut before its last messages were read."""
    partition = partition_of("acme", 8)
    ends = dict.fromkeys(range(8), 0) | {partition: 9}
    log = Log("t", "cluster-1", "topic-9", dict.fromkeys(range(8), 0), ends, dict.fromkeys(range(8), 0))
    with replays.connection() as opened:
        sources.register(opened, log)
        source = sources.states(opened, "t")[partition].as_source()
        records = [Record(at, b"acme", numbered(at + 1), NOW) for at in range(3)]
        ChunkApplier(opened).apply(Chunk(source, records))
        heartbeat(opened, 9)
    return log


def test_what_a_cut_topic_lost_is_named_with_its_partition_and_comes_back_from_the_spool(
    replays: Replays, topic: Log
) -> None:
    partition = partition_of("acme", 8)
    with replays.connection() as opened:
        sources.mark_stopped(opened, f"kafka:t/{partition}", "the log begins at 9: positions from 3 on are gone")
        resolving.resolve(
            opened, "t", lambda: topic, partition, 9, reason="cut by its retention", actor="ada",
            find_held=lambda *_: Held(differs=False, to=9),
        )  # fmt: skip
        found = looked(opened)["lost_events"]
        assert "positions 3 to 9 of kafka:t/" in found.cause
        assert "cut by its retention" in found.cause
        assert (found.events.low, found.tokens.low) == (6, 90)
    plan = replays.plan(*(numbered(number) for number in range(1, 10)))
    assert (plan.counts["add"], plan.counts["there"]) == (6, 3)
    assert replays.apply(plan).applied == 6
    with replays.connection() as opened:
        assert "lost_events" not in looked(opened)


def test_of_a_lost_spool_the_gateways_log_is_what_is_left_and_the_truth_may_come_later(
    replays: Replays, topic: Log
) -> None:
    lines = [
        {"tenant": "acme", "id": f"q{number}", "model": "llama", "input": 10, "output": 5,
         "ended": (AT + timedelta(minutes=number)).isoformat()}
        for number in range(1, 10)
    ]  # fmt: skip
    log = replays.folder / "access.log"
    log.write_text("\n".join(map(json.dumps, [*lines, lines[5] | {"id": "-"}])))
    with replays.connection() as opened:
        begun_anew = make_report(2, "boot", boot_id="b2", at=AT + timedelta(minutes=20))
        ReplicaChunkApplier(opened).apply(make_chunk(begun_anew, source=REPLICA_SOURCE))
        found = looked(opened)["lost_events"]
        assert found.cause.startswith("boot b1 of replica r1 broke off, and its spool was not shipped to the end")
        material = log_source.logged(str(log), log_source.mapping_of(MAPPING, "m.yaml"))
        plan_id = Planner(opened, NOW, replays.archive).plan(material, {"log": str(log)}, "ada", lambda _: None)
    trial.complete(replays.engine, plan_id, NOW)
    plan = replays.stored(plan_id)
    assert {name: plan.counts[name] for name in ("add", "there", "not_mappable")} == {
        "add": 6, "there": 3, "not_mappable": 1
    }  # fmt: skip
    assert plan.money is not None
    assert [Decimal(row["amount"]) for row in plan.money] == [6 * Decimal("0.018")]
    assert replays.apply(plan).applied == 6
    assert replays.counted() == {"acme": (9, 9)}
    with replays.connection() as opened:
        assert looked(opened)["lost_events"].events == found.events, "the log's telling does not prove the numbers"
        completeness_store.write_off(opened, ("r1", "b1"), actor="ada", reason="disk lost, replayed from the log")
        assert "lost_events" not in looked(opened)
        assert finding_store.listed(opened, kind="lost_events") == []

    truth = replays.plan(*(numbered(number, output_tokens=50) for number in LOST))
    assert truth.counts["supersede"] == 6
    assert replays.apply(truth).applied == 6
    assert replays.counted() == {"acme": (9, 9)}
    with replays.connection() as opened:
        row = opened.execute("select sum(output_tokens)::int8 from usage.windows_1h").fetchone()
    assert row == (3 * 5 + 6 * 50,)


def test_the_events_of_a_skewed_clock_with_their_times_put_right_count_no_second_time(replays: Replays) -> None:
    at = datetime(2026, 10, 14, 6, tzinfo=UTC)
    times = [(at + timedelta(minutes=number)).isoformat() for number in (1, 2, 3)]
    plan = replays.plan(*(event(number, timestamp=time) for number, time in enumerate(times, start=1)))
    assert (plan.records, plan.counts["there"]) == (0, 3)


def test_what_the_topic_holds_is_read_by_the_time_it_was_appended(replays: Replays, kafka: KafkaSettings) -> None:
    name = USAGE.name(kafka.topic_prefix)
    producer = EventProducer(kafka, name)
    for number in (3, 4, 5):
        producer.send(b"acme", event(number))
    producer.flush()
    now = datetime.now(UTC)
    hour = timedelta(hours=1)
    found = list(kafka_source.appended(kafka, name, now - hour, now + hour))
    assert [each.origin.partition("@")[2] for each in found] == ["0", "1", "2"]
    assert list(kafka_source.appended(kafka, name, now - 2 * hour, now - hour)) == []
    plan = replays.plan(*(each.message for each in found if isinstance(each, Found)))
    assert (plan.counts["add"], plan.counts["there"]) == (2, 1)
