"""`tollbook dispute`: payments that a payer's bank takes back, and what we say to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from billing.commands.dispute_evidence import dispute_document, dispute_list, submit_evidence, write_evidence
from billing.commands.send_corrections import send_corrections
from console import session
from console.output import AsCsv, AsJson, document, end_with, listing, out

app = typer.Typer(help="Disputed payments, and evidence.", no_args_is_help=True, add_completion=False)
COLUMNS = ("dispute_id", "status", "reason", "amount", "currency", "billing_account", "evidence_due_at", "submissions")
Dispute = Annotated[str, typer.Argument(metavar="DISPUTE", help="Stripe's id, such as du_….")]


@app.command("list")
def list_disputes(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Disputes, the newest first, as of the last `stripe sync`."""
    with session.engine() as engine:
        found = dispute_list(engine)
    listing(found, COLUMNS, as_json=as_json, as_csv=as_csv, empty="no disputes")


@app.command()
def show(dispute: Dispute, as_json: AsJson = False) -> None:
    """One dispute, with its invoice and what was submitted."""
    with session.engine() as engine:
        found = dispute_document(engine, dispute)
    if as_json:
        document(found)
        return
    for name, value in found.items():
        if name != "evidence":
            out.print(f"{name}: {value}")
    for sent in found["evidence"]:
        out.print(f"evidence: {sent['state']}, by {sent['by']}")


@app.command()
def evidence(
    dispute: Dispute,
    actor: session.Actor,
    to: Annotated[Path | None, typer.Option(file_okay=False, help="The folder; default: evidence-DISPUTE.")] = None,
    submit: Annotated[bool, typer.Option("--submit", help="Submit its texts to the bank, through Stripe.")] = False,
    test: Annotated[bool, typer.Option("--test", help="On a Stripe test key or a twin, with --submit.")] = False,
    dry_run: session.DryRun = False,
) -> None:
    """Write the evidence into a folder: the invoice, usage by day, each request that it bills, texts, checksums."""
    gateway = session.stripe(test=test) if submit else None
    with session.engine() as engine:
        written = write_evidence(engine, session.archive, dispute, to or Path(f"evidence-{dispute}"))
        out.print(f"{len(written.files)} files and SHA256SUMS in {session.shown(written.folder)}")
        if gateway is None:
            return
        made = submit_evidence(engine, dispute, written.texts, actor=actor, dry_run=dry_run)
        if dry_run:
            out.print("would be submitted")
            return
        now = session.clock(None)
        sent = send_corrections(engine, gateway=gateway, now=now, actor=actor, correction_nos=[made.correction_no])
    hindered = [f"evidence: {each.correction.state}: {each.reason}" for each in sent if each.reason]
    end_with(hindered)
    out.print("submitted" if sent else f"was submitted before, by {made.made_by}")
