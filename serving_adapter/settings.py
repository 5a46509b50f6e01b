"""How to reach Kafka, read once from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from serving_adapter.errors import AdapterError


class SettingsError(AdapterError):
    """An environment variable that is missing or cannot be used; the text names it and says what to do."""


OURS: Final = {
    "bootstrap.servers": "TOLLBOOK_KAFKA names the brokers, for all clients",
    "acks": "it is always all",
    "request.required.acks": "acks is always all",
    "enable.idempotence": "it is always on",
    "partitioner": "it is always murmur2_random, as Java's, so that a tenant keeps its partition",
    "transactional.id": "producers are not transactional",
}
"""Properties that a file may not name: what metering rests on (docs/spec/metering.md 5) is not for configuring."""
_SECRET: Final = re.compile(r"password|secret|\.pem$|sasl\.oauthbearer\.config")


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """Bootstrap servers, further client properties (SASL, TLS; never shown, they hold secrets), topic prefix.

    `development`: the brokers are a developer's, and one copy of a message is enough. `outage_days`: the longest outage
    to survive; `outage_bytes`: what a partition may take in by then, None where nobody said.
    """

    bootstrap: str
    properties: Mapping[str, str] = field(default_factory=dict, repr=False)
    topic_prefix: str = "tollbook"
    development: bool = False
    outage_days: int = 7
    outage_bytes: int | None = None

    @staticmethod
    def from_environment(environ: Mapping[str, str] = os.environ) -> KafkaSettings:
        """Settings from `TOLLBOOK_KAFKA`, `TOLLBOOK_KAFKA_CONFIG` and `TOLLBOOK_TOPIC_PREFIX`.

        `TOLLBOOK_DEV_KAFKA` names the development broker, if there is one: a name, not a switch, so that a shell in
        which it is left over cannot make a production cluster pass for one. `TOLLBOOK_OUTAGE_DAYS` and
        `TOLLBOOK_OUTAGE_BYTES` say what topics must be able to hold.
        """
        bootstrap = environ.get("TOLLBOOK_KAFKA", "")
        if not bootstrap:
            raise SettingsError("TOLLBOOK_KAFKA is not set: start the local broker with `make up`, or name yours")
        path = environ.get("TOLLBOOK_KAFKA_CONFIG", "")
        properties = read_properties(Path(path)) if path else {}
        development = environ.get("TOLLBOOK_DEV_KAFKA") == bootstrap
        return KafkaSettings(
            bootstrap, properties, environ.get("TOLLBOOK_TOPIC_PREFIX", "tollbook"), development,
            _whole(environ, "TOLLBOOK_OUTAGE_DAYS") or 7, _whole(environ, "TOLLBOOK_OUTAGE_BYTES"),
        )  # fmt: skip

    def client(self, **more: Any) -> dict[str, Any]:
        """The configuration of a librdkafka client."""
        return {"bootstrap.servers": self.bootstrap, **self.properties, **more}

    def without_secrets(self, text: str) -> str:
        """A client library's message, with every secret of the properties blotted out, should it repeat one."""
        for name, value in self.properties.items():
            if value and _SECRET.search(name):
                text = text.replace(value, "…")
        return text


def _whole(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    if text and not (text.isascii() and text.isdigit() and int(text) > 0):
        raise SettingsError(f"{name} is {text!r}, must be a whole number above 0")
    return int(text) if text else None


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
        name = name.strip()
        if name in OURS:
            raise SettingsError(f"TOLLBOOK_KAFKA_CONFIG: {path}, line {number}: remove {name}: {OURS[name]}")
        properties[name] = value.strip()
    return properties
