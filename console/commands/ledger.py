"""`tollbook ledger`: the books."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import Annotated, Any

import typer

from billing.commands.trial_balance import trial_balance
from billing.money import plain
from billing.periods import parse_period
from console import session
from console.output import AsCsv, AsJson, document, err, listing

app = typer.Typer(help="The double-entry journal.", no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:
    """The double-entry journal."""


@app.command("trial-balance")
def show_trial_balance(
    period: Annotated[str | None, typer.Option(help="One accounting period, e.g. 2026-10; default: all.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Every account's balance; debit and credit must be equal. Exit code 1 if they are not."""
    if period is not None and parse_period(period).months != 1:
        raise typer.BadParameter(f"{period}: the books are kept by the month, e.g. 2026-10")
    with session.engine() as engine:
        found = trial_balance(engine, accounting_period=period)
    rows: list[dict[str, Any]] = [asdict(row) for row in found.rows]
    if as_json:
        totals = {code: {"debit": debit, "credit": credit} for code, (debit, credit) in found.totals.items()}
        document({"accounting_period": period, "rows": rows, "totals": totals, "balanced": found.balanced})
    else:
        for currency, (debit, credit) in found.totals.items():
            rows.append({"code": "", "name": "total", "currency": currency, "debit": debit, "credit": credit})
        shown = [
            row | {"code": str(row["code"]), "debit": amount(row["debit"]), "credit": amount(row["credit"])}
            for row in rows
        ]
        listing(shown, ("code", "name", "currency", "debit", "credit"), as_csv=as_csv, empty="the journal is empty")
    if not found.balanced:
        err.print("tollbook: debit and credit differ")
        raise typer.Exit(1)


def amount(value: Decimal) -> Decimal | None:
    """As short as it can be written; zero is shown as an empty cell."""
    return Decimal(plain(value)) if value else None
