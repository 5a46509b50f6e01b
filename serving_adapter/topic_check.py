"""Whether the usage topic is what metering rests on (docs/spec/metering.md 5); whoever reads or writes it asks first.

`compact` would drop events of a tenant, a producer's clock would say when a message arrived, a short retention would
lose what is not applied yet, a single copy loses what was acknowledged when its disk dies, and an unclean election
takes back what was read already: a log that is cut below a stored position, and has grown past it before anybody
looked, is the one change that neither ids nor ends betray.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import ConfigResource, ResourceType  # type: ignore[attr-defined]

from serving_adapter.errors import KafkaUnavailable, TopicUnfit
from serving_adapter.kafka_client import ANSWER_WITHIN_S, admin_client, why
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import DAY_MS, Topic

RETENTION_DAYS_AT_LEAST: Final = 7
REPLICATION_AT_LEAST: Final = 3
IN_SYNC_AT_LEAST: Final = 2
UNBOUNDED: Final = -1


@dataclass(frozen=True, slots=True)
class TopicSettings:
    """A topic as the brokers have it. `replication`: copies of the partition that has the fewest."""

    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A setting that must not be as it is: its value, what it must be, and the value to set (None: not by a config)."""

    name: str
    value: str
    must_be: str
    mend: str | None


def misfits(
    topic: TopicSettings, *, development: bool, outage_days: int = 7, outage_bytes: int | None = None
) -> list[Misfit]:
    """What is wrong with a topic. `development` does without copies, never without the rest.

    It must hold `outage_days`, and 7 at least; a bound in bytes is right only where it holds the `outage_bytes` that a
    partition is said to take in by then.
    """
    found = []
    days = max(outage_days, RETENTION_DAYS_AT_LEAST)

    def exactly(name: str, wanted: str) -> None:
        value = topic.config.get(name, "")
        if value != wanted:
            found.append(Misfit(name, value, wanted, wanted))

    def unbounded_or(name: str, at_least: int | None, must_be: str) -> None:
        value = topic.config.get(name, "")
        if int(value or 0) != UNBOUNDED and (at_least is None or int(value or 0) < at_least):
            found.append(Misfit(name, value, must_be, str(UNBOUNDED if at_least is None else at_least)))

    exactly("cleanup.policy", "delete")
    exactly("message.timestamp.type", "LogAppendTime")
    exactly("unclean.leader.election.enable", "false")
    unbounded_or("retention.ms", days * DAY_MS, f"at least {days * DAY_MS} ({days} days)")
    said = "-1, or what TOLLBOOK_OUTAGE_BYTES says that a partition takes in during the longest outage"
    unbounded_or("retention.bytes", outage_bytes, said if outage_bytes is None else f"-1, or at least {outage_bytes}")
    if development:
        return found
    if topic.replication < REPLICATION_AT_LEAST:
        value, must_be = str(topic.replication), f"at least {REPLICATION_AT_LEAST}"
        found.append(Misfit("replication factor", value, must_be, None))
    in_sync = topic.config.get("min.insync.replicas", "")
    if int(in_sync or 0) < IN_SYNC_AT_LEAST:
        found.append(Misfit("min.insync.replicas", in_sync, f"at least {IN_SYNC_AT_LEAST}", str(IN_SYNC_AT_LEAST)))
    return found


def complaint(name: str, bootstrap: str, found: list[Misfit]) -> str:
    """What a person is told: each setting with its value, and the commands that mend them."""
    lines = [f"topic {name} is not fit for metering:"]
    lines += [f"  {misfit.name} is {misfit.value or 'not set'}, must be {misfit.must_be}" for misfit in found]
    config = ",".join(f"{misfit.name}={misfit.mend}" for misfit in found if misfit.mend is not None)
    if config:
        lines.append(f"  kafka-configs.sh --bootstrap-server {bootstrap} --alter --topic {name} --add-config {config}")
    if any(misfit.mend is None for misfit in found):
        lines.append(
            f"  kafka-reassign-partitions.sh --bootstrap-server {bootstrap} --execute --reassignment-json-file FILE"
            f"  (FILE names {REPLICATION_AT_LEAST} replicas for each partition: docs/kafka.md)"
        )
        lines.append("  A broker for development, where one copy is enough: --dev")
    return "\n".join(lines)


def require_fit(kafka: KafkaSettings, topic: Topic, *, development: bool) -> None:
    """Refuse a topic that is missing or unfit. Raises TopicUnfit, KafkaUnavailable."""
    name = topic.name(kafka.topic_prefix)
    found = misfits(
        _read(kafka, name), development=development or kafka.development, outage_days=kafka.outage_days,
        outage_bytes=kafka.outage_bytes,
    )  # fmt: skip
    if found:
        raise TopicUnfit(complaint(name, kafka.bootstrap, found))


def _read(kafka: KafkaSettings, name: str) -> TopicSettings:
    """A topic's settings as they apply, its brokers' defaults included."""
    admin = admin_client(kafka)
    resource = ConfigResource(ResourceType.TOPIC, name)
    try:
        topics = admin.describe_topics(TopicCollection([name]), request_timeout=ANSWER_WITHIN_S)
        replication = min(len(partition.replicas) for partition in topics[name].result().partitions)
        config = admin.describe_configs([resource], request_timeout=ANSWER_WITHIN_S)[resource].result()
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            raise TopicUnfit(f"topic {name} does not exist at {kafka.bootstrap}: docs/kafka.md creates it") from None
        raise KafkaUnavailable(f"Kafka at {kafka.bootstrap}, topic {name}: {why(error.args[0])}") from None
    return TopicSettings(replication, {entry: str(setting.value) for entry, setting in config.items()})
