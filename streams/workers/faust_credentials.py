"""The security of `kafka_security.py` as Faust wants it; reads the certificates."""

from __future__ import annotations

import ssl
from typing import Any

from faust.auth import SASLCredentials, SSLCredentials

from serving_adapter.settings import SettingsError
from streams.workers.kafka_security import KafkaSecurity, TlsSettings


def credentials(security: KafkaSecurity) -> Any:
    """Faust's `broker_credentials`; None for plain text. Raises SettingsError if a certificate cannot be read."""
    context = _context(security.tls) if security.tls else None
    if security.sasl:
        sasl = security.sasl
        return SASLCredentials(
            username=sasl.username, password=sasl.password, mechanism=sasl.mechanism, ssl_context=context
        )
    return SSLCredentials(context) if context else None


def _context(tls: TlsSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=tls.ca_location)
        if tls.certificate_location:
            context.load_cert_chain(tls.certificate_location, tls.key_location, lambda: tls.key_password or "")
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"TOLLBOOK_KAFKA_CONFIG: a certificate or key cannot be read: {error}") from None
    # Python 3.13 asks of authorities what librdkafka does not, and companies' own often lack it: judge as librdkafka.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = tls.verify and tls.verify_hostname
    if not tls.verify:
        context.verify_mode = ssl.CERT_NONE
    return context
