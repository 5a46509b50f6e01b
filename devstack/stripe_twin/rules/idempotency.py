"""Idempotency keys as Stripe's API v1 treats them.

Sources: docs.stripe.com/api/idempotent_requests (what is saved: status and body of the first request, also
of a 500; what is not: failed validation, a concurrent conflict; keys up to 255 characters, removed after at
least 24 hours, compared with the original parameters; no effect on GET and DELETE) and
docs.stripe.com/error-low-level ("as long as an API method began execution"; 401 and 429 come before this
layer).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from devstack.stripe_twin.errors import IDEMPOTENCY, StripeError, invalid
from devstack.stripe_twin.rules.forms import Form

MAX_KEY_LENGTH = 255
LIFETIME_SECONDS = 24 * 60 * 60
"""Stripe keeps a key for at least 24 hours; the twin forgets it exactly then, the least that Stripe grants."""


@dataclass(frozen=True)
class StoredReply:
    """The first reply under a key. ``request_id`` is the first request's, ``created`` in Unix seconds."""

    path: str
    fingerprint: str
    status: int
    body: bytes
    request_id: str
    created: int


def check_key(key: str) -> None:
    if len(key) > MAX_KEY_LENGTH:
        raise invalid(f"Idempotency keys can have up to {MAX_KEY_LENGTH} characters; this one has {len(key)}.")


def fingerprint(form: Form) -> str:
    """Equal for equal parameters, whatever their order."""
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()


def has_expired(reply: StoredReply, now: int) -> bool:
    return now - reply.created >= LIFETIME_SECONDS


def check_same_request(reply: StoredReply, key: str, path: str, request_fingerprint: str) -> None:
    """Refuse a key that was first used for another endpoint or with other parameters."""
    hint = f"Try using a key other than '{key}' if you meant to execute a different request."
    if reply.path != path:
        raise StripeError(
            400,
            "Keys for idempotent requests can only be used for the same endpoint they were first used for "
            f"('{path}' vs '{reply.path}'). {hint}",
            type=IDEMPOTENCY,
        )
    if reply.fingerprint != request_fingerprint:
        raise StripeError(
            400,
            f"Keys for idempotent requests can only be used with the same parameters they were first used with. {hint}",
            type=IDEMPOTENCY,
        )


def key_in_use(key: str) -> StripeError:
    """The same key while its first request is still running. Not stored; a later try gets the reply."""
    return StripeError(
        409,
        "There is currently another in-progress request using this Idempotent Key (that probably means you "
        f"submitted twice, and the other request is still going through): {key}. Please try again later.",
        "idempotency_key_in_use",
        should_retry=True,
    )
