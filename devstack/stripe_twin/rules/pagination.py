"""Cursor pagination.

Source: docs.stripe.com/api/pagination: ``limit`` 1 to 100, default 10; ``starting_after`` and
``ending_before`` are object ids and exclude each other; lists are newest first; ``has_more`` tells whether
there is more in the direction asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devstack.stripe_twin.errors import invalid, resource_missing

DEFAULT_LIMIT = 10
MAX_LIMIT = 100


@dataclass(frozen=True)
class Page:
    """What the caller asked for. ``backward``: the page before the cursor instead of after it."""

    limit: int = DEFAULT_LIMIT
    cursor: str | None = None
    backward: bool = False

    @property
    def cursor_param(self) -> str:
        return "ending_before" if self.backward else "starting_after"


def page_of(params: dict[str, Any]) -> Page:
    limit = params.get("limit", DEFAULT_LIMIT)
    if not 1 <= limit <= MAX_LIMIT:
        bound = f"greater than or equal to 1 and less than or equal to {MAX_LIMIT}"
        raise invalid(f"Invalid integer: {limit}; limit must be {bound}.", "limit", "parameter_invalid_integer")
    after, before = params.get("starting_after"), params.get("ending_before")
    if after and before:
        raise invalid("You cannot pass both starting_after and ending_before.", "ending_before")
    return Page(limit, after or before or None, backward=bool(before))


def cut(fetched: list[Any], page: Page) -> tuple[list[Any], bool]:
    """The page and ``has_more``, from up to ``limit + 1`` rows fetched outward from the cursor."""
    has_more = len(fetched) > page.limit
    rows = fetched[: page.limit]
    return (rows[::-1] if page.backward else rows), has_more


def paginate(objects: Sequence[dict[str, Any]], page: Page, kind: str) -> tuple[list[dict[str, Any]], bool]:
    """One page of a list that is in memory whole, such as an invoice's lines (at most 250)."""
    start, end = 0, len(objects)
    if page.cursor is not None:
        position = next((i for i, item in enumerate(objects) if item["id"] == page.cursor), None)
        if position is None:
            raise resource_missing(kind, page.cursor, page.cursor_param)
        start, end = (0, position) if page.backward else (position + 1, len(objects))
    window = list(objects[start:end])
    return cut(window[::-1] if page.backward else window, page)


def list_object(url: str, data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": has_more, "url": url}
