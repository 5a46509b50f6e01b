"""`POST /v1/events` over real HTTP into the real Kafka."""

from __future__ import annotations

import contextlib
import json
import threading
from typing import Any

import psycopg
import pytest

from devstack.kafka_broker import KafkaBroker
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import ensure_topics
from streams.http import access_keys
from streams.http.event_server import MAX_BODY_BYTES
from streams.http.http_events import BATCHED, MAX_EVENTS, STRUCTURED
from tests.builders import EVENT
from tests.fixtures_event_server import EventServerProcess, StartServer, messages, usage_event
from tests.fixtures_kafka import PREFIX, QUIET
from tests.waiting import wait_for

ENVELOPE: dict[str, Any] = {"specversion": "1.0", "id": "own-1", "source": "/gateway/eu", "type": "tollbook.usage.v1"}


def test_accepted_means_that_it_is_in_kafka_keyed_by_tenant(server: EventServerProcess, kafka: KafkaSettings) -> None:
    reply = server.post(ENVELOPE | {"data": EVENT}, STRUCTURED)
    assert reply.status == 202
    (message,) = messages(kafka)
    (result,) = reply.body["results"]
    headers = dict(message.headers() or [])
    assert message.key() == b"tenant_1"
    assert json.loads(message.value() or b"") == EVENT | {"source_event_id": "own-1"}
    assert headers["ce_id"].decode() == result["event_id"]
    assert (headers["ce_source"], headers["ce_type"]) == (b"/gateway/eu", b"tollbook.usage.v1")
    assert headers["ce_emitter"].startswith(b"key_")


def test_a_full_batch_is_answered_event_by_event_and_all_of_it_is_there(
    server: EventServerProcess, kafka: KafkaSettings
) -> None:
    batch = [ENVELOPE | {"id": str(number), "data": usage_event(number)} for number in range(MAX_EVENTS)]
    reply = server.post(batch, BATCHED)
    assert (reply.status, reply.body["accepted"], reply.body["refused"]) == (202, MAX_EVENTS, 0)
    assert [result["index"] for result in reply.body["results"]] == list(range(MAX_EVENTS))
    sent = messages(kafka)
    assert {dict(message.headers() or [])["ce_id"].decode() for message in sent} == {
        result["event_id"] for result in reply.body["results"]
    }
    assert len(sent) == MAX_EVENTS
    assert server.post([*batch, batch[0]], BATCHED).status == 413


def test_a_mixed_batch_loses_none_of_its_good_events(server: EventServerProcess, kafka: KafkaSettings) -> None:
    reply = server.post([usage_event(1), usage_event(2, output_tokens=-1), usage_event(3, tenant_id="tenant_9"), 7])
    assert (reply.status, reply.body["accepted"], reply.body["refused"]) == (202, 1, 3)
    told = [(r["status"], r.get("reason"), r.get("field")) for r in reply.body["results"]]
    assert told == [
        ("accepted", None, None),
        ("refused", "invalid", "output_tokens"),
        ("refused", "tenant_not_allowed", "tenant_id"),
        ("refused", "invalid", ""),
    ]
    assert len(messages(kafka)) == 1


def test_an_emitter_cannot_fill_a_real_replicas_gap(server: EventServerProcess, kafka: KafkaSettings) -> None:
    numbered = {"boot_id": "b1", "seq": 2**53 - 1}
    assert server.post(usage_event(1, replica_id="replica-1", **numbered)).status == 403
    reply = server.post([usage_event(1, replica_id=name, **numbered) for name in ("replica-1", "gateway.1")])
    assert [(r["status"], r.get("reason")) for r in reply.body["results"]] == [
        ("refused", "replica_not_allowed"),
        ("accepted", None),
    ]
    assert [json.loads(message.value() or b"")["replica_id"] for message in messages(kafka)] == ["gateway.1"]


def test_where_nothing_is_accepted_nothing_is_sent(server: EventServerProcess, kafka: KafkaSettings) -> None:
    assert server.post(usage_event(1, tenant_id="tenant_9")).status == 403
    assert server.post(usage_event(1, model=7)).status == 422
    assert server.post(b"{torn").status == 400
    assert server.post(b"<x/>", "text/xml").status == 415
    assert server.post([]).status == 202
    assert server.request("GET", "/v1/events").status == 405
    assert messages(kafka) == []


def test_an_emitter_that_repeats_is_counted_once(server: EventServerProcess, start_worker: Any) -> None:
    for _ in range(3):
        assert server.post([usage_event(1), usage_event(2)]).status == 202
    assert "applied 2, duplicates 4, quarantined 0" in start_worker("--drain")


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer tbk_wrong", "Basic eDp5"])
def test_without_a_key_in_force_nothing_is_read(server: EventServerProcess, authorization: str) -> None:
    reply = server.post(EVENT, Authorization=authorization)
    assert (reply.status, reply.body["error"]["code"]) == (401, "unauthorized")
    assert "Bearer" in reply.headers["www-authenticate"]


