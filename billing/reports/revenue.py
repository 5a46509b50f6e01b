"""Revenue of a month by tenant, model and region: each entry's income, given to whom it was earned from.

Accruals go by their rated lines. A line that counts several models or regions is spread over them by the units that
were used there, as margins are (billing/costs/margins.py); a fee or minimum is the tenant's, and no model's. What tax
takes out of income where prices contain it goes by the invoice's lines. What nobody can be named for stays unnamed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from billing.bills.credit_application import grant_of
from billing.bills.tax import TaxMode
from billing.costs.margins import Traffic
from billing.invoicing.invoices import Invoice
from billing.ledger.journal import ACCOUNTS, AccountType, Subledger
from billing.ledger.journal_chain import BookedEntry
from billing.money import ZERO, exactly, quantise_pieces
from billing.posting.posting_rules import granted_account, revenue_account
from billing.rating import LineKind, RatedLine
from billing.reports.report import Amounts, Report, pivoted, summed, table, ties

REVENUE_CODES: Final = tuple(
    code for code, account in ACCOUNTS.items() if account.type in (AccountType.INCOME, AccountType.CONTRA_INCOME)
)
COLUMN_OF: Final[Mapping[int, str]] = {
    4000: "usage", 4010: "fees", 4050: "true_ups", 4100: "breakage", 4900: "credits", 4910: "credits",
    4920: "refunds_disputes", 4930: "refunds_disputes",
}  # fmt: skip
COLUMNS: Final = tuple(dict.fromkeys(COLUMN_OF.values()))
BY: Final = ("tenant", "model", "region")


class Place(NamedTuple):
    """Where usage was: whose, of which model, adapter, region and tier."""

    tenant_id: str
    model: str = ""
    adapter: str = ""
    region: str = ""
    tier: str = ""


@dataclass(frozen=True, slots=True)
class Earned:
    """Revenue in major units, positive where it is earned; from whom, as far as that is known."""

    code: int
    currency: str
    place: Place
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Sources:
    """What entries come from: rated lines by entry, invoices by id, and what was used where."""

    lines: Mapping[int, Sequence[RatedLine]] = field(default_factory=dict)
    invoices: Mapping[str, Invoice] = field(default_factory=dict)
    traffic: Mapping[Place, Traffic] = field(default_factory=dict)


NOBODY: Final = Place("")


def revenue_report(entries: Iterable[BookedEntry], sources: Sources, moved: Amounts, by: Sequence[str] = BY) -> Report:
    """Revenue by some of tenant, model and region. `moved`: (currency, account code) → credit less debit."""
    found = earned(entries, sources)
    named = {"tenant": "tenant_id", "model": "model", "region": "region"}
    rows = [
        each.place._asdict() | {"currency": each.currency, "column": COLUMN_OF[each.code], "revenue": each.amount}
        for each in found
    ]
    frame = table(rows, [*Place._fields, "currency", "column", "revenue"])
    wide = pivoted(frame, ["currency", *(named[each] for each in by)], "column", "revenue", COLUMNS)
    reported = summed(((each.currency, str(each.code)), each.amount) for each in found)
    return Report("revenue", wide, ties("revenue = what income accounts moved by", reported, moved))


def earned(entries: Iterable[BookedEntry], sources: Sources) -> list[Earned]:
    """What each entry earned, of whom."""
    by_tenant: dict[str, list[tuple[Place, Traffic]]] = defaultdict(list)
    for place, used in sources.traffic.items():
        by_tenant[place.tenant_id].append((place, used))
    found: list[Earned] = []
    for entry in entries:
        if entry.kind == "accrual":
            for line in sources.lines.get(entry.entry_id, ()):
                found += _of_line(line, by_tenant[line.identity.tenant_id])
        else:
            found += _of_entry(entry, sources.invoices.get(str(entry.source.get("invoice_id"))))
    return found


def _of_line(line: RatedLine, used: Sequence[tuple[Place, Traffic]]) -> list[Earned]:
    of, code = line.where, revenue_account(line).code
    parts = [
        (place, units)
        for place, traffic in used
        if all(wanted in ("", has) for wanted, has in zip(of, place[1:], strict=True))
        and (units := traffic.units(line.metric))
    ]
    whole = sum((units for _, units in parts), Fraction())
    if not whole:
        return [Earned(code, line.currency, Place(line.identity.tenant_id, *of), line.amount)]
    amounts = quantise_pieces(Fraction(line.amount) * units / whole for _, units in parts)
    return [Earned(code, line.currency, place, amount) for (place, _), amount in zip(parts, amounts, strict=True)]


def _of_entry(entry: BookedEntry, invoice: Invoice | None) -> list[Earned]:
    """An entry's income by its invoice's lines, else by the tenants that its other legs name, else nobody's."""
    income: dict[tuple[int, str], Decimal] = defaultdict(lambda: ZERO)
    tenants: dict[tuple[str, str], Decimal] = defaultdict(lambda: ZERO)
    others = 0
    with exactly():
        for leg in entry.legs:
            if leg.code in REVENUE_CODES:
                income[leg.code, leg.currency] -= leg.amount
            elif ACCOUNTS[leg.code].subledger is Subledger.TENANT:
                tenants[leg.currency, leg.subledger] += leg.amount
            else:
                others += 1
    if len(income) == 1 and tenants and not others:
        ((code, _),) = income
        return [Earned(code, unit, Place(tenant), amount) for (unit, tenant), amount in sorted(tenants.items())]
    found: list[Earned] = []
    for (code, unit), amount in sorted(income.items()):
        shares = _shares(invoice, code) if invoice is not None else {}
        whole = sum(shares.values(), Fraction())
        if not whole:
            found.append(Earned(code, unit, NOBODY, amount))
            continue
        places = sorted(shares)
        parts = quantise_pieces(Fraction(amount) * shares[place] / whole for place in places)
        found += [Earned(code, unit, place, part) for place, part in zip(places, parts, strict=True)]
    return [each for each in found if each.amount]


def _shares(invoice: Invoice, code: int) -> dict[Place, Fraction]:
    """Where a leg of an invoice's entry belongs: tax by the lines of that account, credits by their own lines."""
    credits = {credit.grant_id: credit for credit in invoice.credits if not credit.pays}
    rates = {row.group: Fraction(row.rate) / (1 + Fraction(row.rate)) for row in invoice.taxes}
    found: dict[Place, Fraction] = defaultdict(Fraction)
    for line in invoice.lines:
        if line.rated.identity.kind == LineKind.CREDIT:
            on, share = granted_account(credits[grant_of(line.rated, credits)])[0], Fraction(1)
        else:
            share = rates.get(line.tax_group, Fraction()) if invoice.tax_mode is TaxMode.INCLUSIVE else Fraction()
            on = revenue_account(line.rated)
        if on.code == code:
            found[Place(line.rated.identity.tenant_id, *line.rated.where)] += Fraction(line.rated.amount) * share
    return found
