"""The verbs of `tollbook invoice` that show where its figures come from: preview, explain, verify."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from billing.commands.explain_invoice import InvoiceExplained, explain_invoice, export_billed_events
from billing.commands.preview_invoice import preview_invoice
from billing.invoicing.explained import Explained, Share
from billing.invoicing.invoice_check import Difference, check_document, check_events
from billing.invoicing.invoice_file import read_invoice_file
from billing.money import plain
from billing.periods import parse_period
from console import session
from console.invoice_shown import print_invoice, write_forms
from console.output import AsJson, csv_rows, document, listing, out

if TYPE_CHECKING:
    from sqlalchemy import Engine

SHARE_COLUMNS: Final = (
    "tenant_id", "charge", "segment", "version", "period", "metric", "hour", "completed_at", "request_id", "attempt",
    "kind", "model", "status", "quantity",
)  # fmt: skip
DOCUMENT_BYTES: Final = 64_000_000
"""More than an invoice of a hundred thousand lines has."""
InvoiceName = Annotated[str, typer.Argument(metavar="INVOICE", help="Id, number, or Stripe's id.")]


def preview(
    tenant_id: Annotated[str, typer.Argument(metavar="TENANT")],
    period: Annotated[str, typer.Argument(metavar="PERIOD", help="2026-10; it may still run.")],
    account: Annotated[str | None, typer.Option(help="The payer, where the tenant has several in the period.")] = None,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write it to a file, for people.")] = None,
    pdf: Annotated[Path | None, typer.Option(dir_okay=False, help="Write it to a file, for people.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a tenant's invoice would be by its usage so far: a dry run of what the close does."""
    with session.engine() as engine:
        found = preview_invoice(
            engine, tenant_id=tenant_id, period=parse_period(period), now=session.clock(None), billing_account=account
        )
    if found is not None:
        write_forms(found, html=html, pdf=pdf, ubl=None)
    if as_json:
        document(found)
    elif found is None:
        out.print(
            f"no document: {tenant_id} has no usage, fee in arrears or change in {period};"
            " fees in advance: `tollbook invoice advance --dry-run`"
        )
    else:
        print_invoice(found)


def explain(
    reference: InvoiceName,
    line: Annotated[int | None, typer.Option(min=1, help="Only this one, as `invoice show` lists them.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Requests shown, at most; all are added up.")] = 50,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Every request's share; --limit does not hold.")] = False,
) -> None:
    """An invoice's lines down to the hours and requests that make their quantities, and whether they agree."""
    shown: list[Share] = []
    write = csv_rows(SHARE_COLUMNS) if as_csv else None

    def each(share: Share) -> None:
        if write is not None:
            write(_row(share))
        elif len(shown) < limit:
            shown.append(share)

    with session.engine() as engine:
        found = explain_invoice(engine, session.archive, reference, each, line, session.clock(None).date())
    if as_json:
        document(
            {"invoice_id": found.document["invoice_id"], "number": found.document["number"],
             "currency": found.document["currency"], "lines": found.lines,
             "counters": [_counter(each) for each in found.counters],
             "requests": [_row(share) for share in shown], "agrees": found.agrees}
        )  # fmt: skip
    elif not as_csv:
        _print(found, shown)
    if not found.agrees:
        raise typer.Exit(1)


def verify(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="From `invoice show INVOICE --json`.")],
    events: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="From `invoice show INVOICE --events FILE`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an invoice's document, without the database: sums, rounding, usage digest, and that it bills the events."""
    with file.open("rb") as opened:
        content = opened.read(DOCUMENT_BYTES + 1)
    if len(content) > DOCUMENT_BYTES:
        raise typer.BadParameter(f"{session.shown(file)} has more than {DOCUMENT_BYTES:,} bytes")
    invoice = read_invoice_file(content)
    differences = check_document(invoice)
    if events is not None:
        with events.open("rb") as lines:
            differences += check_events(invoice, lines)
    _tell(differences, invoice.number or invoice.invoice_id, events is not None, as_json)
    if differences:
        raise typer.Exit(1)


def write_events(engine: Engine, reference: str, file: Path) -> int:
    """Write the events that an invoice bills, a line of JSON each; how many there are."""
    with file.open("wb") as opened:
        return export_billed_events(engine, session.archive, reference, opened.write)


def _tell(differences: list[Difference], name: str, with_events: bool, as_json: bool) -> None:
    if as_json:
        document({"invoice": name, "events_compared": with_events, "differences": [asdict(d) for d in differences]})
    elif differences:
        listing([asdict(d) for d in differences], ("what", "stated", "found"))
    else:
        out.print(f"{name}: adds up" + (", and bills exactly these events" if with_events else ""))


def _counter(of: Explained) -> dict[str, Any]:
    return of.counter._asdict() | {
        "metric": of.metric, "lines": list(of.lines), "counted": plain(of.counted), "waits": plain(of.waits),
        "found": plain(of.found),
        "agrees": of.agrees,
        "hours": [asdict(hour) for hour in of.hours.values()],
    }  # fmt: skip


def _row(share: Share) -> dict[str, Any]:
    event = share.event
    hour = event.completed_at.replace(minute=0, second=0, microsecond=0)
    of = (*share.counter, share.metric, hour, event.completed_at, event.request_id, event.attempt, event.kind,
          event.model, event.status, share.quantity)  # fmt: skip
    return dict(zip(SHARE_COLUMNS, of, strict=True))


def _print(found: InvoiceExplained, shown: list[Share]) -> None:
    print_invoice(found.document | {"lines": found.lines})
    for each in found.counters:
        of, late = each.counter, each.counter.period != found.document["period"]
        title = f"{of.charge} of {of.tenant_id}{f', {of.period}' if late else ''}: {each.metric} by hour"
        hours = [asdict(hour) for hour in each.hours.values()]
        listing(hours, ("hour", "events", "quantity"), title=title, empty=f"{title}: no events")
        lines = "the lines that change it" if late else "its lines"
        waits = f", and {plain(each.waits)} for what is on no document yet" if each.waits else ""
        stand = f"{'and' if each.agrees else 'but'} {lines} stand for {plain(each.counted)}{waits}"
        said = f"as on {lines}" if each.agrees and not waits else stand
        out.print(f"together {plain(each.found)}, {said}")
    if shown:
        columns = ("completed_at", "request_id", "attempt", "kind", "model", "charge", "metric", "quantity")
        listing([_row(share) for share in shown], columns, title=f"The first {len(shown)} shares of requests")
