"""Which settings of the usage topic are refused, and what a person is told."""

from __future__ import annotations

import pytest

from serving_adapter.settings import KafkaSettings, SettingsError
from serving_adapter.topic_check import TopicSettings, complaint, misfits
from serving_adapter.topics import DAY_MS

FIT = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "unclean.leader.election.enable": "false",
    "min.insync.replicas": "2",
}


@pytest.mark.parametrize("changed", [{}, {"retention.ms": "-1"}, {"min.insync.replicas": "3"}])
def test_a_topic_as_the_rules_want_it_is_fit(changed: dict[str, str]) -> None:
    assert misfits(TopicSettings(3, FIT | changed), development=False) == []


@pytest.mark.parametrize(
    ("name", "value", "mend", "in_development"),
    [
        ("cleanup.policy", "compact", "delete", True),
        ("cleanup.policy", "compact,delete", "delete", True),
        ("message.timestamp.type", "CreateTime", "LogAppendTime", True),
        ("retention.ms", "604799999", "604800000", True),
        ("retention.bytes", "1073741824", "-1", True),
        ("unclean.leader.election.enable", "true", "false", True),
        ("min.insync.replicas", "1", "2", False),
    ],
)
def test_a_setting_that_could_lose_events_is_named_with_its_value_and_what_mends_it(
    name: str, value: str, mend: str, in_development: bool
) -> None:
    topic = TopicSettings(3, FIT | {name: value})
    (found,) = misfits(topic, development=False)
    assert (found.name, found.value, found.mend) == (name, value, mend)
    assert bool(misfits(topic, development=True)) is in_development
    told = complaint("t.usage.v1", "broker:9092", [found])
    assert f"{name} is {value}" in told
    assert f"--bootstrap-server broker:9092 --alter --topic t.usage.v1 --add-config {name}={mend}" in told


def test_a_topic_must_hold_the_longest_outage_that_is_to_be_survived() -> None:
    gib = 1 << 30
    topic = TopicSettings(3, FIT | {"retention.ms": str(14 * DAY_MS), "retention.bytes": str(5 * gib)})
    assert misfits(topic, development=False, outage_days=14, outage_bytes=5 * gib) == []
    found = misfits(topic, development=False, outage_days=15, outage_bytes=6 * gib)
    assert [(each.name, each.mend) for each in found] == [
        ("retention.ms", str(15 * DAY_MS)), ("retention.bytes", str(6 * gib)),
    ]  # fmt: skip
    assert misfits(TopicSettings(3, FIT), development=False, outage_days=1) == [], "7 days at least"
    environ = {"TOLLBOOK_KAFKA": "b", "TOLLBOOK_OUTAGE_DAYS": "30", "TOLLBOOK_OUTAGE_BYTES": str(gib)}
    kafka = KafkaSettings.from_environment(environ)
    assert (kafka.outage_days, kafka.outage_bytes) == (30, gib)
    with pytest.raises(SettingsError, match="TOLLBOOK_OUTAGE_DAYS is 'a week', must be a whole number"):
        KafkaSettings.from_environment({"TOLLBOOK_KAFKA": "b", "TOLLBOOK_OUTAGE_DAYS": "a week"})


def test_too_few_copies_are_refused_outside_development_only() -> None:
    topic = TopicSettings(2, FIT)
    (found,) = misfits(topic, development=False)
    assert "kafka-reassign-partitions.sh" in complaint("t", "b", [found])
    assert "--dev" in complaint("t", "b", [found])
    assert misfits(topic, development=True) == []
