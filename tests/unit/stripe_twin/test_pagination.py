"""Pages, in memory and from the store: all pages together are the list, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.rules.pagination import Page, page_of, paginate
from devstack.stripe_twin.session import Session
from devstack.stripe_twin.store import Store

Fetch = Callable[[Page], tuple[list[dict[str, Any]], bool]]


def walk(fetch: Fetch, limit: int, backward: bool = False, cursor: str | None = None) -> list[str]:
    """All ids, page by page, as the SDK's auto_paging_iter asks for them."""
    found: list[str] = []
    while True:
        objects, has_more = fetch(Page(limit, cursor, backward))
        ids = [item["id"] for item in objects]
        found = ids + found if backward else found + ids
        if not has_more:
            return found
        cursor = ids[0] if backward else ids[-1]


@given(st.integers(0, 40), st.integers(1, 12), st.data())
def test_pages_of_a_list_in_memory_cover_it(size: int, limit: int, data: st.DataObject) -> None:
    objects = [{"id": f"il_{i}"} for i in range(size)]
    ids = [item["id"] for item in objects]

    def fetch(page: Page) -> tuple[list[dict[str, Any]], bool]:
        return paginate(objects, page, "line_item")

    assert walk(fetch, limit) == ids
    if size:
        start = data.draw(st.integers(0, size - 1))
        assert walk(fetch, limit, backward=True, cursor=ids[start]) == ids[:start]


@pytest.mark.parametrize(("size", "has_more"), [(0, False), (2, False), (3, False), (4, True)])
@pytest.mark.parametrize("backward", [False, True])
def test_a_last_page_that_is_full_has_no_more(size: int, has_more: bool, backward: bool) -> None:
    assert paginate([{"id": str(i)} for i in range(size)], Page(3, None, backward), "line_item")[1] is has_more


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path)
    yield opened
    opened.close()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(times=st.lists(st.integers(0, 3), max_size=25), limit=st.integers(1, 7), data=st.data())
def test_pages_from_the_store_are_newest_first(store: Store, times: list[int], limit: int, data: st.DataObject) -> None:
    """Several objects in one second, and a clock that goes back, keep one stable order."""
    with store.transaction() as connection:
        connection.execute("DELETE FROM objects")
        session = Session(connection, "acct_1")
        for number, created in enumerate(times):
            session.insert({"id": f"cus_{number}", "object": "customer"}, created)
        order = sorted(range(len(times)), key=lambda number: (times[number], number), reverse=True)
        ids = [f"cus_{number}" for number in order]

        def fetch(page: Page) -> tuple[list[dict[str, Any]], bool]:
            return session.page("customer", {}, page)

        assert walk(fetch, limit) == ids
        if ids:
            start = data.draw(st.integers(0, len(ids) - 1))
            assert walk(fetch, limit, backward=True, cursor=ids[start]) == ids[:start]


@pytest.mark.parametrize("limit", [0, 101, -1])
def test_the_limit_is_1_to_100(limit: int) -> None:
    with pytest.raises(StripeError, match="Invalid integer"):
        page_of({"limit": limit})


def test_the_cursors_exclude_each_other() -> None:
    with pytest.raises(StripeError, match="both"):
        page_of({"starting_after": "a", "ending_before": "b"})


def test_an_unknown_cursor_is_named() -> None:
    with pytest.raises(StripeError) as caught:
        paginate([], Page(10, "il_x", True), "line_item")
    assert (caught.value.code, caught.value.param) == ("resource_missing", "ending_before")
