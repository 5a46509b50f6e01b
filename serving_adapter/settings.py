"""How to reach Kafka, read once from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_adapter.errors import AdapterError


class SettingsError(AdapterError):
    """An environment variable that is missing or cannot be used; the text names it and says what to do."""


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Bootstrap servers, further client properties (SASL, TLS; never shown, they hold secrets), topic prefix."""

    bootstrap: str
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    topic_prefix: str = "tollbook"

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> KafkaSettings:
        """Settings from `TOLLBOOK_KAFKA`, `TOLLBOOK_KAFKA_CONFIG` and `TOLLBOOK_TOPIC_PREFIX`."""
        bootstrap = environ.get("TOLLBOOK_KAFKA", "")
        if not bootstrap:
            raise SettingsError("TOLLBOOK_KAFKA is not set: start the local broker with `make up`, or name yours")
        path = environ.get("TOLLBOOK_KAFKA_CONFIG", "")
        properties = read_properties(Path(path)) if path else {}
        return KafkaSettings(bootstrap, properties, environ.get("TOLLBOOK_TOPIC_PREFIX", "tollbook"))

    def client(self, **more: Any) -> dict[str, Any]:
        """The configuration of a librdkafka client."""
        return {"bootstrap.servers": self.bootstrap, **self.properties, **more}


def read_properties(path: Path) -> dict[str, str]:
    """Client properties, one `name=value` a line, `#` for comments, in librdkafka's names."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"TOLLBOOK_KAFKA_CONFIG: cannot read {path}: {error}") from None
    properties: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"TOLLBOOK_KAFKA_CONFIG: {path}, line {number}: expected name=value")
        properties[name.strip()] = value.strip()
    return properties
