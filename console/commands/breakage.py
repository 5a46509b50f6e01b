"""`tollbook credit breakage`: how much of what is paid in advance is expected never to be used."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from billing.bills.breakage import BreakageEstimate
from billing.commands.set_breakage import breakage_estimates, set_breakage
from billing.money import PRICE_DECIMALS, parse_decimal, plain
from console import session
from console.output import AsCsv, AsJson, listing, out

app = typer.Typer(
    help="What of paid credits is expected never to be used: at expiry, or in proportion to use.",
    no_args_is_help=True, add_completion=False,
)  # fmt: skip


@app.command("set")
def set_estimate(
    entity: Annotated[str, typer.Argument(metavar="ENTITY", help="The legal entity, such as default.")],
    actor: session.Actor,
    since: Annotated[str, typer.Option("--from", help="First day (UTC), e.g. 2026-10-01, or an RFC 3339 time.")],
    document: Annotated[str, typer.Option(help="What the estimate rests on.")],
    share: Annotated[
        str | None, typer.Option(help="Of what is paid, such as 0.08; default: breakage is known at expiry alone.")
    ] = None,
    dry_run: session.DryRun = False,
) -> None:
    """Let an estimate hold from a moment on, until the next. Safe to repeat. `close run` books what follows."""
    expected = None if share is None else parse_decimal(share, decimals=PRICE_DECIMALS)
    given = BreakageEstimate(entity, expected, session.moment(since), document)
    with session.engine() as engine:
        changed = set_breakage(engine, given, actor=actor, dry_run=dry_run)
    out.print("nothing new" if not changed else "would be set" if dry_run else "set")


@app.command("list")
def list_estimates(as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """All estimates, the ones that were replaced as well. The last of a moment holds."""
    with session.engine() as engine:
        found = breakage_estimates(engine)
    rows: list[dict[str, Any]] = [
        {
            "legal_entity": each.legal_entity, "share": "at expiry" if each.share is None else plain(each.share),
            "from": each.valid_from, "document": each.document, "recorded_at": each.recorded_at,
            "recorded_by": each.recorded_by,
        }
        for each in found
    ]  # fmt: skip
    columns = ("legal_entity", "share", "from", "document", "recorded_at", "recorded_by")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="breakage is known at expiry alone")
