"""What a killed boot left open becomes `lost`, once, with what its last progress record says of it.

Whoever holds a boot's lock may do it; killed in the middle of it, the next one goes on where it stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from serving_adapter.clock import rfc3339
from serving_adapter.spool.folders import BootFolder, DurableMark, Position, WriterLock, durable_mark, sync_folder
from serving_adapter.spool.frames import Damage, Frame, Tail, framed, scan
from serving_adapter.spool.records import BadRecord, Farewell, Record, Replay, payload_of, read


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery found: requests that were lost, bytes of a torn tail, stretches that cannot be read."""

    lost: int
    torn_bytes: int
    damage: list[tuple[int, int, int]]
    """Segment, first byte, byte after the last one."""


def replay(folder: BootFolder, repair: bool = False) -> tuple[Replay, int, list[tuple[int, int, int]]]:
    """All that a boot's segments say, the bytes of torn tails (cut off, if `repair`), and what is damaged.

    Raises SpoolUnreadable.
    """
    state, torn_bytes, damage = Replay(), 0, []
    for number in folder.segments():
        path = folder.segment(number)
        data = path.read_bytes()
        for found in scan(data):
            if isinstance(found, Frame):
                try:
                    state.feed(read(found.payload))
                except BadRecord:
                    damage.append((number, found.begin, found.end))
            elif isinstance(found, Damage):
                damage.append((number, found.begin, found.end))
            else:
                torn_bytes += len(data[found.begin :].rstrip(b"\0"))
                if repair:
                    _cut_off(path, found)
    return state, torn_bytes, damage


def recover(folder: BootFolder, now_ns: Callable[[], int]) -> Recovered | None:
    """End a boot that nobody writes any more; None if somebody does, or it has ended.

    Raises SpoolUnreadable, OSError.
    """
    held = WriterLock.take(folder)
    if held is None:
        return None
    try:
        state, torn_bytes, damage = replay(folder, repair=True)
        if state.farewell is not None:
            _publish_all(folder)
            return None
        lost = state.lost()
        records: list[Record] = [*lost]
        if state.boot is not None:
            last_seq = state.last_seq + len(lost)
            records.append(
                Farewell(at=rfc3339(now_ns()), last_seq=last_seq, started=state.started, ended=state.ended,
                         recovered=True)
            )  # fmt: skip
        _append_segment(folder, [*state.head(), *records])
        return Recovered(len(lost), torn_bytes, damage)
    finally:
        held.release()


def _publish_all(folder: BootFolder) -> None:
    """All of a boot that has ended is durable: a power cut may have left its mark behind."""
    number = max(folder.segments())
    data = folder.segment(number).read_bytes()
    end = Position(number, [found for found in scan(data) if isinstance(found, Tail)][-1].begin)
    mark = DurableMark(folder, writing=True)
    published = mark.read()
    if published is None or published < end:
        fd = os.open(folder.segment(number), os.O_RDWR)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        mark.publish(end)
    mark.close()


def _append_segment(folder: BootFolder, records: list[Record]) -> None:
    number = max(folder.segments(), default=0) + 1
    with durable_mark(folder) as mark:  # a segment that a killed writer had only begun may have been synced before
        published = mark.read() if mark is not None else None
    number = max(number, published.segment + 1 if published else 1)
    data = b"".join(framed(payload_of(record)) for record in records)
    fd = os.open(folder.segment(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        at = memoryview(data)
        while at:
            at = at[os.write(fd, at) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    sync_folder(folder.path)
    mark = DurableMark(folder, writing=True)
    mark.publish(Position(number, len(data)))
    mark.close()


def _cut_off(path: os.PathLike[str], tail: Tail) -> None:
    with open(path, "r+b") as segment:
        if tail.begin < os.fstat(segment.fileno()).st_size:
            segment.truncate(tail.begin)
            os.fsync(segment.fileno())
