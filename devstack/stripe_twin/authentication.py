"""Who is asking. A test key is an account of its own; the key itself is never kept.

Sources: docs.stripe.com/api/authentication (Bearer, or Basic with the key as user name; 401),
docs.stripe.com/keys (prefixes), docs.stripe.com/api/versioning (``Stripe-Version``).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from functools import lru_cache

from stripe import api_version

from devstack.stripe_twin.errors import StripeError, invalid, unsupported

API_VERSION: str = str(api_version)
"""The installed SDK's version: its parameters and shapes are those of this version alone."""

_TEST_PREFIXES = ("sk_test_", "rk_test_")
_LIVE_PREFIXES = ("sk_live_", "rk_live_")


def account_of(headers: Mapping[str, str]) -> str:
    """The account behind the request's key. Raises StripeError (401)."""
    key = _key(headers.get("authorization", ""))
    if not key:
        raise StripeError(
            401,
            "You did not provide an API key. You need to provide your API key in the Authorization header, "
            "using Bearer auth (e.g. 'Authorization: Bearer YOUR_SECRET_KEY'). See "
            "https://stripe.com/docs/api#authentication for details.",
        )
    if key.startswith(_LIVE_PREFIXES):
        raise StripeError(
            401,
            "This is the local Stripe twin, and a LIVE key was sent to it. It takes test keys only (sk_test_…). "
            "Nothing was done and the key was not kept.",
            "api_key_invalid",
        )
    if not key.startswith(_TEST_PREFIXES) or key in _TEST_PREFIXES:
        raise StripeError(401, f"Invalid API Key provided: {_masked(key)}", "api_key_invalid")
    return account_of_key(key)


def check_version(headers: Mapping[str, str]) -> None:
    """Accept the pinned API version, or none. Raises StripeError (400)."""
    version = headers.get("stripe-version", API_VERSION)
    if version != API_VERSION:
        raise invalid(
            f"Invalid Stripe API version: {version}. The Stripe twin answers in {API_VERSION} only, "
            "the version of the installed stripe SDK."
        )
    for header in ("stripe-account", "stripe-context"):
        if headers.get(header):
            raise unsupported(header.title(), " (Connect)")


def _key(authorization: str) -> str:
    scheme, _, credentials = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(credentials, validate=True).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""


@lru_cache(maxsize=256)
def account_of_key(key: str) -> str:
    """The account that a key is."""
    return f"acct_{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _masked(key: str) -> str:
    return f"{key[:8]}{'*' * 8}{key[-4:]}" if len(key) > 16 else "*" * len(key)
