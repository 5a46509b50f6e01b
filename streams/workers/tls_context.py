"""TLS for clients other than librdkafka, as `kafka_security.py` asks for it; reads the certificates."""

from __future__ import annotations

import ssl

from serving_adapter.settings import SettingsError
from streams.workers.kafka_security import TlsSettings


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """How brokers are believed, and we by them. Raises SettingsError if a certificate or key cannot be read."""
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
