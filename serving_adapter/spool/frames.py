"""Frames of a segment: length, CRC32C, payload. Bytes in, payloads out; nothing is read or written here.

A segment is allocated ahead, so zeros follow its last frame: a length of 0 is the end. What cannot be read is told from
what was never finished by what follows it: a whole frame after it means damage, none means a torn tail.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import google_crc32c

_HEADER: Final = struct.Struct("<II")
HEADER_BYTES: Final = _HEADER.size
MOST_PAYLOAD_BYTES: Final = 1 << 20
"""An event has at most a million bytes; a longer length is damage."""


def framed(payload: bytes) -> bytes:
    """A payload as it is stored. Raises ValueError for one that is empty or too long."""
    if not 0 < len(payload) <= MOST_PAYLOAD_BYTES:
        raise ValueError(f"{len(payload)} bytes, expected 1 to {MOST_PAYLOAD_BYTES}")
    return _HEADER.pack(len(payload), google_crc32c.value(payload)) + payload


@dataclass(frozen=True, slots=True)
class Frame:
    """A whole frame: where it begins, where the next one does, what it holds."""

    begin: int
    end: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no frame, with whole frames behind them."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Tail:
    """Where the frames end. `torn`: what follows is a frame that was not finished, not mere zeros."""

    begin: int
    torn: bool


def scan(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[Frame | Damage | Tail]:
    """Everything in `data[begin:end]`, in order; the last item is the tail."""
    end = len(data) if end is None else min(end, len(data))
    at = begin
    while True:
        found = _frame_at(data, at, end)
        if found is not None:
            yield found
            at = found.end
            continue
        if not any(data[at : min(at + HEADER_BYTES, end)]) and not data[at:end].strip(b"\0"):
            yield Tail(at, torn=False)
            return
        following = _next_frame(data, at + 1, end)
        if following is None:
            yield Tail(at, torn=True)
            return
        yield Damage(at, following)
        at = following


def _frame_at(data: bytes, at: int, end: int) -> Frame | None:
    if at + HEADER_BYTES > end:
        return None
    length, checksum = _HEADER.unpack_from(data, at)
    first = at + HEADER_BYTES
    if not 0 < length <= MOST_PAYLOAD_BYTES or first + length > end:
        return None
    payload = data[first : first + length]
    return Frame(at, first + length, payload) if google_crc32c.value(payload) == checksum else None


def _next_frame(data: bytes, at: int, end: int) -> int | None:
    """Where the next whole frame begins; a chance hit needs 32 equal bits."""
    while at + HEADER_BYTES < end:
        if _frame_at(data, at, end) is not None:
            return at
        at += 1
    return None
