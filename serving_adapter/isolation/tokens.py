"""Tenants that come with a token of their own: JWT, checked against pinned algorithm, issuer, audience and keys.

Needs `tollbook-adapter[jwt]`. Keys are a JWKS, in a file or at an https address; they are read again every few minutes,
beside the requests, and when a token names one that is not known yet, at most once in a while: only who brings such a
token waits for that. Tokens that were verified are remembered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec

from serving_adapter.isolation.callers import Caller
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.token_settings import TokenSettings
from serving_adapter.settings import SettingsError

ALGORITHMS: Final = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"})
"""Of key pairs alone: a replica must not hold what could sign."""
REFRESH_S: Final = 300.0
AT_MOST_EACH_S: Final = 10.0
FETCH_WITHIN_S: Final = 3.0
MOST_JWKS_BYTES: Final = 1024 * 1024
REMEMBERED: Final = 10_000
LEEWAY_S: Final = 10


class Tokens:
    """Verifies tokens, and remembers those it has seen until they expire."""

    def __init__(
        self,
        settings: TokenSettings,
        *,
        fetch: Callable[[str], bytes] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the keys. Raises SettingsError."""
        if settings.algorithm not in ALGORITHMS:
            raise SettingsError(f"tokens.algorithm {settings.algorithm!r}: one of {', '.join(sorted(ALGORITHMS))}")
        if "://" in settings.jwks and not settings.jwks.startswith("https://"):
            raise SettingsError("tokens.jwks must be a file or an https:// address")
        self._settings = settings
        self._fetch = fetch or _fetch
        self._monotonic = monotonic
        self._keys: dict[str, jwt.PyJWK] = {}
        self._read_at = -REFRESH_S
        self._seen: OrderedDict[bytes, tuple[Caller, int]] = OrderedDict()
        self._reading: asyncio.Task[None] | None = None
        self.failure: str | None = None
        """Why the keys could not be read the last time."""
        self._take(self._read())
        if not self._keys:
            raise SettingsError(f"tokens.jwks {settings.jwks}: {self.failure or 'no key of this algorithm in it'}")

    async def verified(self, token: bytes, *, now: int) -> Caller:
        """The caller that a token names. Raises Refusal (401)."""
        known = self._seen.get(token)
        if known is not None and now < known[1]:
            return known[0]
        if self._monotonic() - self._read_at >= REFRESH_S:
            self._read_again()
        if self._names_no_known_key(token) and self._monotonic() - self._read_at >= AT_MOST_EACH_S:
            self._read_again()
        if self._reading is not None and self._names_no_known_key(token):
            await asyncio.wait([self._reading], timeout=FETCH_WITHIN_S)
        caller, expires = self._verify(token)
        self._seen[token] = (caller, min(expires, now + int(REFRESH_S)))
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        return caller

    def _verify(self, token: bytes) -> tuple[Caller, int]:
        settings = self._settings
        try:
            key = self._keys.get(_key_id(token))
            if key is None:
                raise jwt.InvalidTokenError("signed by a key that is not known")
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=[settings.algorithm], audience=settings.audience, issuer=settings.issuer,
                leeway=LEEWAY_S, options={"require": ["exp", "iss", "aud", settings.tenant_claim]},
            )  # fmt: skip
            named = {
                "tenant_id": claims[settings.tenant_claim],
                "tier": claims.get(settings.tier_claim, ""),
                "regions": claims.get(settings.regions_claim, []),
            }
            caller = msgspec.convert(named, Caller)
        except (jwt.PyJWTError, msgspec.ValidationError) as error:
            raise Refusal(401, "bad_token", f"The token is refused: {error}") from None
        if caller.tenant_id.startswith("_"):
            raise Refusal(401, "bad_token", "The token names a reserved tenant.")
        return caller, int(claims["exp"])

    def _names_no_known_key(self, token: bytes) -> bool:
        try:
            return _key_id(token) not in self._keys
        except jwt.PyJWTError:
            return False  # no token: refused without asking anybody

    def _read_again(self) -> None:
        """Begin to read the keys, once, in a thread."""
        if self._reading is None:
            self._read_at = self._monotonic()
            self._reading = asyncio.get_running_loop().create_task(self._read_beside())

    async def _read_beside(self) -> None:
        try:
            self._take(await asyncio.to_thread(self._read))
        finally:
            self._reading = None

    def _read(self) -> dict[str, jwt.PyJWK] | str:
        """The keys, or why they cannot be read. A set may hold keys of other kinds: they are left out (RFC 7517, 5)."""
        try:
            found = [key for key in json.loads(self._fetch(self._settings.jwks))["keys"] if isinstance(key, dict)]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return str(error) or type(error).__name__
        keys = {}
        for each in found:
            if each.get("kid") and each.get("use", "sig") == "sig":
                with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, jwt.PyJWTError):
                    keys[str(each["kid"])] = jwt.PyJWK(each, algorithm=self._settings.algorithm)
        return keys

    def _take(self, read: dict[str, jwt.PyJWK] | str) -> None:
        """What was known stays where reading failed."""
        self._read_at = self._monotonic()
        if isinstance(read, str):
            self.failure = read
        else:
            self._keys, self.failure = read, None
            self._seen.clear()


def _key_id(token: bytes) -> str:
    return str(jwt.get_unverified_header(token).get("kid", ""))


def _fetch(jwks: str) -> bytes:
    if not jwks.startswith("https://"):
        return Path(jwks).read_bytes()
    with urllib.request.urlopen(jwks, timeout=FETCH_WITHIN_S) as answer:
        body: bytes = answer.read(MOST_JWKS_BYTES)
    return body
