"""Secrets and what their holders may do."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from streams.http.access_keys import SECRET_BYTES, AccessKey, digest_of, find, secret_from

SECRET = secret_from(bytes(range(SECRET_BYTES)))
KEY = AccessKey("key_1", "emitter", "gateway", False, frozenset({"a"}), digest_of(SECRET), datetime.now(UTC))


def test_a_secret_is_recognisable_and_all_of_its_randomness_counts() -> None:
    assert SECRET == "tbk_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    with pytest.raises(ValueError, match="32 random bytes"):
        secret_from(b"short")


def test_a_key_is_found_by_its_secret_alone_and_does_not_show_how() -> None:
    keys = {KEY.digest: KEY}
    assert find(keys, SECRET) is KEY
    for other in ("", SECRET[:-1], SECRET + "x", KEY.digest.hex(), KEY.key_id):
        assert find(keys, other) is None
    assert KEY.digest.hex() not in repr(KEY)


@pytest.mark.parametrize(
    ("all_tenants", "named", "allowed", "refused"),
    [
        (False, {"a"}, {"a"}, {"b", "_platform", ""}),
        (True, set(), {"a", "b"}, {"_platform"}),
        (True, {"_platform"}, {"a", "_platform"}, {"_other"}),
    ],
)
def test_all_tenants_are_all_but_the_reserved_ones(
    all_tenants: bool, named: set[str], allowed: set[str], refused: set[str]
) -> None:
    key = replace(KEY, all_tenants=all_tenants, tenants=frozenset(named))
    assert {tenant for tenant in allowed | refused if key.may_speak_for(tenant)} == allowed


def test_an_emitter_numbers_under_the_keys_name_and_what_is_below_it() -> None:
    own = {"gateway", "gateway.7", "gateway/eu/7"}
    foreign = {"replica-1", "gateway-2", "gateways", "Gateway", "gatewa", "", ".gateway"}
    assert {replica for replica in own | foreign if KEY.may_number_as(replica)} == own
