"""Which settings of the usage topic are refused, and what a person is told."""

from __future__ import annotations

import pytest

from serving_adapter.topic_check import TopicSettings, complaint, misfits

FIT = {
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": "604800000",
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


def test_too_few_copies_are_refused_outside_development_only() -> None:
    topic = TopicSettings(2, FIT)
    (found,) = misfits(topic, development=False)
    assert "kafka-reassign-partitions.sh" in complaint("t", "b", [found])
    assert "--dev" in complaint("t", "b", [found])
    assert misfits(topic, development=True) == []
