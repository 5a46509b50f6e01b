"""`tollbook tenant`: whose usage is known."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from console import session
from console.output import AsCsv, AsJson, document, listing, out
from streams import tenants

app = typer.Typer(help="Register and list tenants.", no_args_is_help=True, add_completion=False)
COLUMNS = ("tenant_id", "name", "state", "registered_at")


@app.command()
def add(
    tenant_ids: Annotated[list[str], typer.Argument(metavar="TENANT…")],
    actor: session.Actor,
    name: Annotated[str, typer.Option(help="Name for people (one tenant only); default: its id.")] = "",
    dry_run: session.DryRun = False,
) -> None:
    """Register tenants. One that is registered already is passed over."""
    if name and len(tenant_ids) > 1:
        raise typer.BadParameter("--name goes with one tenant")
    _register([(tenant_id, name or tenant_id) for tenant_id in tenant_ids], actor, dry_run)


@app.command("import")
def import_file(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="CSV with tenant_id and, if you like, name.")
    ],
    actor: session.Actor,
    dry_run: session.DryRun = False,
) -> None:
    """Register tenants from a file."""
    with io.StringIO(session.read_text(file), newline="") as lines:
        rows = csv.DictReader(lines)
        if "tenant_id" not in (rows.fieldnames or ()):
            raise typer.BadParameter(f"{file}: the first line must name the columns, tenant_id among them")
        pairs = [(row["tenant_id"], row.get("name") or row["tenant_id"]) for row in rows]
    _register(pairs, actor, dry_run)


@app.command("list")
def list_tenants(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """All tenants."""
    with session.connection() as connection:
        rows = [asdict(tenant) for tenant in tenants.all_tenants(connection)]
    listing(rows, COLUMNS, as_json=as_json, as_csv=as_csv, empty="no tenants; `tollbook tenant add ID` registers one")


@app.command()
def show(tenant_id: Annotated[str, typer.Argument(metavar="TENANT")], as_json: AsJson = False) -> None:
    """One tenant."""
    with session.connection() as connection:
        row = asdict(tenants.get(connection, tenant_id))
    if as_json:
        document(row)
    else:
        listing([row], COLUMNS)


def _register(pairs: list[tuple[str, str]], actor: str, dry_run: bool) -> None:
    with session.connection() as connection, session.change(connection, dry_run):
        try:
            added = tenants.register(connection, pairs, actor=actor)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    would = "would be " if dry_run else ""
    out.print(f"{added} {would}registered, {len(pairs) - added} known already")
