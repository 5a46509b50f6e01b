"""What makes two events the same event, and what makes their content equal (docs/spec/metering.md 1).

Identity decides whether an event counts again; content decides whether a second arrival is a plain duplicate.
Other languages check themselves against `schemas/identity_vectors.v1.json`.
"""

from __future__ import annotations

import hashlib
from typing import Final, NamedTuple
from uuid import UUID, uuid5

import msgspec

from serving_adapter.events import UsageEvent

NAMESPACE: Final = UUID("8f065282-0d9b-57fb-ba3b-63d305fb7b0e")
DIGEST_BYTES: Final = 16

_to_json = msgspec.json.Encoder().encode


class Identity(NamedTuple):
    """The five values that are the same for every resend and replay of one event."""

    tenant_id: str
    request_id: str
    attempt: int
    kind: str
    correction_no: int


def identity_of(event: UsageEvent) -> Identity:
    """The event's identity. An emitter's own `event_id` has no part in it."""
    return Identity(event.tenant_id, event.request_id, event.attempt, event.kind, event.correction_no)


def event_id_of(identity: Identity) -> UUID:
    """UUIDv5 of the identity's compact UTF-8 JSON array, e.g. `["tenant_123","req-1",1,"usage",0]`."""
    return uuid5(NAMESPACE, _to_json(identity).decode())


def event_id_text_of(identity: Identity) -> str:
    """`str(event_id_of(identity))`, at a quarter of its price: senders name thousands of events a second."""
    sha1 = hashlib.sha1(NAMESPACE.bytes + _to_json(identity), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(sha1[16], 16) & 3]
    return f"{sha1[:8]}-{sha1[8:12]}-5{sha1[13:16]}-{variant}{sha1[17:20]}-{sha1[20:32]}"


def content_digest_of(event: UsageEvent) -> bytes:
    """16 bytes that are equal exactly when the content is (rule 1.4).

    Times, sequence numbers, labels and the emitter's own ids are not content. Defaults are filled in first, so
    that an event with `"attempt": 1` written out equals one without it.
    """
    e = event
    content = (
        e.model, e.adapter or "", e.region, e.tier, e.pool, e.status, e.fault, e.purpose,
        e.input_tokens, e.cache_hit_tokens, e.output_tokens,
        e.input_tokens if e.engine_input_tokens is None else e.engine_input_tokens,
        e.cache_hit_tokens if e.engine_cached_tokens is None else e.engine_cached_tokens,
        e.output_tokens if e.engine_output_tokens is None else e.engine_output_tokens,
        e.gpu_us,
    )  # fmt: skip
    return hashlib.sha256(_to_json(content)).digest()[:DIGEST_BYTES]
