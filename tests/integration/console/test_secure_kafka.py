"""TOLLBOOK_KAFKA_CONFIG against a broker with TLS and logins only: every client gets in, or says why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving_adapter.errors import DeliveryFailed
from serving_adapter.producer import EventProducer
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS
from tests.builders import EVENT
from tests.fixtures_event_server import StartServer, usage_event
from tests.fixtures_kafka import PREFIX, SENDER, SecureKafkaBroker, write_properties
from tests.integration.console.conftest import Run

VERBS = (("events", "ingest", "FILE"), ("streams", "run", "--drain", "--dev"), ("events", "serve", "--port", "0"))


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """Three events of each of two tenants."""
    file = tmp_path / "events.jsonl"
    lines = [EVENT | {"tenant_id": f"t{number % 2}", "request_id": f"{tmp_path.name}-{number}"} for number in range(6)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def environment(broker: SecureKafkaBroker, folder: Path, properties: dict[str, str]) -> dict[str, str]:
    """How a person names this broker."""
    return {
        "TOLLBOOK_KAFKA": broker.address(),
        "TOLLBOOK_KAFKA_CONFIG": write_properties(folder / "client.properties", properties),
        "TOLLBOOK_TOPIC_PREFIX": PREFIX,
    }


@pytest.mark.parametrize(
    ("mechanism", "reader"), [("PLAIN", "faust"), ("SCRAM-SHA-512", "faust"), ("SCRAM-SHA-256", "bare")]
)
def test_events_go_in_and_are_read_with_tls_and_a_login(
    run: Run, secure_broker: SecureKafkaBroker, tmp_path: Path, events: Path, mechanism: str, reader: str
) -> None:
    kafka = environment(secure_broker, tmp_path, secure_broker.login(mechanism))
    run("tenant", "add", "t0", "t1")
    lag = json.loads(run("streams", "status", "--json", **kafka).stdout)["lag"]
    sent = run("events", "ingest", str(events), **kafka)
    assert sent.returncode == 0, sent.stderr
    done = run("streams", "run", "--drain", "--dev", "--reader", reader, **kafka)
    assert done.returncode == 0, done.stderr
    assert f"applied {lag + 6}" in done.stdout
    assert json.loads(run("streams", "status", "--json", **kafka).stdout)["lag"] == 0


def test_what_is_posted_goes_in_with_tls_and_a_login(
    start_server: StartServer, run: Run, secure_broker: SecureKafkaBroker, tmp_path: Path
) -> None:
    kafka = environment(secure_broker, tmp_path, secure_broker.login("SCRAM-SHA-256"))
    lag = json.loads(run("streams", "status", "--json", **kafka).stdout)["lag"]
    server = start_server("--dev", **kafka)
    assert server.post(usage_event(1)).status == 202
    assert json.loads(run("streams", "status", "--json", **kafka).stdout)["lag"] == lag + 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sasl_password": "wrong-and-secret"}, "Authentication failed"),
        ({"ssl_ca_location": "STRANGER"}, "certificate"),
        ({"ssl_ca_location": "/nowhere.pem"}, "ssl.ca.location"),
    ],
)
def test_a_broker_that_refuses_or_is_not_trusted_is_told_in_a_line_without_the_password(
    run: Run,
    secure_broker: SecureKafkaBroker,
    tmp_path: Path,
    events: Path,
    verb: tuple[str, ...],
    changed: dict[str, str],
    says: str,
) -> None:
    stranger = str(secure_broker.certificates.stranger)
    properties = secure_broker.login(**{name: stranger if v == "STRANGER" else v for name, v in changed.items()})
    kafka = environment(secure_broker, tmp_path, properties)
    arguments = [str(events) if argument == "FILE" else argument for argument in verb]
    done = run(*arguments, **kafka)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert properties["sasl.password"] not in done.stdout + done.stderr


def test_a_sender_that_may_only_write_sends_and_is_told_what_it_may_not(
    run: Run, secure_broker: SecureKafkaBroker, tmp_path: Path, events: Path
) -> None:
    login = secure_broker.login(sasl_username=SENDER)
    kafka = environment(secure_broker, tmp_path, login)
    sent = run("events", "ingest", str(events), **kafka)
    assert sent.returncode == 0, sent.stderr
    refused = [
        run("streams", "run", "--drain", "--dev", **kafka),
        run("events", "ingest", str(events), **kafka | {"TOLLBOOK_TOPIC_PREFIX": "other"}),
    ]
    for done in refused:
        assert done.returncode == 1
        assert "opic authorization failed: this login may not do that (docs/kafka.md: " in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    producer = EventProducer(KafkaSettings(secure_broker.address(), login), REPLICAS.name(PREFIX))
    producer.send(b"r1", b"{}")
    with pytest.raises(DeliveryFailed, match="this login may not do that"):
        producer.flush()


def test_a_property_that_the_consumer_cannot_heed_is_refused_before_anything_is_read(
    run: Run, secure_broker: SecureKafkaBroker, tmp_path: Path
) -> None:
    kafka = environment(secure_broker, tmp_path, secure_broker.login(ssl_cipher_suites="ALL"))
    done = run("streams", "run", "--drain", "--dev", **kafka)
    assert done.returncode == 1
    assert "ssl.cipher.suites cannot be used for reading" in done.stderr
