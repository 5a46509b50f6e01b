"""`tollbook invoice`: invoices, as they are stored and as they went to Stripe."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any

import typer

from billing.commands.show_invoices import invoice_document, invoice_list
from billing.invoices import InvoiceState
from billing.money import currency as currency_of
from billing.money import from_minor
from billing.periods import parse_period
from billing.sending import percent
from console import session
from console.output import AsCsv, AsJson, document, listing, out

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
        )
    if as_json:
        document(found)
        return
    columns = ("billing_account", "period", "number", "state", "currency", "total", "exact_total", "stripe_invoice_id")
    rows = found if as_csv else [row | {"total": major(row["total"], row)} for row in found]
    listing(rows, columns, as_csv=as_csv, empty="no invoices; `tollbook close run PERIOD` draws them up")


@app.command()
def show(
    reference: Annotated[str, typer.Argument(metavar="INVOICE", help="Id, number, or Stripe's id.")],
    as_json: AsJson = False,
) -> None:
    """One invoice with its lines."""
    with session.engine() as engine:
        found = invoice_document(engine, reference)
    if as_json:
        document(found)
        return
    number, state = found["number"] or "without a number", found["state"]
    out.print(f"Invoice {number} ({state}) for {found['billing_account']}, {found['period']}", style="bold")
    lines = [line | {"amount": major(line["amount"], found)} for line in found["lines"]]
    listing(lines, ("line_key", "token_class", "model", "quantity", "unit_price", "amount_exact", "amount"))
    out.print(f"exact {found['exact_total']}, rounding {found['rounding']}")
    for row in found["tax"]:
        rate, base = percent(Decimal(row["rate"])), major(row["base"], found)
        out.print(f"tax {row['tax_group']} {rate} of {base}: {major(row['amount'], found)}")
    out.print(f"total {major(found['total'], found)} {found['currency']}", style="bold")
    for row in found["credits"]:
        how = "pays" if row["pays"] else "is taken off above"
        out.print(f"credit {row['credit_id']} ({row['kind']}): {row['amount_exact']} {how}, {row['left']} left")
    for row in found["carried"]:
        out.print(f"carried over from {row['number']}: {major(row['amount'], found)}")
    if found["amount_due"] != found["total"]:
        out.print(f"due {major(found['amount_due'], found)} {found['currency']}", style="bold")
    if found["stripe_invoice_id"]:
        out.print(f"Stripe {found['stripe_invoice_id']}: {found['hosted_invoice_url']}")
    for reason in (found["reason_not_in_stripe"], found["parked_because"]):
        if reason:
            out.print(reason)


def major(minor: int, found: dict[str, Any]) -> Decimal:
    """Minor units as major units of the invoice's currency."""
    return from_minor(minor, currency_of(found["currency"], datetime.fromisoformat(found["service_end"]).date()))
