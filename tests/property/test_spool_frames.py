"""Frames: whatever happens to a segment's bytes, no whole frame is lost that was not touched, and none is made up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.spool.frames import Damage, Frame, Tail, framed, scan

payloads = st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=8)


def whole(data: bytes) -> list[bytes]:
    return [found.payload for found in scan(data) if isinstance(found, Frame)]


def starts(parts: list[bytes]) -> list[int]:
    at, found = 0, []
    for part in parts:
        found.append(at)
        at += len(framed(part))
    return [*found, at]


@given(payloads, st.integers(0, 64))
def test_what_was_framed_is_read_and_the_zeros_behind_it_are_its_end(parts: list[bytes], zeros: int) -> None:
    data = b"".join(map(framed, parts))
    found = list(scan(data + bytes(zeros)))
    assert [frame.payload for frame in found[:-1] if isinstance(frame, Frame)] == parts
    assert found[-1] == Tail(len(data), torn=False)


@given(payloads, st.data())
def test_cut_at_any_byte_the_frames_before_it_stay_and_the_tail_is_told(
    parts: list[bytes], data: st.DataObject
) -> None:
    stored = b"".join(map(framed, parts))
    at = data.draw(st.integers(0, len(stored)))
    ends = starts(parts)
    found = list(scan(stored[:at]))
    left = [part for part, end in zip(parts, ends[1:], strict=True) if end <= at]
    assert [frame.payload for frame in found if isinstance(frame, Frame)] == left
    tail = found[-1]
    assert isinstance(tail, Tail)
    assert tail.begin == ends[len(left)]
    assert tail.torn == bool(stored[tail.begin : at].strip(b"\0"))


@given(payloads, st.data())
def test_a_changed_byte_costs_its_own_frame_and_no_other(parts: list[bytes], data: st.DataObject) -> None:
    stored = bytearray(b"".join(map(framed, parts)))
    at = data.draw(st.integers(0, len(stored) - 1))
    stored[at] ^= data.draw(st.integers(1, 255))
    ends = starts(parts)
    hit = next(i for i, end in enumerate(ends[1:]) if at < end)
    assert whole(bytes(stored)) == parts[:hit] + parts[hit + 1 :]
    if hit < len(parts) - 1:
        assert Damage(ends[hit], ends[hit + 1]) in list(scan(bytes(stored)))
