"""Client properties of librdkafka, for a client that is not librdkafka."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving_adapter.settings import KafkaSettings, SettingsError, read_properties
from streams.workers.kafka_security import KafkaSecurity, SaslSettings, TlsSettings, security_of

LOGIN = {"sasl.mechanism": "SCRAM-SHA-256", "sasl.username": "me", "sasl.password": "hidden"}
SASL = SaslSettings("SCRAM-SHA-256", "me", "hidden")
TLS = TlsSettings("/ca.pem", None, None, None)


@pytest.mark.parametrize(
    ("properties", "security"),
    [
        ({}, KafkaSecurity(None, None)),
        ({"linger.ms": "5", "client.id": "x"}, KafkaSecurity(None, None)),
        ({"security.protocol": "sasl_plaintext", **LOGIN}, KafkaSecurity(None, SASL)),
        ({"security.protocol": "SASL_SSL", "ssl.ca.location": "/ca.pem", **LOGIN}, KafkaSecurity(TLS, SASL)),
        ({"security.protocol": "ssl"}, KafkaSecurity(TlsSettings(None, None, None, None), None)),
        (
            {"security.protocol": "ssl", "ssl.certificate.location": "/c", "ssl.key.location": "/k",
             "ssl.key.password": "p", "ssl.endpoint.identification.algorithm": "none",
             "enable.ssl.certificate.verification": "false"},
            KafkaSecurity(TlsSettings(None, "/c", "/k", "p", verify=False, verify_hostname=False), None),
        ),
    ],
)  # fmt: skip
def test_security_is_read_as_librdkafka_reads_it(properties: dict[str, str], security: KafkaSecurity) -> None:
    assert security_of(properties) == security


@pytest.mark.parametrize(
    ("properties", "says"),
    [
        ({"security.protocol": "TLS"}, "security.protocol is TLS, must be one of PLAINTEXT, SSL"),
        ({"security.protocol": "SASL_SSL"}, "sasl.mechanism is missing"),
        ({"security.protocol": "SASL_SSL", **LOGIN, "sasl.mechanism": "GSSAPI"}, "sasl.mechanism is GSSAPI"),
        ({"security.protocol": "SASL_SSL", **LOGIN, "sasl.password": ""}, "sasl.password is missing"),
        ({"security.protocol": "ssl", "ssl.key.location": "/k"}, "go together"),
        ({"security.protocol": "ssl", "ssl.crl.location": "/crl"}, "ssl.crl.location cannot be used for reading"),
        ({"security.protocol": "ssl", "ssl.truststore.location": "/t"}, "ssl.truststore.location cannot be used"),
        ({"ssl.ca.location": "/ca.pem"}, "no effect with security.protocol PLAINTEXT"),
        ({"security.protocol": "ssl", **LOGIN}, "no effect with security.protocol SSL"),
    ],
)
def test_what_would_be_less_safe_than_asked_for_is_refused(properties: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        security_of(properties)
    assert says in str(caught.value)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ["acks=1", "request.required.acks=1", "enable.idempotence=false", "partitioner=random", "bootstrap.servers=a:1",
     "transactional.id=x"],
)  # fmt: skip
def test_a_file_may_not_change_what_metering_rests_on(tmp_path: Path, line: str) -> None:
    file = tmp_path / "client.properties"
    file.write_text(f"# ours\n\n{line}\n")
    with pytest.raises(SettingsError, match="line 3: remove"):
        read_properties(file)


def test_secrets_are_never_shown() -> None:
    kafka = KafkaSettings("b:1", {"sasl.username": "me", "sasl.password": "hidden", "ssl.key.pem": "KEY"})
    assert "hidden" not in repr(kafka)
    assert kafka.without_secrets("bad hidden KEY of me") == "bad … … of me"
    assert "hidden" not in repr(SASL)


def test_the_development_broker_is_known_by_its_name_alone() -> None:
    environ = {"TOLLBOOK_KAFKA": "local:1", "TOLLBOOK_DEV_KAFKA": "local:1"}
    assert KafkaSettings.from_environment(environ).development
    assert not KafkaSettings.from_environment(environ | {"TOLLBOOK_KAFKA": "production:1"}).development
