"""Descriptors as Envoy sends them, as the calls that they stand for."""

from __future__ import annotations

import msgspec
import pytest

from streams.quotas.envoy_calls import Descriptor, Names, NotUnderstood, http_call

NAMED = {"tenant_id": "t:1", "request_id": "r1"}


def test_descriptors_together_are_one_reservation() -> None:
    call = http_call(
        [Descriptor(NAMED | {"generic_key": "x"}, 1), Descriptor({"model": "m", "max_tokens": "50", "tier": "paid"}, 1)]
    )
    assert call.target == "/v1/reservations"
    assert msgspec.json.decode(call.body) == NAMED | {"model": "m", "max_tokens": 50, "tier": "paid", "input_tokens": 0}


def test_what_was_used_settles() -> None:
    call = http_call(
        [Descriptor(NAMED | {"used": "output_tokens", "attempt": "2"}, 40), Descriptor({"used": "input_tokens"}, 7)]
    )
    assert call.target == "/v1/reservations/t%3A1/r1/settle"
    told = {"attempt": 2, "model": "", "output_tokens": 40, "input_tokens": 7}
    assert msgspec.json.decode(call.body) == told


@pytest.mark.parametrize("wrong", ["rule-0", "=tenant_id", "rule-0=user", "rule-0=used:gpu", "rule-0=of:input_tokens"])
def test_a_name_that_stands_for_nothing_is_refused(wrong: str) -> None:
    with pytest.raises(NotUnderstood, match="KEY=FIELD"):
        Names.read([wrong])


@pytest.mark.parametrize(
    ("entries", "says"),
    [({"tenant_id": "t"}, "request_id"), ({"request_id": "r"}, "tenant_id"),
     (NAMED | {"max_tokens": "-1"}, "max_tokens"), (NAMED | {"n": "9" * 11}, "n"), (NAMED | {"used": "gpu"}, "used")],
)  # fmt: skip
def test_what_is_missing_or_no_number_is_named(entries: dict[str, str], says: str) -> None:
    with pytest.raises(NotUnderstood, match=says):
        http_call([Descriptor(entries, 0)])
