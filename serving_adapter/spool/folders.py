"""The spool's folders and files: `<root>/<replica>/<boot>/00000001.seg`, one boot for each process of an engine.

Beside the segments lie `durable` (how far they are synced, mapped into memory), `lock` (held by the process that writes
the boot, as long as it lives) and `shipped.json` (how far Kafka has it).
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final, NamedTuple
from urllib.parse import quote, unquote

SEGMENT_NAME: Final = re.compile(r"^(\d{8})\.seg$")
_MARK: Final = struct.Struct("<QQ")
_OFFSET_BITS: Final = 40
_ALL_ONES: Final = (1 << 64) - 1


class Position(NamedTuple):
    """A place in a boot's segments: the segment's number, and a byte in it."""

    segment: int
    offset: int


BEGIN: Final = Position(1, 0)


class BootFolder:
    """One boot's files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def replica_id(self) -> str:
        """Whose boot it is."""
        return unquote(self.path.parent.name)

    @property
    def boot_id(self) -> str:
        """Which boot it is."""
        return unquote(self.path.name)

    def segment(self, number: int) -> Path:
        """A segment's file."""
        return self.path / f"{number:08d}.seg"

    def segments(self) -> list[int]:
        """Numbers of the segments that are here, ascending; the earliest may be gone to the archive."""
        names = (SEGMENT_NAME.match(name) for name in os.listdir(self.path))
        return sorted(int(found[1]) for found in names if found)


def boot_folder(root: Path, replica_id: str, boot_id: str) -> BootFolder:
    """Where a boot's spool is, whether it exists or not. Ids may hold any character."""
    return BootFolder(root / _as_name(replica_id) / _as_name(boot_id))


def boots(root: Path) -> list[BootFolder]:
    """Every boot below a root, by replica, in the order of their ids (which is that of time)."""
    found = (lock.parent for lock in root.glob("*/*/lock"))
    return [BootFolder(path) for path in sorted(found) if not path.name.startswith(".")]


def used_bytes(root: Path) -> int:
    """What the segments below a root take on disk, blocks that were only allocated included."""
    total = 0
    for path in root.glob("*/*/*.seg"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def sync_folder(path: Path) -> None:
    """Make names in a folder durable."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class WriterLock:
    """Held by the process that writes a boot; the system lets go of it when that process is gone.

    A record lock: a child process does not inherit it, as it would inherit `flock`'s.
    """

    _held: ClassVar[set[Path]] = set()
    """By this process, which the system would let in a second time."""

    def __init__(self, path: Path, fd: int) -> None:
        self._path = path
        self._fd = fd

    @staticmethod
    def take(folder: BootFolder) -> WriterLock | None:
        """The lock, or None while somebody has it."""
        path = folder.path / "lock"
        if path in WriterLock._held:
            return None
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        WriterLock._held.add(path)
        return WriterLock(path, fd)

    def moved_to(self, folder: BootFolder) -> None:
        """The folder has another name now."""
        WriterLock._held.discard(self._path)
        self._path = folder.path / "lock"
        WriterLock._held.add(self._path)

    def release(self) -> None:
        """Let go."""
        WriterLock._held.discard(self._path)
        os.close(self._fd)


class DurableMark:
    """How far a boot is synced, for readers in other processes. It may lie behind the truth after a power cut."""

    def __init__(self, folder: BootFolder, *, writing: bool = False) -> None:
        """Raises FileNotFoundError where there is none to read."""
        self._writing = writing
        fd = os.open(folder.path / "durable", (os.O_RDWR | os.O_CREAT) if writing else os.O_RDONLY, 0o600)
        try:
            if writing and os.fstat(fd).st_size < _MARK.size:
                os.pwrite(fd, bytes(_MARK.size), 0)  # not a hole: a full disk would end the process at the first mark
            access = mmap.ACCESS_WRITE if writing else mmap.ACCESS_READ
            self._map = mmap.mmap(fd, _MARK.size, access=access)
        finally:
            os.close(fd)

    def publish(self, position: Position) -> None:
        """Everything before this position is on disk."""
        value = position.segment << _OFFSET_BITS | position.offset
        _MARK.pack_into(self._map, 0, value, value ^ _ALL_ONES)

    def read(self) -> Position | None:
        """The position; None before the first one."""
        while True:
            value, inverse = _MARK.unpack_from(self._map, 0)
            if value ^ inverse == _ALL_ONES:
                return Position(value >> _OFFSET_BITS, value & (1 << _OFFSET_BITS) - 1)
            if not value and not inverse:
                return None

    def close(self) -> None:
        """What was published is durable, too; unmap."""
        if self._writing:
            self._map.flush()
        self._map.close()


@contextlib.contextmanager
def durable_mark(folder: BootFolder) -> Iterator[DurableMark | None]:
    """A boot's mark to read, where there is one."""
    try:
        mark = DurableMark(folder)
    except (FileNotFoundError, ValueError):
        yield None
        return
    try:
        yield mark
    finally:
        mark.close()


def _as_name(text: str) -> str:
    """An id as a file's name: no slash, no leading dot."""
    name = quote(text, safe="")
    return "%2E" + name[1:] if name.startswith(".") else name
