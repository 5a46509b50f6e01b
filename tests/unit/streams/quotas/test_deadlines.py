"""When requests are looked at again: once each, never early, some at a time, also when the clock steps."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from streams.quotas.deadlines import AT_A_TIME, Deadlines

SECOND = 1_000_000
START = 1_800_000_000 * SECOND


def held(*request_ids: str) -> Any:
    """A tenant's books with new requests."""
    return _Books(book=SimpleNamespace(new_requests=list(request_ids)))


class _Books(SimpleNamespace):
    __hash__ = object.__hash__


def names(deadlines: Deadlines, now: int) -> list[str]:
    """What is due."""
    return [request_id for _, request_id in deadlines.due(now)]


def test_requests_are_due_once_and_some_time_after_they_came_not_all_of_a_second_together() -> None:
    deadlines = Deadlines(30 * SECOND)
    deadlines.start(START)
    for turn in range(50):  # a second of them, one each 20 ms
        assert names(deadlines, START + turn * 20_000) == []
        deadlines.watch(held(f"r-{turn}"))
    came = [(turn, name) for turn in range(1490, 1570) for name in names(deadlines, START + turn * 20_000)]
    assert [name for _, name in came] == [f"r-{turn}" for turn in range(50)]
    assert all(0 <= turn - int(name[2:]) - 1500 <= 2 for turn, name in came)


def test_many_that_are_due_together_come_in_turns() -> None:
    deadlines = Deadlines(0)
    deadlines.start(START)
    deadlines.watch(held(*(f"r-{number}" for number in range(2 * AT_A_TIME + 1))))
    turns = [names(deadlines, START + SECOND) for _ in range(4)]
    assert [len(turn) for turn in turns] == [AT_A_TIME, AT_A_TIME, 1, 0]
    assert len({name for turn in turns for name in turn}) == 2 * AT_A_TIME + 1


def test_a_clock_that_steps_by_a_year_misses_nothing_and_costs_no_year_of_slots() -> None:
    deadlines = Deadlines(0)
    deadlines.start(START)
    books = held("soon")
    deadlines.watch(books)
    deadlines.again(books, "later", START + 100 * SECOND)
    assert names(deadlines, START + 50 * SECOND) == ["soon"]
    assert names(deadlines, START + 365 * 86_400 * SECOND) == ["later"]
    deadlines.again(books, "late", START)
    assert names(deadlines, START + 365 * 86_400 * SECOND + 60_000) == ["late"]


def test_a_turn_that_comes_late_puts_nothing_off_until_what_is_due_in_a_day() -> None:
    deadlines = Deadlines(SECOND)
    deadlines.start(START)
    deadlines.again(held(), "tomorrow", START + 86_400 * SECOND)
    assert names(deadlines, START + 5 * SECOND) == []
    deadlines.watch(held("new"))
    deadlines.again(held(), "soon", START + 6 * SECOND)
    assert names(deadlines, START + 7 * SECOND) == ["soon", "new"]
