"""`tollbook reconcile`: do all records of a period agree?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import typer

from billing.periods import parse_period
from console import session, witnesses
from console.output import AsCsv, AsJson, document, listing, out, problems
from reconciliation.period import PeriodReport, reconcile_period

app = typer.Typer(help="Do all records agree?", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """Do all records agree?"""


@app.command()
def run(
    period: Annotated[str, typer.Argument(metavar="PERIOD", help="e.g. 2026-10")],
    stripe: Annotated[bool, typer.Option(help="Compare with Stripe as well.")] = True,
    kafka: Annotated[bool, typer.Option(help="Compare with the end of the topic as well.")] = True,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare messages, events, windows, rated lines, ledger, invoices and Stripe. Exit code 1 on any difference.

    CSV has the differences, JSON the checks as well.
    """
    parsed = parse_period(period)
    gateway = session.stripe() if stripe else None
    log = session.usage_log() if kafka else None
    left_out = [name for name, looked_at in (("Stripe", stripe), ("Kafka's end", kafka)) if not looked_at]
    with session.engine() as engine:
        report = reconcile_period(engine, period=parsed, now=session.clock(None), gateway=gateway, log=log)
    if as_json:
        checks = [asdict(check) | {"agrees": check.agrees} for check in report.checks]
        document(
            {"period": period, "agrees": report.agrees, "left_out": left_out, "checks": checks}
            | {"engines": witnesses.as_document(report.engines)}
        )
    elif as_csv:
        listing(differences(report), ("check", "key", "left", "right"), as_csv=True)
    else:
        show(report, left_out)
    if not report.agrees:
        raise typer.Exit(1)


def differences(report: PeriodReport) -> list[dict[str, Any]]:
    """Every difference with the check that found it."""
    return [{"check": check.name} | asdict(found) for check in report.checks for found in check.differences]


def show(report: PeriodReport, left_out: Sequence[str]) -> None:
    """The report for people: one line a check, then the differences, and what was not looked at."""
    rows = [
        {"check": c.name, "between": f"{c.left} / {c.right}", "compared": c.compared, "differences": len(c.differences)}
        for c in report.checks
    ]
    listing(rows, ("check", "between", "compared", "differences"), title=f"Reconciliation of {report.period.name}")
    problems([f"{check.name}: {d.key}: {d.left} / {d.right}" for check in report.checks for d in check.differences])
    witnesses.show(report.engines)
    verdict = "everything agrees" if report.agrees else "NOT everything agrees"
    out.print(verdict + (f", {' and '.join(left_out)} not looked at" if left_out else ""), style="bold")
