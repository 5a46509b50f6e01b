"""`tollbook close`: a month, from its usage to a closed book."""

from __future__ import annotations

from collections import defaultdict
from typing import Annotated, Final

import typer

from billing.commands.close_month import MonthClosed, close_month
from billing.commands.send_invoices import Outcome
from billing.commands.show_invoices import invoice_list
from billing.commands.unbillable_usage import approve_unbillable, unbillable_usage
from billing.money import plain
from console import session
from console.close_shown import DIFFERENCE_COLUMNS, Month, month_of, show_run, show_status
from console.commands import close_decisions, close_evidence
from console.commands.invoice_shown import note_told
from console.output import AsCsv, AsJson, document, listing, out, problems
from console.progress import bars
from reconciliation.close.gates import TITLES, Gate
from reconciliation.close.running import run_close
from reconciliation.close.standing import close_status

app = typer.Typer(help="Close a month like the books (docs/close.md).", no_args_is_help=True, add_completion=False)

EARLIER_USUAL: Final = 3
"""Earlier periods that a close rates again where books are closed in time: the horizon is a month and a half."""


@app.command()
def run(
    month: Month,
    actor: session.Actor,
    test: Annotated[bool, typer.Option("--test", help="On a Stripe test key or a twin.")] = False,
    now: session.Now = None,
    dry_run: session.DryRun = False,
) -> None:
    """Take the month as far as it may go: rate, cut, draw up, compare; issue what is approved; close the book.

    Safe to repeat: run it again after another person's `close approve`. What came late to earlier months is rated
    first. Exit code 1 while something is held up, but for the approval.
    """
    period = month_of(month)
    if now is not None and not test:
        raise typer.BadParameter("--now goes with --test only")
    at = session.clock(now)
    gateway = session.stripe(test=test)
    with session.engine() as engine, bars() as progress:
        if dry_run:
            closed = close_month(
                engine, period=period, gateway=gateway, now=at, actor=actor, test=test, progress=progress, dry_run=True
            )
            found = closed.problems
        else:
            done = run_close(
                engine, period, gateway=gateway, log=session.usage_log, now=at, actor=actor, test=test,
                progress=progress,
            )  # fmt: skip
            found = done.problems
    if dry_run:
        show(closed)
    else:
        show_run(done)
    problems(found)
    if found:
        raise typer.Exit(1)


@app.command()
def status(
    month: Month,
    gate: Annotated[Gate | None, typer.Option(help="What this gate found, difference by difference.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Where the month's accounts stand, what the gates found last, and its invoices by state."""
    period = month_of(month)
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
    month: Month,
    actor: session.Actor,
    approve: Annotated[bool, typer.Option("--approve", help="Let all of it stay unbilled.")] = False,
    reason: Annotated[str, typer.Option(help="Why, with --approve.")] = "",
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Usage of the month that came later than its contract bills (late_usage_days); a named person approves it."""
    period = month_of(month)
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


def show(closed: MonthClosed) -> None:
    """What a run of the close did, in a few lines."""
    rated, drafted, sent = closed.rated, closed.drafted, closed.sent
    if closed.dry_run:
        would = sent.having(Outcome.WOULD_BE_SENT)
        out.print(f"{closed.period.name}: dry run, nothing is changed")
        out.print(
            f"{rated.lines_posted} rated lines would be posted; the drafts of {len(closed.accounts_to_redraw)} billing"
            " accounts would follow them"
        )
        out.print(
            f"of what is posted already {len(drafted.changed)} invoices would be drawn up,"
            f" and {len(would)} of those drawn up would be sent"
        )
        return
    new = [invoice for invoice in sent.having(Outcome.FINALIZED) if invoice.changed]
    finalized, carried, zero = (
        len(sent.having(outcome)) for outcome in (Outcome.FINALIZED, Outcome.CARRIED, Outcome.ZERO)
    )
    out.print(f"{closed.period.name}: {len(rated.tenants)} tenants rated, {rated.lines_posted} rated lines posted")
    out.print(f"{len(drafted.changed)} invoices drawn up, {len(drafted.unchanged) + len(drafted.frozen)} there already")
    out.print(
        f"{finalized} finalized in Stripe ({len(new)} now), {carried} carried below the minimum charge, {zero} zero"
    )
    for other in closed.others:
        drawn = "goes on: accrued" if other.drafted is None else f"{len(other.sent.invoices)} invoices"
        out.print(f"{other.period.name}: {len(other.rated.tenants)} tenants rated, {drawn}")
    if in_advance := closed.in_advance.sent.invoices:
        out.print(f"{len(in_advance)} invoices for fees in advance")
    runs = [each.in_advance for each in closed.others] + [closed.in_advance]
    for note in (*(n for each in runs for n in each.billed.notes), *closed.notes.notes):
        out.print(note_told(note))
    for late in closed.late:
        out.print(late)
    if len(closed.earlier) > EARLIER_USUAL:
        out.print(
            f"{len(closed.earlier)} earlier periods were rated again, since late usage can still come to them: closing"
            " their books ends that (`tollbook ledger close`, docs/late-usage.md)"
        )
    if closed.expired:
        out.print(f"{len(closed.expired)} credits expired")
    for bought in closed.topped_up:
        out.print(f"{bought.billing_account}: {plain(bought.amount)} {bought.currency} of credit to be paid")


app.command()(close_decisions.waive)
app.command()(close_decisions.explain)
app.command()(close_decisions.approve)
app.command()(close_decisions.release)
app.command()(close_decisions.reopen)
app.command()(close_evidence.evidence)
app.command()(close_evidence.verify)