def test_keys_of_other_kinds_do_not_send_events(server: EventServerProcess, connection: psycopg.Connection) -> None:
    secret = access_keys.secret_from(bytes(access_keys.SECRET_BYTES))
    access_keys.add(connection, kind="quota", name="q", tenant_ids=[], all_tenants=True, secret=secret, actor="test")
    assert server.post(EVENT, Authorization=f"Bearer {secret}").status == 401


def test_a_new_key_works_at_once_and_a_revoked_one_stops(
    server: EventServerProcess, connection: psycopg.Connection
) -> None:
    secret = access_keys.secret_from(bytes(access_keys.SECRET_BYTES))
    key = access_keys.add(
        connection, kind="emitter", name="new", tenant_ids=["tenant_1"], all_tenants=False, secret=secret, actor="test"
    )
    assert server.post(EVENT, Authorization=f"Bearer {secret}").status == 202
    access_keys.revoke(connection, key.key_id, actor="test")
    wait_for(lambda: server.post(EVENT, Authorization=f"Bearer {secret}").status == 401)
    assert server.post(EVENT).status == 202


def test_a_body_beyond_its_bound_is_refused_announced_or_not(server: EventServerProcess, kafka: KafkaSettings) -> None:
    assert server.post(b" " * (MAX_BODY_BYTES + 1)).status == 413
    unannounced = (b" " * 65536 for _ in range(MAX_BODY_BYTES // 65536 + 1))
    assert server.post(unannounced).status == 413
    event = json.dumps(EVENT).encode()
    assert server.post(b"[" + b" " * (MAX_BODY_BYTES - len(event) - 2) + event + b"]").status == 202
    assert len(messages(kafka)) == 1


def test_a_request_that_was_accepted_is_answered_when_the_server_is_stopped(
    server: EventServerProcess, kafka: KafkaSettings
) -> None:
    statuses: list[int] = []

    def send_until_refused(sender: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                statuses.append(server.post(usage_event(len(statuses), tenant_id=f"tenant_{sender}")).status)

    senders = [threading.Thread(target=send_until_refused, args=(sender,)) for sender in (1, 2)]
    for sender in senders:
        sender.start()
    wait_for(lambda: len(statuses) > 20)
    code, printed = server.stop()
    for sender in senders:
        sender.join()
    assert (code, printed) == (0, "")
    assert set(statuses) == {202}
    assert len(messages(kafka)) >= len(statuses)


def test_while_kafka_is_away_emitters_are_told_to_repeat_and_what_they_were_told_is_there_holds(
    own_broker: KafkaBroker, start_server: StartServer
) -> None:
    kafka = KafkaSettings(own_broker.address(), topic_prefix=PREFIX)
    ensure_topics(kafka)
    server = start_server("--dev", TOLLBOOK_KAFKA=kafka.bootstrap, TOLLBOOK_TOPIC_PREFIX=PREFIX)
    told = [number for number in range(5) if server.post(usage_event(number)).status == 202]
    own_broker.down(QUIET)
    # The first waits as long as a delivery may take; once Kafka is known to be away, the answer is immediate.
    for number in (5, 6):
        reply = server.post(usage_event(number))
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert reply.body["error"]["code"] in ("not_acknowledged", "kafka_away")
    assert server.request("GET", "/readyz").status == 503
    assert server.request("GET", "/healthz").status == 200
    own_broker.up(QUIET)
    wait_for(lambda: server.post(usage_event(5)).status == 202)
    assert server.post(usage_event(6)).status == 202
    found = {json.loads(message.value() or b"")["request_id"] for message in messages(kafka)}
    assert found == {f"req-{number}" for number in [*told, 5, 6]}
    assert server.stop()[0] == 0


def test_a_port_that_is_taken_is_told_in_a_line(server: EventServerProcess, start_server: StartServer) -> None:
    with pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1"):
        start_server("--port", str(server.port))


def test_health_readiness_metrics_and_the_description_are_there(server: EventServerProcess) -> None:
    server.post([usage_event(1), 7])
    assert server.request("GET", "/healthz").body["healthy"] is True
    assert server.request("GET", "/readyz").body == {"ready": True, "kafka": True, "keys": True}
    metrics = server.request("GET", "/metrics").body
    for line in (
        'tollbook_event_results_total{result="accepted"} 1.0',
        'tollbook_event_results_total{result="invalid"} 1.0',
        'tollbook_event_requests_total{status="202"} 1.0',
        "tollbook_events_waiting 0.0",
        "tollbook_emitter_keys 1.0",
    ):
        assert line in metrics
    described = server.request("GET", "/openapi.json").body
    assert set(described["paths"]["/v1/events"]["post"]["responses"]) >= {"202", "401", "403", "422", "429", "503"}
