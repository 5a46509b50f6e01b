"""The security of `kafka_security.py` as Faust wants it."""

from __future__ import annotations

from typing import Any

from faust.auth import SASLCredentials, SSLCredentials

from streams.workers.kafka_security import KafkaSecurity
from streams.workers.tls_context import tls_context


def credentials(security: KafkaSecurity) -> Any:
    """Faust's `broker_credentials`; None for plain text. Raises SettingsError if a certificate cannot be read."""
    context = tls_context(security.tls) if security.tls else None
    if security.sasl:
        sasl = security.sasl
        return SASLCredentials(
            username=sasl.username, password=sasl.password, mechanism=sasl.mechanism, ssl_context=context
        )
    return SSLCredentials(context) if context else None
