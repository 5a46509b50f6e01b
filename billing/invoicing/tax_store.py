"""Tax rules by payer in the database: added, never changed (docs/spec/money.md 1 and 5)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, Connection, String, any_, cast, select

from billing import tables
from billing.bills.tax import NO_TAX, TaxMode, TaxRules
from billing.money import PRICE_DECIMALS, Rounding, parse_decimal, plain


@dataclass(frozen=True, slots=True)
class DatedTaxRules:
    """What holds for a billing account from `valid_from` on. `evidence`: why it owes none, or its tax id."""

    billing_account: str
    rules: TaxRules
    valid_from: datetime
    evidence: str
    recorded_at: datetime | None = None
    recorded_by: str = ""


def add(connection: Connection, dated: DatedTaxRules, actor: str) -> None:
    """Record what holds from a moment on; whatever was recorded for the same moment before is replaced by it."""
    connection.execute(
        tables.tax_rules.insert().values(
            billing_account=dated.billing_account,
            mode=dated.rules.mode.value,
            rates={group: plain(rate) for group, rate in dated.rules.rates.items()},
            rounding=dated.rules.rounding.value,
            evidence=dated.evidence,
            valid_from=dated.valid_from,
            recorded_by=actor,
        )
    )


def recorded(
    connection: Connection, accounts: Collection[str] | None = None, *, as_of: datetime | None = None
) -> list[DatedTaxRules]:
    """Everything recorded (by a moment), by billing account, time it holds from, and time of recording."""
    table = tables.tax_rules
    query = select(table).order_by(table.c.billing_account, table.c.valid_from, table.c.tax_rule_no)
    if accounts is not None:
        query = query.where(table.c.billing_account == any_(cast(list(accounts), ARRAY(String))))
    if as_of is not None:
        query = query.where(table.c.recorded_at <= as_of)
    return [
        DatedTaxRules(
            row.billing_account,
            TaxRules(
                TaxMode(row.mode),
                {group: parse_decimal(rate, decimals=PRICE_DECIMALS) for group, rate in row.rates.items()},
                Rounding(row.rounding),
            ),
            row.valid_from,
            row.evidence,
            row.recorded_at,
            row.recorded_by,
        )
        for row in connection.execute(query)
    ]


def in_force(connection: Connection, accounts: Collection[str], tax_point: datetime) -> dict[str, TaxRules]:
    """The rules at a tax point, by billing account; none where nothing was recorded."""
    found = {each.billing_account: each for each in recorded(connection, accounts) if each.valid_from <= tax_point}
    return {name: found[name].rules if name in found else NO_TAX for name in accounts}
