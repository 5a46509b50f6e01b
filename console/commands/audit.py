"""`tollbook audit`: who changed what."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from console import session
from console.output import AsCsv, AsJson, listing
from streams import audit

app = typer.Typer(help="Who changed what, and when.", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Who changed what, and when."""


@app.command("list")
def list_entries(
    subject: Annotated[str | None, typer.Option(help="Only what concerns this.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """The latest administrative acts, newest first."""
    with session.connection() as connection:
        rows = [asdict(entry) for entry in audit.entries(connection, subject=subject, limit=limit)]
    columns = ("audit_no", "at", "actor", "action", "subject", "detail")
    listing(rows, columns, as_json=as_json, as_csv=as_csv)
