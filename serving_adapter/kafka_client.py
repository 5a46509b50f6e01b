"""Reaching Kafka: the first answer from a broker, or an error that says so soon."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, ClusterMetadata  # type: ignore[attr-defined]

from serving_adapter.errors import KafkaUnavailable
from serving_adapter.settings import KafkaSettings, SettingsError

ANSWER_WITHIN_S: Final = 10.0
REFUSED_FOR_S: Final = 2.0
"""A broker that refuses connections for so long is not just starting."""

NOT_ALLOWED: Final = (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED,
                      KafkaError.CLUSTER_AUTHORIZATION_FAILED)  # fmt: skip

# librdkafka prints every connection attempt to standard error; what matters reaches the caller as an error.
quiet_log = logging.getLogger("tollbook.kafka")
quiet_log.addHandler(logging.NullHandler())
quiet_log.propagate = False


AnyClient = TypeVar("AnyClient", Producer, AdminClient)


def why(error: KafkaError) -> str:
    """What a broker said, for a person; of what it does not allow, where stands what each login needs."""
    if error.code() in NOT_ALLOWED:
        return f"{error.str().rstrip('.')}: this login may not do that (docs/kafka.md: who may do what)"
    return error.str()


def admin_client(kafka: KafkaSettings) -> AdminClient:
    """An admin client of a broker that answers. Raises KafkaUnavailable, SettingsError."""
    client, _ = connect(AdminClient, kafka, None, **{"socket.timeout.ms": int(ANSWER_WITHIN_S * 1000)})
    return client


def connect(
    make: Callable[[dict[str, Any]], AnyClient], kafka: KafkaSettings, topic: str | None, **more: Any
) -> tuple[AnyClient, ClusterMetadata]:
    """A client of brokers that answer, and their metadata of a topic (None: of all).

    Raises KafkaUnavailable, soon if nobody listens there or the brokers refuse us; SettingsError if the properties are
    not librdkafka's.
    """
    refusal = _Refusal()
    try:
        client = make(kafka.client(**more, logger=quiet_log, error_cb=refusal.note))
    except KafkaException as error:
        raise SettingsError(f"TOLLBOOK_KAFKA_CONFIG: {_told(kafka, error.args[0])}") from None
    return client, _first_answer(client, kafka, topic, refusal)


class _Refusal:
    """Why brokers that can be reached do not speak with us: librdkafka tells it in a callback and tries on."""

    def __init__(self) -> None:
        self.error: KafkaError | None = None

    def note(self, error: KafkaError) -> None:
        """librdkafka's callback."""
        if error.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL):
            self.error = error


def _first_answer(
    client: Producer | AdminClient, kafka: KafkaSettings, topic: str | None, refusal: _Refusal
) -> ClusterMetadata:
    begun = time.monotonic()
    while True:
        try:
            return client.list_topics(topic, timeout=1.0) if topic else client.list_topics(timeout=1.0)
        except KafkaException as error:
            waited = time.monotonic() - begun
            client.poll(0)
            if refusal.error is not None:
                raise KafkaUnavailable(
                    f"Kafka at {kafka.bootstrap} refuses this client: {_told(kafka, refusal.error)}."
                    " Mend the file that TOLLBOOK_KAFKA_CONFIG names"
                ) from None
            failed: Any = error.args[0]
            refused = failed.code() in (KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)
            if waited > (REFUSED_FOR_S if refused else ANSWER_WITHIN_S):
                raise KafkaUnavailable(
                    f"no Kafka broker answers at {kafka.bootstrap}: run `make up`, or set TOLLBOOK_KAFKA"
                ) from None


def _told(kafka: KafkaSettings, error: KafkaError) -> str:
    """librdkafka's text in one line: what it says of its own states and addresses helps nobody."""
    text = " ".join(kafka.without_secrets(error.str()).split())
    text = re.sub(r"^\w+://\S+: ", "", text)
    return re.sub(r" ?\(after \d+ms in state \w+\)", "", text).rstrip(". ")
