"""Reading a boot's spool up to its durable mark: what the shipper sends, and where it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from serving_adapter.spool.folders import BEGIN, BootFolder, Position, durable_mark
from serving_adapter.spool.frames import Damage, Frame, scan


@dataclass(frozen=True, slots=True)
class Spooled:
    """A payload, and the position behind it."""

    payload: bytes
    after: Position


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes that are no frames, and the position behind them."""

    begin: Position
    after: Position


def durable_position(folder: BootFolder) -> Position:
    """How far a boot may be read."""
    with durable_mark(folder) as mark:
        return (mark.read() if mark is not None else None) or BEGIN


def read_from(folder: BootFolder, begin: Position) -> Iterator[Spooled | Unreadable]:
    """What is durable after a position, in order, over all segments that are here.

    A segment before the marked one is read to its end: what a failed sync left there is written again in the next one,
    and is the same when it is read twice.
    """
    until = durable_position(folder)
    if begin >= until:
        return
    for number in folder.segments():
        if number < begin.segment or number > until.segment:
            continue
        first = begin.offset if number == begin.segment else 0
        with folder.segment(number).open("rb") as segment:
            segment.seek(first)
            data = segment.read(until.offset - first if number == until.segment else -1)
        for found in scan(data):
            if isinstance(found, Frame):
                yield Spooled(found.payload, Position(number, first + found.end))
            elif isinstance(found, Damage):
                yield Unreadable(Position(number, first + found.begin), Position(number, first + found.end))
