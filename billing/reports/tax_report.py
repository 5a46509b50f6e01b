"""Tax on the documents of a month: net and tax by the payer's country, how tax met prices, group and rate. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from billing.bills.tax import TaxRow
from billing.invoicing.invoices import Invoice
from billing.money import ZERO, from_minor
from billing.reports.report import Amounts, Report, grouped, summed, table, ties

BY: Final = ("currency", "country", "mode", "tax_group", "rate")
SUMS: Final = ("net", "tax")
COLUMNS: Final = (*BY, "billing_account", "tax_id", "document", "kind", "tax_point", *SUMS)


@dataclass(frozen=True, slots=True)
class TaxedDocument:
    """A document with its number, and its payer's country and tax id."""

    invoice: Invoice
    number: str
    country: str = ""
    tax_id: str = ""


def tax_report(documents: Iterable[TaxedDocument], moved: Amounts, *, by_document: bool) -> Report:
    """Tax by country, mode, group and rate, or by document. `moved`: (currency, '') → what 2200 owes more.

    A document without tax is in it with its net.
    """
    rows: list[dict[str, Any]] = []
    totals = []
    for each in documents:
        of = each.invoice
        money = of.identity.money
        same = {
            "currency": of.identity.currency, "country": each.country, "mode": of.tax_mode.value,
            "billing_account": of.identity.billing_account, "tax_id": each.tax_id, "document": each.number,
            "kind": of.identity.kind.value, "tax_point": of.identity.period.end,
        }  # fmt: skip
        rows += [
            same
            | {"tax_group": row.group, "rate": row.rate.normalize()}
            | {"net": from_minor(row.base_minor, money), "tax": from_minor(row.tax_minor, money)}
            for row in of.taxes or (TaxRow("", ZERO, of.net_minor, 0),)
        ]
        totals.append(((of.identity.currency, each.number), from_minor(of.total_minor, money)))
    frame = table(rows, COLUMNS)
    reported = summed(((row["currency"], ""), row["tax"]) for row in rows)
    gross = summed(((row["currency"], row["document"]), row[name]) for row in rows for name in SUMS)
    return Report(
        "tax",
        frame if by_document else grouped(frame, BY, SUMS),
        (
            *ties("tax = what 2200 moved by", reported, moved),
            *ties("net and tax = totals of the documents", gross, summed(totals)),
        ),
    )
