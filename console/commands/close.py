"""`tollbook close`: a month, from its usage to a closed book."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated

import typer

from billing.commands.close_month import foresee_month
from billing.commands.show_invoices import invoice_list
from billing.commands.unbillable_usage import approve_unbillable, unbillable_usage
from console import session
from console.close_shown import DIFFERENCE_COLUMNS, show_dry_run, show_run, show_status
from console.commands import close_decisions, close_evidence
from console.output import AsCsv, AsJson, document, end_with, listing, out
from console.progress import bars
from reconciliation.close.gates.gate import TITLES, Gate
from reconciliation.close.running import run_close
from reconciliation.close.status import close_status

app = typer.Typer(help="Close a month like the books (docs/close.md).", no_args_is_help=True, add_completion=False)


@app.command()
def run(
    month: session.Month,
    actor: session.Actor,
    test: Annotated[bool, typer.Option("--test", help="On a Stripe test key or a twin.")] = False,
    now: session.Now = None,
    dry_run: session.DryRun = False,
) -> None:
    """Take the month as far as it may go: rate, cut, draw up, compare; issue what is approved; close the book.

    Safe to repeat: run it again after another person's `close approve`. What came late to earlier months is rated
    first. Exit code 1 while something is held up, but for the approval. A dry run asks no gate.
    """
    period = session.month_of(month)
    if now is not None and not test:
        raise typer.BadParameter("--now goes with --test only")
    at = session.clock(now)
    gateway = session.stripe(test=test)
    with session.engine() as engine, bars() as progress:
        if dry_run:
            closed = foresee_month(
                engine, period=period, gateway=gateway, now=at, actor=actor, test=test, progress=progress
            )
            found = closed.problems
        else:
            done = run_close(
                engine, period, gateway=gateway, log=session.usage_log, now=at, actor=actor, test=test,
                progress=progress,
            )  # fmt: skip
            found = done.problems
    if dry_run:
        show_dry_run(closed)
    else:
        show_run(done)
    end_with(found)


@app.command()
def status(
    month: session.Month,
    gate: Annotated[Gate | None, typer.Option(help="What this gate found, difference by difference.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Where the month's accounts stand, what the gates found last, and its invoices by state."""
    period = session.month_of(month)
    with session.engine() as engine:
        found = close_status(engine, period)
        invoices = invoice_list(engine, of_month=period)
    if gate is not None:
        rows = [each for one in found["gates"] if one["gate"] == gate for each in one["differences"]]
        if as_json:
            document({"period": period.name, "gate": gate.value, "differences": rows})
        else:
            title = f"{period.name} {gate.value}: {TITLES[gate]}"
            listing(rows, DIFFERENCE_COLUMNS, as_csv=as_csv, title=title, empty=f"{title}: no difference")
        return
    totals: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for invoice in invoices:
        sums = totals[invoice["state"], invoice["currency"]]
        sums[0] += 1
        sums[1] += invoice["total"]
    by_state = [
        {"state": state, "currency": currency, "invoices": count, "total_minor": total}
        for (state, currency), (count, total) in sorted(totals.items())
    ]
    if as_json:
        document({"period": period.name, **found, "invoices": by_state})
        return
    if not as_csv:
        show_status(period.name, found)
    columns = ("state", "currency", "invoices", "total_minor")
    listing(by_state, columns, as_csv=as_csv, title="Invoices", empty="nothing is drawn up yet")


@app.command()
def unbillable(
    month: session.Month,
    actor: session.Actor,
    approve: Annotated[bool, typer.Option("--approve", help="Let all of it stay unbilled.")] = False,
    reason: Annotated[str, typer.Option(help="Why, with --approve.")] = "",
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Usage of the month that came later than its contract bills (late_usage_days); a named person approves it."""
    period = session.month_of(month)
    with session.engine() as engine:
        if approve:
            count = approve_unbillable(engine, period, reason=reason, actor=actor, dry_run=dry_run)
        found = unbillable_usage(engine, period)
    rows = [
        {
            "tenant_id": tenant_id, "completed_at": each.usage.completed_at, "request_id": each.usage.request_id,
            "attempt": each.usage.attempt, "kind": each.kind, "correction_no": each.correction_no,
            "model": each.usage.quantity.model, "input_tokens": each.usage.quantity.input_tokens,
            "output_tokens": each.usage.quantity.output_tokens, "late_usage_days": each.horizon_days,
            "billed_to": each.billed_to, "approved_by": each.approved_by, "reason": each.reason,
        }
        for tenant_id, listed in sorted(found.items())
        for each in listed
    ]  # fmt: skip
    if as_json:
        document(rows)
        return
    columns = ("tenant_id", "completed_at", "request_id", "kind", "input_tokens", "output_tokens", "approved_by")
    shown = tuple(rows[0]) if as_csv and rows else columns
    listing(rows, shown, as_csv=as_csv, title=period.name, empty="nothing came too late to be billed")
    if approve and not as_csv:
        out.print(f"{count} events approved to stay unbilled")


app.command()(close_decisions.waive)
app.command()(close_decisions.explain)
app.command()(close_decisions.approve)
app.command()(close_decisions.release)
app.command()(close_decisions.reopen)
app.command()(close_evidence.evidence)
app.command()(close_evidence.verify)
