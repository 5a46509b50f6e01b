"""How results are shown: a table for people, `--json` and `--csv` for machines."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from billing.periods import rfc3339

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Comma-separated values with a header.")]

PROBLEMS_SHOWN: Final = 20
FORMULA_BEGINS: Final = ("=", "+", "-", "@", "\t", "\r")
WIDTH_OF_A_FILE: Final = 140
"""Rich takes 80 columns where there is no terminal; a file or a pipe has room for more."""

# C0 and C1 controls but for the line feed and tab; marks that turn the direction of writing.
_CONTROLS: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

# No markup: what is printed holds names that tenants have chosen.
out = Console(
    highlight=False, markup=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else WIDTH_OF_A_FILE
)
err = Console(stderr=True, highlight=False, markup=False)


def plain(value: Any) -> Any:
    """A value as JSON holds it: amounts as decimal strings, times as RFC 3339 UTC."""
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def document(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(plain(value), ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def listing(
    rows: Iterable[Mapping[str, Any]],
    columns: Sequence[str],
    *,
    as_json: bool = False,
    as_csv: bool = False,
    title: str = "",
    empty: str = "nothing to show",
) -> None:
    """Print rows as asked for. `columns` are keys of the rows, in order; numbers are set flush right."""
    found = [{column: row[column] for column in columns} for row in rows]
    if as_json:
        document(found)
    elif as_csv:
        write = csv_rows(columns)
        for row in found:
            write(row)
    elif not found:
        out.print(empty)
    else:
        out.print(table(found, columns, title))


def csv_rows(columns: Sequence[str]) -> Callable[[Mapping[str, Any]], None]:
    """Print the header of CSV at once; what is returned prints a row."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    return lambda row: writer.writerow([cell(row[column]) for column in columns])


def problems(found: Sequence[str]) -> None:
    """Tell on standard error what waits for a person: each in a line, the first PROBLEMS_SHOWN of them."""
    for text in found[:PROBLEMS_SHOWN]:
        err.print(f"tollbook: {visible(text)}", soft_wrap=True)
    if len(found) > PROBLEMS_SHOWN:
        err.print(f"tollbook: … and {len(found) - PROBLEMS_SHOWN} more")


def end_with(found: Sequence[str]) -> None:
    """Tell what waits for a person, and end with exit code 1 if anything does."""
    problems(found)
    if found:
        raise typer.Exit(1)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str = "") -> Table:
    """A table for people."""
    made = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in columns:
        number = all(isinstance(row[column], (int, Decimal)) and not isinstance(row[column], bool) for row in rows)
        short = number or all(isinstance(row[column], datetime | None) for row in rows)
        made.add_column(column.replace("_", " "), justify="right" if number else "left", overflow="fold", no_wrap=short)
    for row in rows:
        made.add_row(*(Text(visible(_text(row[column]))) for column in columns))
    return made


def visible(text: str) -> str:
    """Text that others have written, safe on a terminal: control and direction characters are shown, not obeyed."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def cell(value: Any) -> Any:
    """A cell of CSV: structures as JSON; a text that a spreadsheet would take for a formula behind an apostrophe."""
    numeric = isinstance(value, (int, Decimal))
    value = plain(value)
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and not numeric and value.startswith(FORMULA_BEGINS):
        return f"'{value}"
    return "" if value is None else value


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return str(plain(value))
