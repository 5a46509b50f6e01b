"""Ranges of numbers against plain sets, which know nothing of ranges."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from streams.completeness import number_ranges
from streams.completeness.number_ranges import Ranges

NUMBERS = st.frozensets(st.integers(1, 60), max_size=40)
SMALL_SEGMENT = 8


def spread(ranges: Ranges) -> set[int]:
    """The set that ranges stand for."""
    return {number for a, b in ranges for number in range(a, b + 1)}


def is_canonical(ranges: Ranges) -> bool:
    """Whether the pairs are in order, and neither overlap nor touch."""
    return all(a <= b for a, b in ranges) and all(x[1] + 1 < y[0] for x, y in pairwise(ranges))


@given(numbers=st.lists(st.integers(1, 60)))
def test_numbers_in_any_order_and_twice_are_the_same_set(numbers: list[int]) -> None:
    ranges = number_ranges.of_numbers(numbers)
    assert spread(ranges) == set(numbers)
    assert is_canonical(ranges)
    assert number_ranges.count(ranges) == len(set(numbers))


@given(a=NUMBERS, b=NUMBERS, c=NUMBERS)
def test_union_and_difference_are_those_of_sets(a: frozenset[int], b: frozenset[int], c: frozenset[int]) -> None:
    x, y, z = (number_ranges.of_numbers(numbers) for numbers in (a, b, c))
    union, difference = number_ranges.union(x, y, z), number_ranges.difference(x, y)
    assert (spread(union), spread(difference)) == (a | b | c, a - b)
    assert is_canonical(union)
    assert is_canonical(difference)


@given(numbers=NUMBERS, first=st.integers(1, 70), length=st.integers(0, 70))
def test_what_is_missing_is_what_is_not_there(numbers: frozenset[int], first: int, length: int) -> None:
    asked = set(range(first, first + length))
    ranges = number_ranges.of_numbers(numbers)
    absent = number_ranges.missing(ranges, first, first + length - 1)
    assert spread(absent) == asked - numbers
    assert is_canonical(absent)
    assert spread(number_ranges.within(ranges, first, first + length - 1)) == asked & numbers


@given(arrivals=st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=20))
@example(arrivals=[[2], [1], [9, 8, 7, 6, 5, 4, 3], [17], list(range(10, 17))])
def test_what_is_stored_of_arrivals_in_any_order_is_their_set(arrivals: list[list[int]]) -> None:
    through, stored, seen = 0, dict[int, Ranges](), set[int]()
    for numbers in arrivals:
        filled = number_ranges.fill(through, stored, number_ranges.of_numbers(numbers), SMALL_SEGMENT)
        assert spread(filled.fresh) == set(numbers) - seen
        seen |= set(numbers)
        through = filled.received_through
        stored = {at: ranges for at, ranges in (stored | filled.segments).items() if ranges}
        assert spread(((1, through),) if through else ()) | {n for r in stored.values() for n in spread(r)} == seen
        assert through + 1 not in seen
        assert all(is_canonical(ranges) and ranges[0][0] > through for ranges in stored.values())
        assert all(number_ranges.segment_of(n, SMALL_SEGMENT) == at for at, r in stored.items() for n in spread(r))


@given(sent=st.integers(1, 60))
def test_a_boot_that_lost_nothing_keeps_no_ranges(sent: int) -> None:
    filled = number_ranges.fill(0, {}, number_ranges.of_numbers(range(1, sent + 1)), SMALL_SEGMENT)
    assert (filled.received_through, {at: r for at, r in filled.segments.items() if r}) == (sent, {})
