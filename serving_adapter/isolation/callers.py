"""Who asks: the tenant that a gateway's signed header or a verified token names. Nothing else in a request is believed.

The header `x-tollbook-caller` is `v1.<key id>.<payload>.<signature>`: base64url of a JSON object and of the HMAC-SHA256
of everything before the last dot. Several keys may be known, so that they can be changed without a pause.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from binascii import a2b_base64
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Final

import msgspec

from serving_adapter.events import KeyName, Label, LabelKey, Positive, Purpose, RequestId, TenantId
from serving_adapter.isolation.refusal import Refusal

HEADER: Final = b"x-tollbook-caller"
LONGEST_S: Final = 300
"""A gateway signs for one request: a header that is valid for longer is refused."""
CLOCKS_DIFFER_S: Final = 60
MOST_BYTES: Final = 4096


class Caller(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who asks, as a trusted party says it."""

    tenant_id: TenantId
    tier: KeyName = ""
    request_id: RequestId | None = None
    attempt: Positive | None = None
    purpose: Purpose = "tenant"
    regions: Annotated[list[KeyName], msgspec.Meta(max_length=64)] = []
    """Where this tenant's requests may be served; none means anywhere."""
    api_key_id: Label | None = None
    client_request_id: Label | None = None
    labels: Annotated[dict[LabelKey, Label], msgspec.Meta(max_length=16)] | None = None


class _Signed(Caller, frozen=True, kw_only=True):
    """What a gateway signs: the caller, and when (seconds since 1970)."""

    iat: int
    exp: int


_decode: Final = msgspec.json.Decoder(_Signed)
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


def sign(caller: Caller, key_id: str, key: bytes, *, now: int, valid_for: int = 60) -> str:
    """The header's value, as a gateway makes it."""
    payload = msgspec.to_builtins(caller) | {"iat": now, "exp": now + valid_for}
    head = f"v1.{key_id}.{_text(msgspec.json.encode(payload))}"
    return f"{head}.{_text(_signature(head.encode(), key))}"


def verified(header: bytes, keys: Mapping[str, bytes], *, now: int) -> Caller:
    """The caller that a header names. Raises Refusal (401)."""
    parts = header.split(b".")
    if len(header) > MOST_BYTES or len(parts) != 4 or parts[0] != b"v1":
        raise Refusal(401, "bad_caller", "The caller's header cannot be read.")
    key = keys.get(parts[1].decode("ascii", "replace"))
    signature = _bytes(parts[3])
    if key is None or not hmac.compare_digest(_signature(header.rpartition(b".")[0], key), signature):
        raise Refusal(401, "bad_caller", "The caller's header is not signed by a key that this replica knows.")
    try:
        signed = _decode.decode(_bytes(parts[2]))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(401, "bad_caller", f"The caller's header: {error}") from None
    if not signed.iat - CLOCKS_DIFFER_S <= now < signed.exp or signed.exp - signed.iat > LONGEST_S:
        raise Refusal(401, "stale_caller", "The caller's header is not valid now.")
    return signed


def nobody() -> Refusal:
    """For a request that nobody vouches for."""
    return Refusal(401, "no_caller", "This replica answers only callers that a gateway or a token vouches for.")


def _signature(head: bytes, key: bytes) -> bytes:
    keyed = _keyed(key).copy()
    keyed.update(head)
    return keyed.digest()


@lru_cache(maxsize=256)
def _keyed(key: bytes) -> hmac.HMAC:
    """To be copied: OpenSSL looks up its algorithm anew for each HMAC otherwise, a tenth of a request's time."""
    return hmac.new(key, digestmod="sha256")


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _bytes(text: bytes) -> bytes:
    try:
        return a2b_base64(text.translate(_STANDARD) + b"==")  # what is too much of it is ignored
    except ValueError:
        return b""
