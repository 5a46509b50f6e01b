"""`tollbook tax`: how billing accounts are taxed."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import typer

from billing.bills.tax import TaxMode, TaxRules
from billing.commands.set_tax import set_tax, tax_rules
from billing.invoicing.tax_store import DatedTaxRules
from billing.money import PRICE_DECIMALS, Rounding, parse_decimal, plain
from console import session
from console.output import AsCsv, AsJson, listing, out

app = typer.Typer(help="Tax rules by billing account, dated.", no_args_is_help=True, add_completion=False)


@app.command("set")
def set_rules(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="The billing account.")],
    mode: Annotated[TaxMode, typer.Argument(help="How tax meets prices.")],
    actor: session.Actor,
    since: Annotated[str, typer.Option("--from", help="First day (UTC), e.g. 2026-10-01.")],
    rate: Annotated[list[str] | None, typer.Option(help="GROUP=RATE, such as std=0.19; once per tax group.")] = None,
    evidence: Annotated[str, typer.Option(help="Exempt: the certificate. Reverse charge: the payer's tax id.")] = "",
    rounding: Annotated[Rounding, typer.Option(help="Where a half of the tax goes.")] = Rounding.HALF_UP,
    dry_run: session.DryRun = False,
) -> None:
    """Tax an account so from a day on: all invoices whose service ends after that. Safe to repeat."""
    valid_from = session.moment(since)
    rules = TaxRules(mode, dict(_rate(text) for text in rate or ()), rounding)
    with session.engine() as engine:
        changed = set_tax(engine, DatedTaxRules(account, rules, valid_from, evidence), actor=actor, dry_run=dry_run)
    out.print("nothing new" if not changed else "would be set" if dry_run else "set")


@app.command("list")
def list_rules(
    account: Annotated[str | None, typer.Option(help="Only this billing account.")] = None,
    as_of: Annotated[str | None, typer.Option(help="What was recorded by this RFC 3339 time.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """All tax rules, the ones that were replaced as well. The last of a day holds."""
    with session.engine() as engine:
        found = tax_rules(engine, account=account, as_of=None if as_of is None else session.clock(as_of))
    rows: list[dict[str, Any]] = [
        {
            "billing_account": each.billing_account,
            "from": each.valid_from,
            "mode": each.rules.mode.value,
            "rates": {group: plain(rate) for group, rate in each.rules.rates.items()},
            "evidence": each.evidence,
            "recorded_at": each.recorded_at,
            "recorded_by": each.recorded_by,
        }
        for each in found
    ]
    columns = ("billing_account", "from", "mode", "rates", "evidence", "recorded_at", "recorded_by")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="no tax rules: invoices are without tax")


@app.command()
def report(
    month: session.Month,
    by_document: Annotated[bool, typer.Option("--documents", help="Document by document.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Net and tax of the documents that a month booked: `tollbook report tax`."""
    from console.commands.report import tax  # pandas takes half a second to import

    tax(month, by_document=by_document, as_json=as_json, as_csv=as_csv)


def _rate(text: str) -> tuple[str, Decimal]:
    group, sign, rate = text.partition("=")
    if not (group and sign):
        raise typer.BadParameter(f"{text!r}: write GROUP=RATE, such as std=0.19")
    return group, parse_decimal(rate, decimals=PRICE_DECIMALS)
