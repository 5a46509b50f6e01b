"""Sets of numbers: what of 1…n has been received, and what is missing (docs/spec/metering.md 6.1).

Received numbers are kept as bits, a segment of SEGMENT numbers at a time: bit 0 of segment 0 is number 1. Partitions
that are applied at different speeds take every eighth number out of a boot for a while, so that ranges would be as many
as numbers; bits cost the same however broken the order is. What is missing, and so of interest, is told as `Ranges`:
inclusive (first, last) pairs, in order, disjoint and never adjacent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

Ranges = tuple[tuple[int, int], ...]
Segments = Mapping[int, int]
"""Bits by segment. One that is not there has none."""

SEGMENT: Final = 8192
"""Numbers whose bits are stored together: a kibibyte to rewrite."""
_ONES: Final = re.compile("1+")


def of_numbers(numbers: Iterable[int], size: int = SEGMENT) -> dict[int, int]:
    """The set of these numbers, which may come in any order and more than once."""
    found: dict[int, bytearray] = {}
    for number in numbers:
        segment, bit = divmod(number - 1, size)
        held = found.get(segment)
        if held is None:
            held = found[segment] = bytearray(-(-size // 8))
        held[bit >> 3] |= 1 << (bit & 7)
    return {segment: int.from_bytes(held, "little") for segment, held in found.items()}


def segment_of(number: int, size: int = SEGMENT) -> int:
    """The segment in which a number is stored; numbers begin at 1."""
    return (number - 1) // size


def holds(segments: Segments, number: int, size: int = SEGMENT) -> bool:
    """Whether a number is in a set."""
    segment, bit = divmod(number - 1, size)
    return bool(segments.get(segment, 0) >> bit & 1)


def highest(segments: Segments, size: int = SEGMENT) -> int:
    """The highest number of a set that has one."""
    last = max(segments)
    return last * size + segments[last].bit_length()


def within(segments: Segments, first: int, last: int, size: int = SEGMENT) -> dict[int, int]:
    """What of a set lies in first…last."""
    found = {}
    for segment, bits in segments.items():
        low, high = max(first - 1 - segment * size, 0), min(last - segment * size, size)
        kept = bits & _ones(high) & ~_ones(low) if high > low else 0
        if kept:
            found[segment] = kept
    return found


def count(segments: Segments) -> int:
    """How many numbers."""
    return sum(bits.bit_count() for bits in segments.values())


def ranges(segments: Segments, size: int = SEGMENT) -> Ranges:
    """The set as ranges."""
    joined: list[tuple[int, int]] = []
    for segment in sorted(segments):
        before = segment * size
        for run in _ONES.finditer(f"{segments[segment]:b}"[::-1]):
            first, last = before + run.start() + 1, before + run.end()
            if joined and joined[-1][1] + 1 == first:
                first = joined.pop()[0]
            joined.append((first, last))
    return tuple(joined)


def missing(segments: Segments, first: int, last: int, size: int = SEGMENT) -> Ranges:
    """What of first…last is not in a set, however far that is."""
    absent = []
    expected = first
    for a, b in ranges(within(segments, first, last, size), size):
        if a > expected:
            absent.append((expected, a - 1))
        expected = b + 1
    if expected <= last:
        absent.append((expected, last))
    return tuple(absent)


@dataclass(frozen=True, slots=True)
class Filled:
    """What newly received numbers change: how far all are here, which are really new, and the segments to store.

    A segment without a bit is to be removed: all of it lies at or below `received_through`.
    """

    received_through: int
    fresh: Segments
    segments: Segments


def fill(received_through: int, stored: Segments, arrived: Segments, size: int = SEGMENT) -> Filled:
    """Add what arrived to what is received: all up to `received_through`, and the `stored` segments beyond it.

    `stored` must hold the segments of what arrived and all those that may follow on `received_through`.
    """
    segments, fresh = dict(stored), {}
    for segment, bits in arrived.items():
        before = segments.get(segment, 0) | _ones(min(received_through - segment * size, size))
        if new := bits & ~before:
            fresh[segment] = new
            segments[segment] = segments.get(segment, 0) | new
    through = received_through
    while True:
        segment = segment_of(through + 1, size)
        in_a_row = _trailing_ones(segments.get(segment, 0) >> (through - segment * size))
        through += in_a_row
        if not in_a_row or through < (segment + 1) * size:
            break
    changed = {}
    for segment, bits in segments.items():
        left = bits & ~_ones(min(through - segment * size, size))
        if left != stored.get(segment, 0):
            changed[segment] = left
    return Filled(through, fresh, changed)


def to_bytes(bits: int) -> bytes:
    """A segment as it is stored: its lowest numbers first, without zeros at its end."""
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def from_bytes(stored: bytes) -> int:
    """A stored segment."""
    return int.from_bytes(stored, "little")


def _ones(length: int) -> int:
    """So many ones; none for a negative length."""
    return (1 << length) - 1 if length > 0 else 0


def _trailing_ones(bits: int) -> int:
    return (~bits & (bits + 1)).bit_length() - 1
