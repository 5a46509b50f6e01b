"""Sets of numbers as ranges: what of 1…n has been received, and what is missing (docs/spec/metering.md 6.1).

A `Ranges` holds inclusive (first, last) pairs, in order, disjoint and never adjacent: equal sets are equal values, and
a boot that has lost nothing is one pair, however many events it sent.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Final

Ranges = tuple[tuple[int, int], ...]

SEGMENT: Final = 16_384
"""Numbers whose ranges are stored together. At worst, every other number missing, that is 8,192 ranges to rewrite."""


def of_numbers(numbers: Iterable[int]) -> Ranges:
    """The set of these numbers, which may come in any order and more than once."""
    return _merged((number, number) for number in sorted(numbers))


def union(*several: Ranges) -> Ranges:
    """What is in any of them."""
    present = [ranges for ranges in several if ranges]
    if len(present) <= 1:
        return present[0] if present else ()
    return _merged(sorted(pair for ranges in present for pair in ranges))


def within(ranges: Ranges, first: int, last: int) -> Ranges:
    """What of `ranges` lies in first…last."""
    begin = max(bisect_right(ranges, (first, inf)) - 1, 0)
    end = bisect_right(ranges, (last, inf))
    return tuple((max(a, first), min(b, last)) for a, b in ranges[begin:end] if b >= first)


def missing(received: Ranges, first: int, last: int) -> Ranges:
    """What of first…last is not in `received`."""
    absent = []
    expected = first
    for a, b in within(received, first, last):
        if a > expected:
            absent.append((expected, a - 1))
        expected = b + 1
    if expected <= last:
        absent.append((expected, last))
    return tuple(absent)


def difference(ranges: Ranges, without: Ranges) -> Ranges:
    """What is in `ranges` and not in `without`."""
    if not without:
        return ranges
    return tuple(pair for a, b in ranges for pair in missing(without, a, b))


def count(ranges: Ranges) -> int:
    """How many numbers."""
    return sum(b - a + 1 for a, b in ranges)


def segment_of(number: int, size: int = SEGMENT) -> int:
    """The segment in which a number is stored; numbers begin at 1."""
    return (number - 1) // size


def by_segment(ranges: Ranges, size: int = SEGMENT) -> dict[int, Ranges]:
    """The ranges cut at the segments' borders. Meant for received numbers: what is missing may span any distance."""
    cut: dict[int, list[tuple[int, int]]] = {}
    for a, b in ranges:
        for segment in range(segment_of(a, size), segment_of(b, size) + 1):
            piece = (max(a, segment * size + 1), min(b, (segment + 1) * size))
            cut.setdefault(segment, []).append(piece)
    return {segment: tuple(pieces) for segment, pieces in cut.items()}


@dataclass(frozen=True, slots=True)
class Filled:
    """What newly received numbers change: how far all are here, which are really new, and the segments to store.

    A segment that is `()` is to be removed: all of it lies at or below `received_through`.
    """

    received_through: int
    fresh: Ranges
    segments: Mapping[int, Ranges]


def fill(received_through: int, stored: Mapping[int, Ranges], numbers: Ranges, size: int = SEGMENT) -> Filled:
    """Add `numbers` to what is received: all up to `received_through`, and the `stored` segments beyond it.

    `stored` must hold the segments of `numbers` and all those that may follow on `received_through`; a segment that is
    not in it counts as empty.
    """
    segments = dict(stored)
    fresh: list[Ranges] = []
    for segment, pieces in by_segment(_above(numbers, received_through), size).items():
        before = segments.get(segment, ())
        fresh.append(difference(pieces, before))
        segments[segment] = union(before, pieces)
    through = received_through
    while (found := _from(segments.get(segment_of(through + 1, size), ()), through + 1)) is not None:
        through = found
    changed: dict[int, Ranges] = {}
    for segment, ranges in segments.items():
        left = _above(ranges, through)
        if left != stored.get(segment, ()):
            changed[segment] = left
    return Filled(through, union(*fresh), changed)


def _above(ranges: Ranges, through: int) -> Ranges:
    """What lies above `through`."""
    if not ranges or ranges[0][0] > through:
        return ranges
    return within(ranges, through + 1, ranges[-1][1])


def _from(ranges: Ranges, number: int) -> int | None:
    """The end of the range that holds `number`, if one does."""
    return next((b for a, b in ranges if a <= number <= b), None)


def _merged(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Pairs in order of their first number, joined where they touch or overlap."""
    joined: list[tuple[int, int]] = []
    for a, b in pairs:
        if joined and a <= joined[-1][1] + 1:
            if b > joined[-1][1]:
                joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return tuple(joined)
