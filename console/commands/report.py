"""`tollbook report`: what finance takes out of the books, each with what it must tie to (docs/reports.md)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from sqlalchemy import Engine

from billing.commands import make_reports
from billing.commands.make_reports import Asked
from billing.money import plain
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.reports import focus as focus_rows
from billing.reports.erp import OWN_CHART, read_mapping
from billing.reports.report import Report, Tie
from billing.reports.revenue import BY
from console import session
from console.output import AsCsv, AsJson, cell, document, err, listing, out, problems

app = typer.Typer(help="What finance takes out of the books.", no_args_is_help=True, add_completion=False)

FOCUS_SHOWN: Final = (
    "InvoiceId", "SubAccountId", "SkuId", "ChargeCategory", "ChargeClass", "BilledCost", "EffectiveCost",
    "BillingCurrency",
)  # fmt: skip

AsOf = Annotated[
    str | None, typer.Option("--as-of", metavar="TIME", help="Up to this RFC 3339 time in the month; default: its end.")
]
Entity = Annotated[str, typer.Option("--legal-entity", help="Whose books.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write the rows to a file, as CSV.", dir_okay=False)]
ByDocument = Annotated[bool, typer.Option("--documents", help="Document by document.")]


@app.command()
def revenue(
    month: session.Month,
    by: Annotated[str, typer.Option(help=f"Some of {', '.join(BY)}, with commas.")] = ",".join(BY),
    as_of: AsOf = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Revenue by tenant, model and region. Ties to what income accounts moved by."""
    names = list(dict.fromkeys(name.strip() for name in by.split(",") if name.strip()))
    if not names or set(names) - set(BY):
        raise typer.BadParameter(f"--by {by}: choose from {', '.join(BY)}")
    make = partial(make_reports.report_revenue, by=names)
    _report(make, month, as_of, legal_entity, as_json, as_csv, file)


@app.command()
def deferred(
    month: session.Month,
    as_of: AsOf = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Fees in advance: invoiced, earned, left for later. Ties to 2110."""
    _report(make_reports.report_deferred, month, as_of, legal_entity, as_json, as_csv, file)


@app.command()
def credits(
    month: session.Month,
    as_of: AsOf = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Credits: bought or given, drawn, expired, left. What is owed ties to 2100."""
    _report(make_reports.report_credits, month, as_of, legal_entity, as_json, as_csv, file)


@app.command()
def ageing(
    month: session.Month,
    by_document: ByDocument = False,
    as_of: AsOf = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Receivables by how many days they are overdue, on the month's last day. Ties to 1100."""
    make = partial(make_reports.report_ageing, by_document=by_document)
    _report(make, month, as_of, legal_entity, as_json, as_csv, file)


@app.command()
def tax(
    month: session.Month,
    by_document: ByDocument = False,
    as_of: AsOf = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Net and tax of the documents that the month booked, by country, mode, group and rate. Ties to 2200."""
    make = partial(make_reports.report_tax, by_document=by_document)
    _report(make, month, as_of, legal_entity, as_json, as_csv, file)


@app.command()
def commitments(
    month: session.Month,
    as_of: AsOf = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Commitments: used, missing, still to come. True-ups tie to 4050."""
    _report(make_reports.report_commitments, month, as_of, legal_entity, as_json, as_csv, file)


@app.command()
def focus(
    month: session.Month,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """What the month billed as rows of FOCUS. Ties to each document."""
    more = {"focus_version": focus_rows.VERSION}
    _report(make_reports.report_focus, month, None, legal_entity, as_json, as_csv, file, shown=FOCUS_SHOWN, more=more)


@app.command()
def erp(
    month: session.Month,
    mapping: Annotated[
        Path | None, typer.Option("--map", help="YAML: our account codes with the other ledger's.", dir_okay=False)
    ] = None,
    as_of: AsOf = None,
    legal_entity: Entity = DEFAULT_LEGAL_ENTITY,
    file: Out = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """The month's balances as lines for another ledger, in whole cents. Ties to the month's postings."""
    targets = OWN_CHART
    if mapping is not None:
        targets = read_mapping(session.read_text(mapping), file=session.shown(mapping))
    make = partial(make_reports.report_erp, targets=targets)
    _report(make, month, as_of, legal_entity, as_json, as_csv, file)


def _report(
    make: Callable[[Engine, Asked], Report], month: str, as_of: str | None, legal_entity: str, as_json: bool,
    as_csv: bool, file: Path | None, *, shown: tuple[str, ...] | None = None, more: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """Make a report, and print or write it. Exit code 1 where it does not tie."""
    period = session.month_of(month, "the books are kept by the month")
    asked = Asked(period, None if as_of is None else session.clock(as_of), legal_entity)
    with session.engine() as engine:
        found = make(engine, asked)
    written = found.table.map(lambda value: Decimal(plain(value)) if isinstance(value, Decimal) else value)
    columns = [str(name) for name in written.columns]
    rows = [{str(name): value for name, value in row.items()} for row in written.to_dict("records")]
    if file is not None or as_csv:
        csv = written.map(cell).to_csv(index=False, lineterminator="\n")
        if file is None:
            sys.stdout.write(csv)
        else:
            _write(file, csv)
    elif as_json:
        said = {"report": found.name, "month": asked.month.name, "as_of": asked.span.end}
        ties = [_tie(tie) for tie in found.ties]
        document(said | (more or {}) | {"rows": rows, "ties": ties, "holds": found.holds, "notes": found.notes})
    else:
        title = f"{found.name}, {asked.month.name}"
        listing(rows, shown or columns, title=title, empty=f"{title}: nothing")
    to = out if file is not None or not (as_csv or as_json) else err
    for tie in found.ties:
        verdict = "ties" if tie.holds else "DOES NOT TIE"
        to.print(
            f"{verdict}: {tie.name}: {plain(tie.reported)} {'=' if tie.holds else 'against'} {plain(tie.recorded)}"
            f" {tie.currency}".rstrip(),
            soft_wrap=True,
        )
        problems([f"{part}: {plain(ours)} against {plain(theirs)}" for part, ours, theirs in tie.differences])
    if not (as_csv or as_json):
        for note in found.notes:
            out.print(f"note: {note}", soft_wrap=True)
    if not found.holds:
        raise typer.Exit(1)


def _tie(tie: Tie) -> dict[str, Any]:
    differences = [
        {"part": part, "reported": plain(ours), "recorded": plain(theirs)} for part, ours, theirs in tie.differences
    ]
    return {
        "tie": tie.name, "currency": tie.currency, "reported": plain(tie.reported), "recorded": plain(tie.recorded),
        "holds": tie.holds, "differences": differences,
    }  # fmt: skip


def _write(file: Path, content: str) -> None:
    try:
        file.write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise typer.BadParameter(f"cannot write {session.shown(file)}: {error}") from None
