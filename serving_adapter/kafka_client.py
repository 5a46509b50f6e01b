"""Reaching Kafka: the first answer from a broker, or an error that says so soon."""

from __future__ import annotations

import logging
import time
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ClusterMetadata  # type: ignore[attr-defined]

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings

ANSWER_WITHIN_S: Final = 10.0
REFUSED_FOR_S: Final = 2.0
"""A broker that refuses connections for so long is not just starting."""

# librdkafka prints every connection attempt to standard error; what matters reaches the caller as an error.
quiet_log = logging.getLogger("tollbook.kafka")
quiet_log.addHandler(logging.NullHandler())
quiet_log.propagate = False


def admin_client(kafka: KafkaSettings) -> AdminClient:
    """An admin client of a broker that answers. Raises KafkaUnavailable."""
    client = AdminClient(kafka.client(logger=quiet_log, **{"socket.timeout.ms": int(ANSWER_WITHIN_S * 1000)}))
    first_answer(client, kafka, None)
    return client


def first_answer(client: AdminClient | Producer, kafka: KafkaSettings, topic: str | None) -> ClusterMetadata:
    """The brokers' metadata of a topic (None: of all). Raises KafkaUnavailable, soon if nobody listens there."""
    begun = time.monotonic()
    while True:
        try:
            return client.list_topics(topic, timeout=1.0) if topic else client.list_topics(timeout=1.0)
        except KafkaException as error:
            waited = time.monotonic() - begun
            failed: Any = error.args[0]
            refused = failed.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
            if waited > (REFUSED_FOR_S if refused else ANSWER_WITHIN_S):
                raise KafkaUnavailable(
                    f"no Kafka broker answers at {kafka.bootstrap}: run `make up`, or set TOLLBOOK_KAFKA"
                ) from None
