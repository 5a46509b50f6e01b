"""Common steps from parameters to attributes."""

from __future__ import annotations

from typing import Any

PAGE_PARAMS = frozenset({"limit", "starting_after", "ending_before"})
ADDRESS_FIELDS = ("city", "country", "line1", "line2", "postal_code", "state")


def unset_to_none(value: Any) -> Any:
    """An empty string unsets an attribute, which Stripe shows as null."""
    return None if value == "" else value


def chosen(params: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The parameters among ``names`` that were given, unset ones as None."""
    return {name: unset_to_none(params[name]) for name in params if name in names}


def address(value: Any) -> dict[str, Any] | None:
    """An address with all its fields, null where not given."""
    if not value:
        return None
    return {name: unset_to_none(value.get(name)) for name in ADDRESS_FIELDS}


def filters(params: dict[str, Any], names: frozenset[str]) -> dict[str, Any]:
    """The list filters among ``names`` that were given."""
    return {name: params[name] for name in params if name in names}
