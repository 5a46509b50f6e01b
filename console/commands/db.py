"""`tollbook db`: the database's schema."""

from __future__ import annotations

import typer

from console import session
from console.output import out
from streams import schema

app = typer.Typer(help="The database's schema.", no_args_is_help=True, add_completion=False)


@app.command()
def upgrade() -> None:
    """Bring the schema to this version. Safe to repeat."""
    before, after = schema.upgrade(session.database().owner_url)
    out.print(f"schema at revision {after}" + ("" if before == after else f" (was {before or 'empty'})"))


@app.command()
def check() -> None:
    """Check that the schema is this version's."""
    out.print(f"schema at revision {schema.check(session.database().url)}, as this version needs")
