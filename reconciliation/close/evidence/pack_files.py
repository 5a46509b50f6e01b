"""How the files of an evidence pack are written: canonical JSON lines, CSV, and all of them into a folder."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from billing.ledger.journal_chain import canonical
from reconciliation.errors import CloseRefused


def lines(values: Iterable[Mapping[str, Any]]) -> bytes:
    """Canonical JSON, an object a line."""
    return b"".join(canonical(dict(value)) + b"\n" for value in values)


def table(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """CSV with these columns of the rows; what is None is an empty cell."""
    made = io.StringIO(newline="")
    writer = csv.DictWriter(made, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return made.getvalue().encode()


def put(folder: Path, files: Mapping[str, bytes], *, last: str) -> None:
    """Write files into a folder that is empty or has an earlier pack, of which nothing else stays.

    `last` is taken away first and written when all others are there: without it a pack is refused, so that one that was
    cut off is none, and the next run makes it whole. Raises CloseRefused for a folder that has anything else.
    """
    own = {Path(name).parts[0] for name in files}
    there = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    if others := sorted(str(path) for path in there if path.parts[0] not in own):
        raise CloseRefused(f"{folder} holds {others[0]}, which is of no pack: name a new folder")
    (folder / last).unlink(missing_ok=True)
    for path in there - {Path(name) for name in files}:
        (folder / path).unlink()
    for name in sorted(files, key=lambda name: (name == last, name)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(files[name])
