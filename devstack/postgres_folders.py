"""Which folder PostgreSQL's data is in: beside the other services' data, or outside it."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

SYSTEM: Path = Path("/var/lib/tollbook")  # for root's data, where the server's user cannot reach the home
MEMORY: Path = Path("/dev/shm")  # for data that is thrown away: a test database is a thousand small files
MEMORY_NEEDED: Final = 4 * 2**30  # bytes that are free: tests' databases and WAL take a quarter


class PostgresFolders:
    """The folders, each of which may hold `data`; of the server's own user, while secrets are the caller's."""

    def __init__(self, home: Path) -> None:
        name = hashlib.sha256(str(home).encode()).hexdigest()[:16]
        self.usual = home / "postgres" / "server"
        self.system = SYSTEM / name
        self.memory = MEMORY / f"tollbook-{name}"

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.usual, self.system, self.memory)

    def fresh_in_memory(self) -> Path | None:
        """An empty folder in memory, or None where there is no room for the data of a test run."""
        if not _memory_has_room():
            return None
        shutil.rmtree(self.memory, ignore_errors=True)  # of an earlier home of this name
        try:
            self.memory.mkdir(mode=0o700)
        except OSError:  # somebody else's
            return None
        return self.memory

    def remove(self) -> None:
        for folder in self.all:
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            SYSTEM.rmdir()  # only where no other home's data is in it


def _memory_has_room() -> bool:
    try:
        within = os.statvfs(MEMORY)
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return False
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)
    return os.path.ismount(MEMORY) and min(within.f_bavail * within.f_frsize, available) >= MEMORY_NEEDED
