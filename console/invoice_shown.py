"""How an invoice's document is shown on a terminal."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from billing.invoicing.invoice_file import invoice_file
from billing.invoicing.invoice_rows import StoredInvoice
from billing.invoicing.invoices import Invoice
from billing.invoicing.stripe_lines import percent
from billing.money import currency as currency_of
from billing.money import from_minor, plain
from console.output import listing, out


def note_told(note: StoredInvoice) -> str:
    """A credit note that was issued, in a line."""
    of = note.invoice
    taken = from_minor(of.total_minor, of.identity.money)
    return (
        f"credit note {note.number or 'of nothing'} for {of.identity.billing_account}, {of.identity.period.name}:"
        f" {taken} {of.identity.currency}"
    )


def print_draft(of: Invoice) -> None:
    """An invoice that would be drawn up, which is stored nowhere."""
    money, code = of.identity.money, of.identity.currency
    out.print(f"Would be invoiced to {of.identity.billing_account}, {of.identity.period.name}", style="bold")
    lines = [
        {"line_key": line.line_key, "tenant_id": line.rated.identity.tenant_id,
         "amount_exact": Decimal(plain(line.rated.amount)), "amount": from_minor(line.amount_minor, money)}
        for line in of.lines
    ]  # fmt: skip
    listing(lines, ("line_key", "tenant_id", "amount_exact", "amount"))
    for row in of.taxes:
        base, tax = (from_minor(amount, money) for amount in (row.base_minor, row.tax_minor))
        out.print(f"tax {row.group} {percent(row.rate)} of {base}: {tax}")
    out.print(f"total {from_minor(of.total_minor, money)} {code}, due {from_minor(of.amount_due_minor, money)} {code}")


def print_invoice(found: dict[str, Any]) -> None:
    """An invoice with its lines."""
    number, state = found["number"] or "without a number", found["state"]
    what = "Credit note" if found["kind"] == "credit_note" else "Invoice"
    out.print(f"{what} {number} ({state}) for {found['billing_account']}, {found['period']}", style="bold")
    if found["credits_invoice"]:
        out.print(f"takes back from {found['credits_invoice']['number']}")
    lines = [line | {"amount": major(line["amount"], found)} for line in found["lines"]]
    listing(lines, ("line_key", "token_class", "model", "quantity", "unit_price", "amount_exact", "amount"))
    out.print(f"exact {found['exact_total']}, rounding {found['rounding']}")
    for row in found["tax"]:
        rate, base = percent(Decimal(row["rate"])), major(row["base"], found)
        out.print(f"tax {row['tax_group']} {rate} of {base}: {major(row['amount'], found)}")
    out.print(f"total {major(found['total'], found)} {found['currency']}", style="bold")
    if found.get("dunning"):
        left = "" if found["remaining"] is None else f", {major(found['remaining'], found)} left to pay"
        out.print(f"collection: {found['dunning']}{left}")
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


def write_forms(found: dict[str, Any], *, html: Path | None, pdf: Path | None, ubl: Path | None) -> None:
    """Write an invoice's document in the forms asked for. Raises DocumentRefused; then none of them is written."""
    if not (html or pdf or ubl):
        return
    from billing.presentation.pages import html_of, pdf_of  # the template engine: only where it is needed
    from billing.presentation.ubl import ubl_of

    invoice = invoice_file(found)
    made: list[tuple[Path, bytes]] = []
    if html:
        made.append((html, html_of(invoice).encode()))
    if pdf:
        made.append((pdf, pdf_of(invoice)))
    if ubl:
        made.append((ubl, ubl_of(invoice).encode()))
    for file, content in made:
        file.write_bytes(content)


def major(minor: int, found: dict[str, Any]) -> Decimal:
    """Minor units as major units of the invoice's currency."""
    return from_minor(minor, currency_of(found["currency"], datetime.fromisoformat(found["service_end"]).date()))
