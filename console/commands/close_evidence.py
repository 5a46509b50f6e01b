"""The verbs of `tollbook close` for auditors: evidence, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from console import session
from console.output import AsCsv, AsJson, document, err, listing, out
from console.output import plain as told
from reconciliation.close.evidence.verifying import verify_evidence
from reconciliation.close.evidence.writing import write_evidence


def evidence(
    month: session.Month,
    folder: Annotated[Path, typer.Argument(file_okay=False, metavar="FOLDER", help="A new folder, or a pack of it.")],
    tar: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the pack as one file, too.")] = None,
) -> None:
    """Write the evidence of a month's close: what was closed, and who signed it. Written again: the same bytes."""
    period = session.month_of(month)
    with session.engine() as engine:
        written = write_evidence(engine, period, folder, tar=tar)
    out.print(f"{period.name}: {written.files} files in {session.shown(folder)}")
    if written.without_pdf:
        err.print(f"tollbook: the summary is there as HTML alone: {written.without_pdf}", soft_wrap=True)
    out.print(f"  manifest {written.manifest}", soft_wrap=True)


def verify(
    folder: Annotated[Path, typer.Argument(exists=True, metavar="FOLDER|TAR")],
    manifest: Annotated[
        str | None, typer.Option(help="The manifest's hash as `close evidence` printed it, kept apart from the pack.")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Check an evidence pack without database or network: rated again, summed again. Exit code 1 if broken."""
    checks = verify_evidence(folder, manifest=manifest)
    found: list[dict[str, Any]] = [
        {"check": check.name, "key": each.key, "left": told(each.left), "right": told(each.right)}
        for check in checks
        for each in check.differences
    ]
    if as_json:
        compared = [{"name": each.name, "compared": each.compared} for each in checks]
        document({"agrees": not found, "checks": compared, "differences": found})
    elif as_csv:
        listing(found, ("check", "key", "left", "right"), as_csv=True)
    else:
        rows = [{"check": c.name, "compared": c.compared, "differences": len(c.differences)} for c in checks]
        listing(rows, ("check", "compared", "differences"))
        for row in found[:20]:
            out.print(f"{row['check']}: {row['key']}: {row['left']} / {row['right']}", soft_wrap=True)
    if found:
        raise typer.Exit(1)
