"""Sets of numbers as bits against plain sets, which know nothing of bits."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from streams.completeness import number_sets
from streams.completeness.number_sets import Ranges, Segments

NUMBERS = st.frozensets(st.integers(1, 60), max_size=40)
SIZE = 8


def members(segments: Segments) -> set[int]:
    """The set that bits stand for."""
    return {at * SIZE + bit + 1 for at, bits in segments.items() for bit in range(bits.bit_length()) if bits >> bit & 1}


def spread(ranges: Ranges) -> set[int]:
    """The set that ranges stand for."""
    return {number for a, b in ranges for number in range(a, b + 1)}


def is_canonical(ranges: Ranges) -> bool:
    """Whether the pairs are in order, and neither overlap nor touch."""
    return all(a <= b for a, b in ranges) and all(x[1] + 1 < y[0] for x, y in pairwise(ranges))


@given(numbers=st.lists(st.integers(1, 60), min_size=1))
def test_numbers_in_any_order_and_twice_are_the_same_set(numbers: list[int]) -> None:
    segments = number_sets.of_numbers(numbers, SIZE)
    assert members(segments) == set(numbers)
    assert all(0 < bits < 1 << SIZE for bits in segments.values())
    assert number_sets.count(segments) == len(set(numbers))
    assert number_sets.highest(segments, SIZE) == max(numbers)
    assert {number for number in range(1, 70) if number_sets.holds(segments, number, SIZE)} == set(numbers)
    ranges = number_sets.ranges(segments, SIZE)
    assert spread(ranges) == set(numbers)
    assert is_canonical(ranges)


@given(numbers=NUMBERS, first=st.integers(1, 70), length=st.integers(0, 70))
def test_what_is_missing_is_what_is_not_there(numbers: frozenset[int], first: int, length: int) -> None:
    asked = set(range(first, first + length))
    segments = number_sets.of_numbers(numbers, SIZE)
    absent = number_sets.missing(segments, first, first + length - 1, SIZE)
    assert spread(absent) == asked - numbers
    assert is_canonical(absent)
    assert members(number_sets.within(segments, first, first + length - 1, SIZE)) == asked & numbers


@given(numbers=NUMBERS)
def test_a_stored_segment_is_read_back(numbers: frozenset[int]) -> None:
    segments = number_sets.of_numbers(numbers)
    stored = {at: number_sets.to_bytes(bits) for at, bits in segments.items()}
    assert all(0 < len(held) <= number_sets.SEGMENT // 8 and held[-1] for held in stored.values())
    assert {at: number_sets.from_bytes(held) for at, held in stored.items()} == segments


@given(arrivals=st.lists(st.lists(st.integers(1, 60), max_size=8), max_size=20))
@example(arrivals=[[2], [1], [9, 8, 7, 6, 5, 4, 3], [17], list(range(10, 17))])
def test_what_is_stored_of_arrivals_in_any_order_is_their_set(arrivals: list[list[int]]) -> None:
    through, stored, seen = 0, dict[int, int](), set[int]()
    for numbers in arrivals:
        filled = number_sets.fill(through, stored, number_sets.of_numbers(numbers, SIZE), SIZE)
        assert members(filled.fresh) == set(numbers) - seen
        seen |= set(numbers)
        through = filled.received_through
        stored = {at: bits for at, bits in (stored | dict(filled.segments)).items() if bits}
        assert set(range(1, through + 1)) | members(stored) == seen
        assert through + 1 not in seen
        assert all(number > through for number in members(stored))


@given(sent=st.integers(1, 60))
def test_a_boot_that_lost_nothing_keeps_no_bits(sent: int) -> None:
    filled = number_sets.fill(0, {}, number_sets.of_numbers(range(1, sent + 1), SIZE), SIZE)
    assert (filled.received_through, {at: bits for at, bits in filled.segments.items() if bits}) == (sent, {})


def test_what_is_missing_may_span_any_distance() -> None:
    assert number_sets.missing({}, 5, 10**15) == ((5, 10**15),)


def test_a_number_far_below_what_is_received_costs_a_segment_and_no_more() -> None:
    filled = number_sets.fill(10**15, {}, {0: 1})
    assert (filled.received_through, filled.fresh, filled.segments) == (10**15, {}, {})
