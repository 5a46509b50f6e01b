"""Finding the PostgreSQL programs, and whether they have TimescaleDB beside them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OLDEST = 14  # TimescaleDB 2.19 supports PostgreSQL 14 to 17


@dataclass(frozen=True, slots=True)
class PostgresPrograms:
    """One installed PostgreSQL: its major version, its programs' folder, and whether TimescaleDB can be loaded."""

    major: int
    programs: Path
    has_timescaledb: bool


def find_postgres() -> list[PostgresPrograms]:
    """Every PostgreSQL server that is installed and recent enough; those with TimescaleDB first, then the newest."""
    found = {postgres.programs: postgres for postgres in _candidates() if postgres.major >= OLDEST}
    return sorted(found.values(), key=lambda postgres: (postgres.has_timescaledb, postgres.major), reverse=True)


def _candidates() -> Iterator[PostgresPrograms]:
    for programs in Path("/usr/lib/postgresql").glob("*/bin"):  # Debian and its relatives; not on PATH
        major = programs.parent.name
        if major.isdigit() and (programs / "postgres").exists():
            control = Path(f"/usr/share/postgresql/{major}/extension/timescaledb.control")
            library = programs.parent / "lib" / "timescaledb.so"
            yield PostgresPrograms(int(major), programs, control.exists() and library.exists())
    if pg_config := shutil.which("pg_config"):
        yield from _described_by(pg_config)


def _described_by(pg_config: str) -> Iterator[PostgresPrograms]:
    """What a `pg_config` on PATH says: PostgreSQL of other systems, or built by hand."""
    try:
        asked = subprocess.run(
            [pg_config, "--version", "--bindir", "--sharedir", "--pkglibdir"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
        version, programs, share, library = asked.stdout.splitlines()
    except (OSError, subprocess.SubprocessError, ValueError):
        return
    major = re.search(r"PostgreSQL (\d+)", version)
    if major and (Path(programs) / "postgres").exists():
        control = Path(share) / "extension" / "timescaledb.control"
        loadable = any(Path(library).glob("timescaledb.*"))
        yield PostgresPrograms(int(major[1]), Path(programs), control.exists() and loadable)
