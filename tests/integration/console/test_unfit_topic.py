"""Whoever reads or writes the usage topic refuses one that could lose events."""

from __future__ import annotations

import time

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from serving_adapter import command_line
from serving_adapter.kafka_client import admin_client
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from tests.integration.console.conftest import Run

VERBS = (
    ("streams", "run", "--drain"),
    ("events", "serve", "--port", "0"),
    ("adapter", "ship", "--once", "--spool", "nothing/here"),
)
NOT_OURS = {"TOLLBOOK_DEV_KAFKA": "elsewhere:9092"}


def set_config(kafka: KafkaSettings, name: str, value: str) -> None:
    """Change a setting of the usage topic, and see the broker say so: it hears of it a moment later."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, USAGE.name(kafka.topic_prefix), incremental_configs=[entry])
    admin = admin_client(kafka)  # whose end would be that of its requests
    for done in admin.incremental_alter_configs([resource]).values():
        done.result(timeout=60)
    asked = ConfigResource(ResourceType.TOPIC, USAGE.name(kafka.topic_prefix))

    def told() -> str:
        (config,) = admin.describe_configs([asked]).values()
        return str(config.result(timeout=60)[name].value)

    while told() != value:  # bounded by the test's own time
        time.sleep(0.05)


@pytest.mark.parametrize("verb", VERBS)
def test_a_topic_that_could_lose_events_is_refused_with_what_mends_it(
    run: Run, kafka: KafkaSettings, verb: tuple[str, ...]
) -> None:
    set_config(kafka, "cleanup.policy", "compact")
    set_config(kafka, "retention.ms", "3600000")
    for refused in (run(*verb), run(*verb, "--dev")):
        assert refused.returncode == 1
        assert "cleanup.policy is compact, must be delete" in refused.stderr
        assert "retention.ms is 3600000, must be at least 604800000" in refused.stderr
        assert "--add-config cleanup.policy=delete,retention.ms=604800000" in refused.stderr
        assert "replication" not in refused.stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_single_copy_is_refused_but_for_development(run: Run, verb: tuple[str, ...]) -> None:
    refused = run(*verb, **NOT_OURS)
    assert refused.returncode == 1
    assert "replication factor is 1, must be at least 3" in refused.stderr
    assert "min.insync.replicas is 1, must be at least 2" in refused.stderr


def test_the_adapters_own_command_refuses_it_too(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`tollbook-adapter ship`, where this command line is not installed."""
    for name, value in (("KAFKA", kafka.bootstrap), ("TOPIC_PREFIX", kafka.topic_prefix), ("DEV_KAFKA", "elsewhere:1")):
        monkeypatch.setenv(f"TOLLBOOK_{name}", value)
    ship = ["ship", "--once", "--spool", "nothing/here"]
    assert command_line.main(ship) == 1
    assert "replication factor is 1, must be at least 3" in capsys.readouterr().err
    assert command_line.main([*ship, "--dev"]) == 0


def test_development_can_go_on(run: Run) -> None:
    assert run("streams", "run", "--drain", "--dev", **NOT_OURS).returncode == 0
    assert run("streams", "run", "--drain").returncode == 0


def test_a_topic_that_is_missing_is_named(run: Run) -> None:
    refused = run("streams", "run", "--drain", TOLLBOOK_TOPIC_PREFIX="nobody")
    assert refused.returncode == 1
    assert "topic nobody.usage.v1 does not exist" in refused.stderr
