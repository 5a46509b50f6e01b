"""Metadata limits and merging."""

from __future__ import annotations

import pytest

from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.rules.metadata import check_pair, merge


@pytest.mark.parametrize(
    ("current", "update", "expected"),
    [
        ({"a": "1"}, None, {"a": "1"}),
        ({"a": "1"}, {"b": "2"}, {"a": "1", "b": "2"}),
        ({"a": "1", "b": "2"}, {"a": ""}, {"b": "2"}),
        ({"a": "1"}, {"a": "3"}, {"a": "3"}),
        ({"a": "1"}, "", {}),
        ({"a": "1"}, {}, {"a": "1"}),
    ],
)
def test_an_update_merges_and_an_empty_value_removes(
    current: dict[str, str], update: dict[str, str] | str | None, expected: dict[str, str]
) -> None:
    assert merge(current, update) == expected


def test_fifty_keys_are_the_limit_after_merging() -> None:
    full = {str(number): "x" for number in range(50)}
    assert merge(full, {"0": "", "new": "x"}).keys() == (full.keys() - {"0"}) | {"new"}
    with pytest.raises(StripeError, match="50 keys"):
        merge(full, {"new": "x"})


def test_keys_and_values_have_a_length() -> None:
    assert check_pair("k" * 40, "v" * 500, "metadata") == "v" * 500
    with pytest.raises(StripeError, match="40 characters"):
        check_pair("k" * 41, "v", "metadata")
    with pytest.raises(StripeError, match="500 characters"):
        check_pair("k", "v" * 501, "metadata")
