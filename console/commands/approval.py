"""`tollbook approval`: what one person has proposed and another decides."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from billing.commands.decide_proposal import decide, proposals
from console import session
from console.output import AsCsv, AsJson, listing, out
from reconciliation.close.deciding import CARRIED_OUT

app = typer.Typer(help="What needs two people.", no_args_is_help=True, add_completion=False)

Number = Annotated[int, typer.Argument(metavar="PROPOSAL", help="Its number, from `approval list`.")]


@app.command("list")
def list_proposals(
    every: Annotated[bool, typer.Option("--all", help="The decided ones, too.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Proposals that wait for a decision."""
    with session.engine() as engine:
        found = proposals(engine, undecided=not every)
    rows: list[dict[str, Any]] = [
        {
            "proposal": each.proposal_no,
            "kind": each.kind.value,
            "subject": each.subject,
            "content": each.content,
            "document": each.document,
            "proposed_by": each.proposed_by,
            "proposed_at": each.proposed_at,
            "approved": each.approved,
            "decided_by": each.decided_by,
            "entry_id": each.entry_id,
        }
        for each in found
    ]
    columns = (
        "proposal", "kind", "subject", "content", "document", "proposed_by", "proposed_at", "approved", "decided_by",
        "entry_id",
    )  # fmt: skip
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="nothing waits for a decision")


@app.command()
def approve(number: Number, actor: session.Actor, dry_run: session.DryRun = False) -> None:
    """Approve what somebody else proposed: it is done."""
    _decide(number, True, "", actor, dry_run)


@app.command()
def reject(
    number: Number,
    actor: session.Actor,
    reason: Annotated[str, typer.Option(help="Why.")],
    dry_run: session.DryRun = False,
) -> None:
    """Reject what somebody else proposed: it is never done."""
    _decide(number, False, reason, actor, dry_run)


def _decide(number: int, approved: bool, reason: str, actor: str, dry_run: bool) -> None:
    with session.engine() as engine:
        done = decide(
            engine, number, approved=approved, now=session.clock(None), actor=actor, reason=reason, dry_run=dry_run,
            others=CARRIED_OUT,
        )  # fmt: skip
    booked = f", journal entry {done.entry_id}" if done.entry_id is not None and not dry_run else ""
    verdict = "approved" if approved else "rejected"
    out.print(f"proposal {number}: {'would be ' if dry_run else ''}{verdict}{booked}")
