"""How the files of an evidence pack are written: canonical JSON lines, and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from billing.ledger.journal_chain import canonical


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
