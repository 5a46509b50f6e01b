"""`TOLLBOOK_KAFKA_CONFIG` for the consumer: librdkafka's properties in the words of another client. Values only.

Producers and admin clients take the file as it is. The Faust worker reads through aiokafka, which knows none of these
names: what it cannot do is refused here, lest it connects in a less safe way than was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from serving_adapter.settings import SettingsError

PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS: Final = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
UNDERSTOOD: Final = frozenset(
    {
        "security.protocol", "sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password",
        "ssl.ca.location", "ssl.certificate.location", "ssl.key.location", "ssl.key.password",
        "ssl.endpoint.identification.algorithm", "enable.ssl.certificate.verification",
    }
)  # fmt: skip
SECURITY: Final = ("security.", "sasl.", "ssl.", "enable.ssl.", "enable.sasl.", "https.")
"""Prefixes of properties that matter for security; others tune librdkafka and mean nothing to the consumer."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """How brokers prove who they are, and we, if they ask. Paths of PEM files; None: the system's authorities."""

    ca_location: str | None
    certificate_location: str | None
    key_location: str | None
    key_password: str | None = field(repr=False)
    verify: bool = True
    verify_hostname: bool = True


@dataclass(frozen=True, slots=True)
class SaslSettings:
    """How we log in."""

    mechanism: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KafkaSecurity:
    """What a client other than librdkafka has to do to be as safe; both None: plain text."""

    tls: TlsSettings | None
    sasl: SaslSettings | None


def security_of(properties: Mapping[str, str]) -> KafkaSecurity:
    """The security that client properties ask for.

    Raises SettingsError, which names a property that is unknown, contradictory or missing, never its secret value.
    """
    for name in properties:
        if name.startswith(SECURITY) and name not in UNDERSTOOD:
            raise _wrong(f"{name} cannot be used for reading; these can: {', '.join(sorted(UNDERSTOOD))}")
    protocol = _one_of(properties, "security.protocol", "PLAINTEXT", PROTOCOLS)
    tls = _tls(properties) if protocol in ("SSL", "SASL_SSL") else None
    sasl = _sasl(properties) if protocol.startswith("SASL_") else None
    unused = [
        n for n in sorted(properties) if (n.startswith("ssl.") and not tls) or (n.startswith("sasl.") and not sasl)
    ]
    if unused:
        raise _wrong(
            f"{unused[0]} has no effect with security.protocol {protocol}: set the protocol, or remove the line"
        )
    return KafkaSecurity(tls, sasl)


def _tls(properties: Mapping[str, str]) -> TlsSettings:
    certificate = properties.get("ssl.certificate.location")
    key = properties.get("ssl.key.location")
    if (certificate is None) != (key is None):
        raise _wrong("ssl.certificate.location and ssl.key.location go together")
    return TlsSettings(
        properties.get("ssl.ca.location"),
        certificate,
        key,
        properties.get("ssl.key.password"),
        _one_of(properties, "enable.ssl.certificate.verification", "TRUE", ("TRUE", "FALSE")) == "TRUE",
        _one_of(properties, "ssl.endpoint.identification.algorithm", "HTTPS", ("HTTPS", "NONE")) == "HTTPS",
    )


def _sasl(properties: Mapping[str, str]) -> SaslSettings:
    name = "sasl.mechanisms" if "sasl.mechanisms" in properties else "sasl.mechanism"
    if name not in properties:
        raise _wrong(f"sasl.mechanism is missing: {', '.join(MECHANISMS)}")
    mechanism = _one_of(properties, name, "", MECHANISMS)
    for needed in ("sasl.username", "sasl.password"):
        if not properties.get(needed):
            raise _wrong(f"{needed} is missing")
    return SaslSettings(mechanism, properties["sasl.username"], properties["sasl.password"])


def _one_of(properties: Mapping[str, str], name: str, default: str, known: tuple[str, ...]) -> str:
    value = properties.get(name, default).upper()
    if value not in known:
        raise _wrong(f"{name} is {properties[name]}, must be one of {', '.join(known)}")
    return value


def _wrong(text: str) -> SettingsError:
    return SettingsError(f"TOLLBOOK_KAFKA_CONFIG: {text}")
