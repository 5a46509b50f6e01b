"""Decisions that the service was not told yet, as lines of a file: they outlive the process that made them.

Written at once and not synced: a process that is killed loses none, a machine that loses its power may lose the last.
Whoever starts next in the same folder takes up what processes that are gone have left.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any, Final

import msgspec

MOST_BYTES: Final = 32 * 1024 * 1024
"""What is more is kept in memory alone."""
_SUFFIX: Final = ".decisions"
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


class KeptDecisions:
    """The file of one process, under a lock while it lives."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._path = folder / f"{os.getpid()}-{os.urandom(4).hex()}{_SUFFIX}"
        self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_APPEND, 0o640)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._size = 0

    def take_up(self) -> list[dict[str, Any]]:
        """What others have left, which is ours from now on. A line that is broken is passed over. Raises OSError."""
        found: list[dict[str, Any]] = []
        for path in self._folder.glob(f"*{_SUFFIX}"):
            if path != self._path:
                found += self._taken_from(path)
        return found

    def add(self, entry: dict[str, Any]) -> bool:
        """Keep a decision; False if it could not be."""
        line = _encode(entry) + b"\n"
        if self._size + len(line) > MOST_BYTES:
            return False
        try:
            if os.write(self._file, line) == len(line):
                self._size += len(line)
                return True
            os.ftruncate(self._file, self._size)  # the disk is full: no part of a line stays before the next one
        except OSError:
            pass
        return False

    def clear(self) -> bool:
        """The service has all of them. False if the disk keeps them: they are told again, which changes nothing."""
        if self._size:
            try:
                os.ftruncate(self._file, 0)
            except OSError:
                return False
            self._size = 0
        return True

    def close(self) -> None:
        """The end: an empty file goes, one with decisions stays for the next process."""
        if not self._size:
            self._path.unlink(missing_ok=True)
        os.close(self._file)

    def _taken_from(self, path: Path) -> list[dict[str, Any]]:
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return []  # its process lives
            found = []
            for line in file.read().split(b"\n")[:-1]:
                try:
                    entry: dict[str, Any] = _decode(line)
                except msgspec.DecodeError:
                    continue
                self.add(entry)
                found.append(entry)
            path.unlink()
            return found
