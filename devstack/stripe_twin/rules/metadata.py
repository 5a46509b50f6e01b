"""Metadata: limits and merging.

Source: docs.stripe.com/api/metadata and docs.stripe.com/metadata: up to 50 keys, keys up to 40 characters
without square brackets, values up to 500 characters; an update merges; an empty value removes its key, an
empty ``metadata`` removes all.
"""

from __future__ import annotations

from devstack.stripe_twin.errors import invalid
from devstack.stripe_twin.rules.forms import FormValue

MAX_KEYS = 50
MAX_KEY_LENGTH = 40
MAX_VALUE_LENGTH = 500


def check_pair(key: str, value: FormValue, param: str) -> str:
    """The value, if key and value are within the limits; part of the parameter check."""
    if not isinstance(value, str):
        raise invalid(f"Invalid string: {value}", f"{param}[{key}]")
    if len(key) > MAX_KEY_LENGTH:
        raise invalid(
            f"Metadata keys can have up to {MAX_KEY_LENGTH} characters, but you passed in a key that is "
            f"{len(key)} characters. Invalid key: {key}",
            param,
        )
    if len(value) > MAX_VALUE_LENGTH:
        raise invalid(
            f"Metadata values can have up to {MAX_VALUE_LENGTH} characters, but you passed in a value that "
            f"is {len(value)} characters. Invalid value: {value}",
            f"{param}[{key}]",
        )
    return value


def merge(current: dict[str, str], update: dict[str, str] | str | None) -> dict[str, str]:
    """``current`` changed by a ``metadata`` parameter (None: not given, "": remove all)."""
    if update is None:
        return current
    if isinstance(update, str):
        return {}
    merged = {**current, **update}
    merged = {key: value for key, value in merged.items() if value != ""}
    if len(merged) > MAX_KEYS:
        raise invalid(f"Metadata can have up to {MAX_KEYS} keys, but this object would have {len(merged)}.", "metadata")
    return merged
