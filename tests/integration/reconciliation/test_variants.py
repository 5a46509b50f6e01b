"""Ways to lose events other than a shipper that drops them: found, and got back as far as anything is left of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import psycopg
import pytest
from confluent_kafka import TopicPartition

from reconciliation.errors import MaterialUnreadable
from reconciliation.findings import finding_store
from reconciliation.findings.finding import Finding
from reconciliation.findings.look import AdmissionLog, look
from reconciliation.findings.partitions import partition_of
from reconciliation.replay import kafka_source, log_source, trial
from reconciliation.replay.material import Found
from reconciliation.replay.planning import Planner
from serving_adapter.identity import Identity, event_id_of
from serving_adapter.kafka_client import admin_client
from serving_adapter.producer import EventProducer
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams.completeness import completeness_store
from streams.ingest import log_proof, resolving, sources
from streams.ingest.apply import ChunkApplier
from streams.ingest.logs import LogReader
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
def topic(world: World, replays: Replays, kafka: KafkaSettings) -> str:
    """A topic with nine messages of acme, of which three were applied."""
    name = USAGE.name(kafka.topic_prefix)
    producer = EventProducer(kafka, name)
    for number in range(1, 10):
        producer.send(b"acme", numbered(number))
    producer.flush()
    log = LogReader(kafka, name).read()
    partition = partition_of("acme", len(log.ends))
    assert log.ends[partition] == 9
    with replays.connection() as opened:
        sources.register(opened, log)
        source = sources.states(opened, name)[partition].as_source()
        records = [Record(at, b"acme", numbered(at + 1), NOW) for at in range(3)]
        ChunkApplier(opened).apply(Chunk(source, records))
        heartbeat(opened, 9)
    return name


def test_what_a_cut_topic_lost_is_named_with_its_partition_and_comes_back_from_the_spool(
    replays: Replays, kafka: KafkaSettings, topic: str
) -> None:
    reader = LogReader(kafka, topic)
    partition = partition_of("acme", len(reader.read().ends))
    cut = TopicPartition(topic, partition, 9)
    admin = admin_client(kafka)  # what is under way ends with it
    admin.delete_records([cut])[cut].result()
    with replays.connection() as opened:
        state = sources.states(opened, topic)[partition]
        why = sources.disagreement(state, reader.read(), partition)
        assert why == "the log begins at 9: positions from 3 on are gone"
        sources.mark_stopped(opened, state.source, why)
        resolving.resolve(
            opened, topic, reader.read, partition, 9, reason="cut by its retention", actor="ada",
            find_held=partial(log_proof.held, kafka),
        )  # fmt: skip
        found = looked(opened)["lost_events"]
        assert f"positions 3 to 9 of kafka:{topic}/{partition}" in found.cause
        assert "cut by its retention" in found.cause
        assert (found.events.low, found.tokens.low) == (6, 90)
    plan = replays.plan(*(numbered(number) for number in range(1, 10)))
    assert (plan.counts["add"], plan.counts["there"]) == (6, 3)
    assert replays.apply(plan).applied == 6
    with replays.connection() as opened:
        assert "lost_events" not in looked(opened)


@pytest.mark.usefixtures("topic")
def test_of_a_lost_spool_the_gateways_log_is_what_is_left_and_the_truth_may_come_later(replays: Replays) -> None:
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


def test_a_tenants_events_under_anothers_name_are_added_to_it_and_taken_back_there(replays: Replays) -> None:
    """Corrections are no events of a boot, and beside the right ones its wrong ones are too many: but for those."""
    right = [numbered(number, request_id=f"n{number}") for number in range(1, 10)]
    mistaken = [numbered(number, request_id=f"n{number}", tenant_id="beta") for number in LOST]
    replays.live(*right[:3], *mistaken)
    with replays.connection() as opened:
        heartbeat(opened, 9)
        found = looked(opened)["wrong_tenant"]
        assert (found.subject["counted_as"], found.tenants, found.events) == ("beta", ["acme"], (6, 6))
    back = [
        event(number, request_id=f"n{number}", tenant_id="beta", kind="correction", correction_no=1, input_tokens=-10,
              output_tokens=-5, cache_hit_tokens=-4,
              corrects=str(event_id_of(Identity("beta", f"n{number}", 1, "usage", 0))))
        for number in LOST
    ]  # fmt: skip
    plan = replays.plan(*right, *back)
    assert (plan.counts["add"], plan.counts["there"]) == (12, 3)
    assert {row["tenant_id"]: Decimal(row["amount"]) for row in plan.money or ()} == {
        "acme": 6 * Decimal("0.018"), "beta": -6 * Decimal("0.018")
    }  # fmt: skip
    assert replays.apply(plan).applied == 12
    with replays.connection() as opened:
        sums = "select tenant_id, sum(output_tokens)::int8 from usage.windows_1h group by 1 order by 1"
        assert opened.execute(sums).fetchall() == [("acme", 60), ("beta", 0)]
        assert looked(opened) == {}
        assert finding_store.listed(opened) == []


def test_a_replica_that_was_never_registered_is_and_what_it_lost_comes_back(replays: Replays) -> None:
    """Its events come and no report; then its reports, which say what is missing. Another one a log alone knows of."""
    served = [Found(f"line {number}", event(number, replica_id="r9")) for number in (20, 21)]

    def kinds(opened: psycopg.Connection) -> list[str]:
        check(opened)
        log = AdmissionLog("gateway", iter(served))
        return sorted(each.kind for each in look(opened, AT - timedelta(days=1), NOW, NOW, admitted=log).found)

    replays.live(*(numbered(number) for number in (1, 2, 3)))
    with replays.connection() as opened:
        assert kinds(opened) == ["unregistered_replica", "unregistered_replica"]
        heartbeat(opened, 9)
        assert kinds(opened) == ["lost_events", "unregistered_replica"]
    plan = replays.plan(*(numbered(number) for number in range(1, 10)), *(each.message for each in served))
    assert (plan.counts["add"], plan.counts["there"]) == (8, 3)
    assert replays.apply(plan).applied == 8
    with replays.connection() as opened:
        assert kinds(opened) == []
        assert finding_store.listed(opened) == []
    assert replays.counted() == {"acme": (11, 11)}


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
    partition = int(found[0].origin.rpartition("/")[2].partition("@")[0])
    cut, admin = TopicPartition(name, partition, 2), admin_client(kafka)  # what is under way ends with it
    admin.delete_records([cut])[cut].result()
    consumer = kafka_source._consumer(kafka)
    with pytest.raises(MaterialUnreadable, match="was cut off while it was read"):
        list(kafka_source._read(consumer, name, partition, 0, 3))
    consumer.close()
