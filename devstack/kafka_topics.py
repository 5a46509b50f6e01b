"""The project's topics on the Kafka in use, local or elsewhere. (Imported late: this needs the Python environment.)"""

from __future__ import annotations

from collections.abc import Mapping

from devstack.errors import DevstackError
from serving_adapter.errors import AdapterError
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import ensure_topics


def create_topics(environ: Mapping[str, str]) -> None:
    """Create the topics that are missing, on the Kafka that `environ` names; raises DevstackError."""
    try:
        ensure_topics(KafkaSettings.from_environment(environ))
    except AdapterError as error:
        raise DevstackError(f"Kafka: {error}") from None
