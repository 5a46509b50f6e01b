"""Form decoding: Stripe's bracket syntax, and the SDK's own encoder as the other half of a round trip."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stripe._encode import _api_encode

from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.rules.forms import MAX_DEPTH, decode

names = st.text("abcdefgh_", min_size=1, max_size=6)
values = st.text(max_size=12)
nested = st.recursive(
    values,
    lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3) | st.lists(inner, min_size=1, max_size=3),
    max_leaves=8,
)


def as_decoded(value: Any) -> Any:
    """The SDK numbers its arrays, which stay hashes until their type is known."""
    if isinstance(value, dict):
        return {name: as_decoded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return {str(index): as_decoded(entry) for index, entry in enumerate(value)}
    return value


@given(st.dictionaries(names, nested, max_size=4))
def test_what_the_sdk_encodes_is_decoded_again(params: dict[str, Any]) -> None:
    assert decode(urlencode(list(_api_encode(params)))) == as_decoded(params)


@given(st.text(max_size=80))
def test_any_text_is_decoded_or_refused_in_stripes_way(text: str) -> None:
    try:
        decoded = decode(text)
    except StripeError as error:
        decoded = error.body("")
    assert isinstance(decoded, dict)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=", {"a": ""}),
        ("a=1&a=2", {"a": "2"}),
        ("a[]=1&a[]=2", {"a": ["1", "2"]}),
        ("a[][x]=1&a[][y]=2&a[][x]=3", {"a": [{"x": "1", "y": "2"}, {"x": "3"}]}),
        ("a[b][c]=1", {"a": {"b": {"c": "1"}}}),
        ("metadata[a%5Db]=1", {"metadata[a]b]": "1"}),
        ("name=%C3%A9+%26", {"name": "é &"}),
        ("expand[]=customer&expand[]=lines", {"expand": ["customer", "lines"]}),
    ],
)
def test_the_bracket_syntax(text: str, expected: Any) -> None:
    assert decode(text) == expected


@pytest.mark.parametrize("text", ["a=1&a[b]=2", "a[b]=1&a=2", "a[]=1&a[b]=2", "a[b]=1&a[]=2"])
def test_a_name_used_in_two_ways_is_refused(text: str) -> None:
    with pytest.raises(StripeError, match="both"):
        decode(text)


def test_nesting_is_bounded() -> None:
    with pytest.raises(StripeError, match="nested too deeply"):
        decode("a" + "[b]" * MAX_DEPTH + "=1")


def test_bytes_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(StripeError, match="UTF-8"):
        decode("a=%FF")
