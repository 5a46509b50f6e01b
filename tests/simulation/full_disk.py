"""A disk that is full: a tablespace on a tiny file system where this user may mount one (root), else a trigger that
raises what PostgreSQL raises then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import psycopg

from streams.database import connect

SIZE_MIB = 2
TABLE = "usage.replica_usage_fills"
SAID = "No space left on device"
"""What the server's log says then, by either way."""


class Disk(Protocol):
    """Where a table lies that each chunk writes to."""

    def fill(self) -> None:
        """Leave no room."""

    def free(self) -> None:
        """Make room again."""


class TinyDisk:
    """A file system of SIZE_MIB, which a file of ours fills."""

    def __init__(self, folder: Path) -> None:
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Write until there is no room."""
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def free(self) -> None:
        """Remove what was written."""
        self._ballast.unlink()


class Refusal:
    """No file system, but its error."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url

    def fill(self) -> None:
        """Refuse each row."""
        with connect(self._url, as_login=True) as connection:
            connection.execute(
                "create or replace function usage.no_space() returns trigger language plpgsql as"
                f" $$ begin raise exception 'could not extend file: {SAID}' using errcode = '53100'; end $$"
            )
            connection.execute(f"create trigger no_space before insert on {TABLE} execute function usage.no_space()")

    def free(self) -> None:
        """Refuse no more."""
        with connect(self._url, as_login=True) as connection:
            connection.execute(f"drop trigger no_space on {TABLE}")


@contextlib.contextmanager
def disk_of(database_url: str, superuser_url: str, owner: str | None) -> Iterator[Disk]:
    """The disk under TABLE; `owner` = the system user that the server runs as, if it is not ours."""
    folder = Path(tempfile.mkdtemp(prefix="tollbook-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m,mode=0700", "none", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True, check=False).returncode == 0
    if not mounted:
        folder.rmdir()
        yield Refusal(database_url)
        return
    os.chmod(folder, 0o755)
    data = folder / "tablespace"
    data.mkdir(mode=0o700)
    if owner:
        shutil.chown(data, owner, owner)
    with psycopg.connect(superuser_url, autocommit=True) as server:
        server.execute(f"create tablespace tiny location '{data}'")
        server.execute(f"alter table {TABLE} set tablespace tiny")
        try:
            yield TinyDisk(folder)
        finally:
            server.execute(f"alter table {TABLE} set tablespace pg_default")
            server.execute("drop tablespace tiny")
            server.execute("checkpoint")  # no recovery may look for it
    subprocess.run(["umount", str(folder)], check=True)
    folder.rmdir()
