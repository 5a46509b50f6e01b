"""A month's balances as lines for another ledger, in whole cents, with its account numbers. Values in, values out.

Our books have up to twelve decimals, others two. Opening and closing balances are rounded so that each set adds up to
zero (largest remainder), and the lines are their difference: after every month the other ledger's balance of an account
is ours to less than a cent, and no rounding piles up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import Any, Final

import yaml

from billing.errors import ReportRefused
from billing.ledger.journal import ACCOUNTS
from billing.money import ZERO, currency, exactly, spread, total
from billing.periods import BillingPeriod
from billing.reports.report import Amounts, Report, summed, table, ties

COLUMNS: Final = (
    "document", "posting_date", "account", "cost_center", "currency", "debit", "credit", "our_account", "text",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Target:
    """An account of the other ledger."""

    account: str
    cost_center: str = ""


OWN_CHART: Final[Mapping[int, Target]] = {code: Target(str(code)) for code in ACCOUNTS}


def read_mapping(text: str, *, file: str) -> dict[int, Target]:
    """Our codes → their accounts: `accounts: {1100: "120000", 4000: {account: "800000", cost_center: llm}}`.

    Raises ReportRefused, which names what is wrong.
    """
    try:
        said = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReportRefused(f"{file}: {error}") from None
    listed = said.get("accounts") if isinstance(said, dict) else None
    if not isinstance(listed, dict) or set(said) != {"accounts"}:
        raise ReportRefused(f"{file}: write `accounts:` and below it our codes with theirs")
    found = {}
    for code, given in listed.items():
        target = given if isinstance(given, dict) else {"account": given}
        fields = set(target)
        if code not in ACCOUNTS:
            raise ReportRefused(f"{file}: {code} is no account of ours: `tollbook ledger accounts --chart`")
        if "account" not in fields or fields - {"account", "cost_center"}:
            raise ReportRefused(f"{file}: {code}: give an account, and a cost_center if there is one")
        if not all(isinstance(value, str) and value for value in target.values()):
            raise ReportRefused(f'{file}: {code}: write numbers as texts, "0{code}": zeros in front would be lost')
        found[code] = Target(**target)
    return found


def erp_report(
    opening: Amounts, closing: Amounts, moved: Amounts, span: BillingPeriod, targets: Mapping[int, Target], *,
    legal_entity: str,
) -> Report:  # fmt: skip
    """The lines of a month. All are (currency, account code) → debit less credit; `moved` is summed from the journal.

    Raises ReportRefused where an account that has a balance has no target, or where the books do not balance.
    """
    codes = sorted({int(code) for _, code in (*opening, *closing)})
    if unmapped := [str(code) for code in codes if code not in targets]:
        raise ReportRefused(f"no account is given for {', '.join(unmapped)}: the mapping must have them all")
    rows: list[dict[str, Any]] = []
    before, after = _rounded(opening, span.start), _rounded(closing, span.end)
    last = (span.end - timedelta(microseconds=1)).date()
    for unit, code in sorted(before.keys() | after.keys()):
        with exactly():
            amount = after.get((unit, code), ZERO) - before.get((unit, code), ZERO)
        if amount:
            target = targets[int(code)]
            rows.append(
                {
                    "document": f"{legal_entity}-{span.name}", "posting_date": last, "account": target.account,
                    "cost_center": target.cost_center, "currency": unit, "debit": max(amount, ZERO),
                    "credit": max(-amount, ZERO), "our_account": ACCOUNTS[int(code)].title,
                    "text": f"Tollbook {span.name}",
                }
            )  # fmt: skip
    exact = summed(
        (key, amount * sign) for sign, amounts in ((1, closing), (-1, opening)) for key, amount in amounts.items()
    )
    sides = [summed(((row["currency"], ""), row[side]) for row in rows) for side in ("debit", "credit")]
    return Report(
        "erp",
        table(rows, COLUMNS),
        (*ties("debit = credit", *sides), *ties("each account moved = its postings of the month", exact, moved)),
        ("amounts are in whole cents: each account of the other ledger stays within a cent of ours",),
    )


def _rounded(balances: Amounts, at: Any) -> dict[tuple[str, str], Decimal]:
    found: dict[tuple[str, str], Decimal] = {}
    for unit in sorted({unit for unit, _ in balances}):
        exact = {code: amount for (of, code), amount in balances.items() if of == unit}
        if total(exact.values()):
            raise ReportRefused(f"the books do not balance in {unit}: see `tollbook ledger trial-balance`")
        on: date = at.date()
        parts = spread(ZERO, exact, currency(unit, on).quantum)
        found |= {(unit, code): amount for code, amount in parts.items()}
    return found
