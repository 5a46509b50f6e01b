"""`tollbook invoice`: invoices, as they are stored and as they went to Stripe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from billing.commands.invoice_in_advance import invoice_in_advance
from billing.commands.send_invoices import Outcome, send_invoices
from billing.commands.show_invoices import invoice_document, invoice_list
from billing.invoicing.invoice_states import InvoiceState
from billing.periods import parse_period
from console import session
from console.commands import invoice_correction, invoice_evidence
from console.invoice_shown import major, note_told, print_draft, print_invoice, write_forms
from console.output import AsCsv, AsJson, document, end_with, listing, out, problems
from console.progress import bars

ToFile = Annotated[Path | None, typer.Option(dir_okay=False, help="Write it to a file, for people.")]
app = typer.Typer(help="Invoices.", no_args_is_help=True, add_completion=False)


@app.command("list")
def list_invoices(
    period: Annotated[str | None, typer.Option(help="Service periods within it, e.g. 2026-10 or 2026-Q4.")] = None,
    account: Annotated[str | None, typer.Option(help="Only this billing account.")] = None,
    state: Annotated[InvoiceState | None, typer.Option(help="Only this state.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Invoices by period and billing account. Amounts in JSON and CSV are minor units."""
    with session.engine() as engine:
        found = invoice_list(
            engine,
            within=parse_period(period) if period else None,
            billing_account=account,
            states=[state] if state else None,
            today=session.clock(None).date(),
        )
    if as_json:
        document(found)
        return
    columns = (
        "billing_account", "period", "number", "state", "dunning", "currency", "total", "exact_total",
        "stripe_invoice_id",
    )  # fmt: skip
    rows = found if as_csv else [row | {"total": major(row["total"], row)} for row in found]
    listing(rows, columns, as_csv=as_csv, empty="no invoices; `tollbook close run PERIOD` draws them up")


@app.command()
def show(
    reference: invoice_evidence.InvoiceName,
    html: ToFile = None,
    pdf: ToFile = None,
    ubl: Annotated[Path | None, typer.Option(dir_okay=False, help="Write it as EN 16931 (UBL 2.1).")] = None,
    events: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the events it bills, by line.")] = None,
    as_json: AsJson = False,
) -> None:
    """One invoice with its lines; as a document (--json), with its events in a file, for `invoice verify`."""
    with session.engine() as engine:
        found = invoice_document(engine, reference, today=session.clock(None).date())
        if events is not None:
            invoice_evidence.write_events(engine, reference, events)
    write_forms(found, html=html, pdf=pdf, ubl=ubl)
    if as_json:
        document(found)
        return
    print_invoice(found)


@app.command()
def send(
    period: Annotated[str, typer.Argument(help="The period whose drafts are sent, e.g. 2026-10.")],
    actor: session.Actor,
    account: Annotated[list[str] | None, typer.Option(help="Only this billing account; can be repeated.")] = None,
    test: Annotated[bool, typer.Option("--test", help="On a Stripe test key or a twin.")] = False,
    now: session.Now = None,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Send drafts to Stripe: exactly one invoice each, whatever happens on the way. Run again, it goes on.

    What a close has begun with is built and compared; the close issues it once another person has approved.
    """
    if now is not None and not test:
        raise typer.BadParameter("--now goes with --test only")
    with session.engine() as engine, bars() as tell:
        sent = send_invoices(
            engine,
            period=parse_period(period),
            gateway=session.stripe(test=test),
            now=session.clock(now),
            actor=actor,
            billing_accounts=account,
            dry_run=dry_run,
            progress=lambda done, total: tell("send", done, total),
        )
    counts = {outcome.value: len(sent.having(outcome)) for outcome in Outcome if sent.having(outcome)}
    if as_json:
        document({"period": period, "outcomes": counts})
    else:
        out.print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "there is nothing to send")
    left = [f"{i.billing_account}: {i.outcome}: {i.reason}" for i in sent.invoices if i.reason]
    problems(left)
    if not sent.ok:
        raise typer.Exit(1)


@app.command("advance")
def bill_advance(
    actor: session.Actor,
    test: Annotated[bool, typer.Option("--test", help="On a Stripe test key or a twin.")] = False,
    now: session.Now = None,
    adjust: Annotated[
        list[str] | None,
        typer.Option(metavar="TENANT", help="Bill the difference where its invoices say otherwise than is due by now."),
    ] = None,
    dry_run: session.DryRun = False,
) -> None:
    """Invoice the fees in advance whose time has begun: draw up, send, finalize. Safe to repeat.

    `close run` does it, too, for what begins until a day after its month.
    """
    if now is not None and not test:
        raise typer.BadParameter("--now goes with --test only")
    at = session.clock(now)
    with session.engine() as engine:
        found = invoice_in_advance(
            engine, until=at, gateway=session.stripe(test=test), now=at, actor=actor, dry_run=dry_run,
            adjust=adjust or (),
        )  # fmt: skip
    invoices = found.billed.drafts if dry_run else found.sent.invoices
    out.print(f"{len(invoices)} invoices for fees in advance {'would be drawn up and sent' if dry_run else 'taken up'}")
    for draft in found.billed.drafts if dry_run else ():
        print_draft(draft)
    for note in found.billed.notes:
        out.print(f"{'would be issued: ' if dry_run else ''}{note_told(note)}")
    for outcome in Outcome:
        if count := len(found.sent.having(outcome)):
            out.print(f"{count} {outcome.value}")
    end_with(found.problems)


app.command()(invoice_evidence.preview)
app.command()(invoice_evidence.explain)
app.command()(invoice_evidence.verify)
app.command()(invoice_correction.restart)
app.command()(invoice_correction.void)
app.command("credit-note")(invoice_correction.credit_note)
app.command("note-untold")(invoice_correction.note_untold)
app.command("write-off")(invoice_correction.write_off)
app.command()(invoice_correction.refund)
app.command()(invoice_correction.pay)
