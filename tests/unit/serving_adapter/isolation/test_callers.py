"""Who asks: only what a known key signed, now, is believed."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from msgspec.structs import replace

from serving_adapter.isolation.callers import Caller, sign, verified
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.token_settings import TokenSettings
from serving_adapter.isolation.tokens import Tokens
from serving_adapter.settings import SettingsError

KEY, OTHER = b"k" * 32, b"o" * 32
KEYS = {"k1": KEY, "k2": OTHER}
NOW = 1_793_534_400
CALLER = Caller(tenant_id="tenant_a", tier="paid", request_id="q1", attempt=2, regions=["eu"], labels={"team": "x"})


def test_a_signed_caller_is_read_back_under_any_known_key() -> None:
    for key_id, key in KEYS.items():
        found = verified(sign(CALLER, key_id, key, now=NOW).encode(), KEYS, now=NOW)
        assert (found.tenant_id, found.request_id, found.attempt) == ("tenant_a", "q1", 2)
        assert (found.tier, found.regions, found.labels) == ("paid", ["eu"], {"team": "x"})


def test_labels_that_no_event_may_have_are_refused() -> None:
    caller = replace(CALLER, labels={str(number): "" for number in range(17)})
    with pytest.raises(Refusal) as refused:
        verified(sign(caller, "k1", KEY, now=NOW).encode(), KEYS, now=NOW)
    assert refused.value.status == 401


def test_every_byte_of_the_header_matters() -> None:
    header = bytearray(sign(CALLER, "k1", KEY, now=NOW).encode())
    for at in range(len(header)):
        changed = bytearray(header)
        changed[at] = ord("A") if changed[at] != ord("A") else ord("B")
        if urlsafe_b64decode(bytes(changed[-43:]) + b"=") == urlsafe_b64decode(bytes(header[-43:]) + b"="):
            continue  # the two spare bits of the last digit say nothing
        with pytest.raises(Refusal) as refused:
            verified(bytes(changed), KEYS, now=NOW)
        assert refused.value.status == 401


@pytest.mark.parametrize(
    ("signed_at", "valid_for", "key"), [(NOW - 61, 60, KEY), (NOW + 61, 60, KEY), (NOW, 301, KEY), (NOW, 60, OTHER)]
)
def test_a_stale_early_or_too_long_header_and_one_of_another_key_are_refused(
    signed_at: int, valid_for: int, key: bytes
) -> None:
    header = sign(CALLER, "k1", key, now=signed_at, valid_for=valid_for).encode()
    with pytest.raises(Refusal):
        verified(header, KEYS, now=NOW)


RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP256R1())
NEW_KEY = rsa.generate_private_key(65537, 2048)


def jwks(**keys: rsa.RSAPrivateKey) -> bytes:
    found = []
    for name, key in keys.items():
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key()))
        found.append(public | {"kid": name, "use": "sig"})
    return json.dumps({"keys": found}).encode()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def token(key: Any = RSA_KEY, kid: str = "a", algorithm: str = "RS256", **claims: Any) -> bytes:
    said = {"iss": "https://login", "aud": "inference", "exp": int(time.time()) + 600, "tenant_id": "tenant_a"} | claims
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid}).encode()


def make(tmp_path: Path, clock: Clock | None = None) -> tuple[Tokens, Path]:
    file = tmp_path / "jwks.json"
    file.write_bytes(jwks(a=RSA_KEY))
    settings = TokenSettings(jwks=str(file), algorithm="RS256", issuer="https://login", audience="inference")
    return Tokens(settings, monotonic=clock or Clock()), file


def caller_of(tokens: Tokens, token: bytes) -> Caller:
    async def asked() -> Caller:
        try:
            return await tokens.verified(token, now=0)
        finally:
            while tokens._reading is not None:
                await asyncio.sleep(0.001)

    return asyncio.run(asked())


def test_a_token_names_its_tenant_tier_and_regions(tmp_path: Path) -> None:
    tokens, _ = make(tmp_path)
    caller = caller_of(tokens, token(tier="free", regions=["eu"]))
    assert (caller.tenant_id, caller.tier, caller.regions) == ("tenant_a", "free", ["eu"])


def forged(secret: bytes) -> bytes:
    """Signed with what everybody knows: the public key, taken for a secret."""
    head, said, _ = token().split(b".")
    head = urlsafe_b64encode(b'{"alg":"HS256","kid":"a"}').rstrip(b"=")
    signature = hmac.digest(secret, head + b"." + said, "sha256")
    return b".".join([head, said, urlsafe_b64encode(signature).rstrip(b"=")])


def test_what_a_token_must_be_is_checked(tmp_path: Path) -> None:
    tokens, _ = make(tmp_path)
    public = RSA_KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for wrong in (
        token(iss="https://other"), token(aud="other"), token(exp=1), token(exp=None), token(tenant_id=None),
        token(tenant_id="_platform"), token(tenant_id="a b"), token(kid="unknown"), token(NEW_KEY),
        forged(public), token(None, algorithm="none"), token(EC_KEY, algorithm="ES256"),
        token(algorithm="RS512"), b"no.token.at-all",
    ):  # fmt: skip
        with pytest.raises(Refusal) as refused:
            caller_of(tokens, wrong)
        assert refused.value.status == 401


def test_keys_change_without_a_restart_and_one_that_is_gone_is_refused(tmp_path: Path) -> None:
    clock = Clock()
    tokens, file = make(tmp_path, clock)
    old = token()
    caller_of(tokens, old)
    file.write_bytes(jwks(b=NEW_KEY))
    with pytest.raises(Refusal):
        caller_of(tokens, token(NEW_KEY, "b"))
    clock.now = 11
    assert caller_of(tokens, token(NEW_KEY, "b")).tenant_id == "tenant_a"
    with pytest.raises(Refusal):
        caller_of(tokens, old)
    file.write_bytes(b"torn")
    clock.now = 400
    assert caller_of(tokens, token(NEW_KEY, "b", tier="x")).tier == "x", "what was known stays"
    assert tokens.failure is not None


def test_keys_of_other_kinds_in_the_set_are_left_out_and_the_others_hold(tmp_path: Path) -> None:
    _, file = make(tmp_path)
    curve = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(EC_KEY.public_key()))
    others: list[Any] = [
        curve | {"kid": "ec"}, {"kty": "oct", "kid": "secret", "k": "A" * 43}, {"kty": "new", "kid": "of-tomorrow"},
        {"kty": "RSA", "kid": "torn", "n": "?", "e": 7}, {"kty": "RSA", "kid": "half"}, "none", {"kty": "RSA"},
    ]  # fmt: skip
    file.write_text(json.dumps({"keys": [*others, *json.loads(jwks(a=RSA_KEY))["keys"]]}))
    settings = TokenSettings(jwks=str(file), algorithm="RS256", issuer="https://login", audience="inference")
    tokens = Tokens(settings, monotonic=Clock())
    assert caller_of(tokens, token()).tenant_id == "tenant_a"
    for wrong in (token(EC_KEY, "ec", algorithm="ES256"), token(b"\0" * 32, "secret", algorithm="HS256")):
        with pytest.raises(Refusal):
            caller_of(tokens, wrong)
    file.write_text(json.dumps({"keys": others}))
    with pytest.raises(SettingsError, match="no key of this algorithm"):
        Tokens(settings)


def test_a_symmetric_or_unsafe_source_of_keys_is_refused(tmp_path: Path) -> None:
    common = {"issuer": "i", "audience": "a"}
    for settings in (
        TokenSettings(jwks=str(tmp_path), algorithm="HS256", **common),
        TokenSettings(jwks="http://keys", algorithm="RS256", **common),
        TokenSettings(jwks=str(tmp_path / "missing"), algorithm="RS256", **common),
    ):
        with pytest.raises(SettingsError):
            Tokens(settings)


def test_who_brings_a_known_key_does_not_wait_for_one_who_does_not(tmp_path: Path) -> None:
    clock, asked, answer = Clock(), [], threading.Event()

    def fetch(_: str) -> bytes:
        asked.append(threading.current_thread())
        if len(asked) > 1:
            assert answer.wait(60)
            return jwks(a=RSA_KEY, b=NEW_KEY)
        return jwks(a=RSA_KEY)

    settings = TokenSettings(jwks=str(tmp_path), algorithm="RS256", issuer="https://login", audience="inference")
    tokens = Tokens(settings, fetch=fetch, monotonic=clock)
    clock.now = 11

    async def both() -> None:
        unknown = [asyncio.create_task(tokens.verified(token(NEW_KEY, "b"), now=0)) for _ in range(2)]
        await asyncio.sleep(0)
        assert (await tokens.verified(token(), now=0)).tenant_id == "tenant_a"
        assert not any(task.done() for task in unknown)
        answer.set()
        assert [(await task).tenant_id for task in unknown] == ["tenant_a"] * 2

    asyncio.run(both())
    assert len(asked) == 2
    assert asked[1] is not threading.main_thread()
