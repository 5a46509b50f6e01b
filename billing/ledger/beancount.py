"""The journal as a Beancount ledger: for people who check it with a program that is not ours. Text only, no database.

https://beancount.github.io/docs/beancount_language_syntax.html. Debit positive, 12 decimals, balance assertions without
tolerance. Beancount knows days: an entry bears the UTC day of its effective time, and a `balance` of a day holds at
that day's beginning, so it equals our balance as of that midnight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Final

from billing.ledger.journal import ACCOUNTS, AccountType
from billing.ledger.journal_chain import BookedEntry, written_time
from billing.money import LINE_DECIMALS

ROOTS: Final[Mapping[AccountType, str]] = {
    AccountType.ASSET: "Assets",
    AccountType.LIABILITY: "Liabilities",
    AccountType.INCOME: "Income",
    AccountType.CONTRA_INCOME: "Income",
    AccountType.EXPENSE: "Expenses",
}
_PLAIN: Final = re.compile("[A-Za-z0-9]")
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": " ", "\t": "\\t"})


@dataclass(frozen=True, slots=True)
class AssertedBalance:
    """What an account comes to at the beginning of a UTC day: debit positive, major units."""

    on: date
    code: int
    subledger: str
    currency: str
    amount: Decimal


def account_name(code: int, subledger: str = "") -> str:
    """`Assets:1150-UnbilledReceivable:S-acme-2Dinc`: one name for each account, and one account for each name.

    Of a subledger letters and digits stay; any other character is written as `-` and two hexadecimal digits for each
    byte of its UTF-8 form. (Beancount takes letters, digits and `-`.)
    """
    account = ACCOUNTS[code]
    title = "".join(part.capitalize() for part in account.name.split("_"))
    name = f"{ROOTS[account.type]}:{code}-{title}"
    if not subledger:
        return name
    return f"{name}:S-" + "".join(
        char if _PLAIN.fullmatch(char) else "".join(f"-{byte:02X}" for byte in char.encode()) for char in subledger
    )


def ledger(legal_entity: str, entries: Iterable[BookedEntry], balances: Iterable[AssertedBalance]) -> Iterator[str]:
    """The lines of a Beancount file. Entries come in order of their effective time."""
    yield f'option "title" {quoted(f"Tollbook, legal entity {legal_entity}")}\n'
    known: set[tuple[int, str]] = set()
    for entry in entries:
        day = entry.effective_at.astimezone(UTC).date()
        for leg in entry.legs:
            if (leg.code, leg.subledger) not in known:
                known.add((leg.code, leg.subledger))
                yield f"\n{day} open {account_name(leg.code, leg.subledger)}\n"
                if leg.subledger:
                    yield f"  subledger: {quoted(leg.subledger)}\n"
        yield from _transaction(day, entry)
    for asserted in balances:
        name = account_name(asserted.code, asserted.subledger)
        yield f"\n{asserted.on} balance {name}  {_amount(asserted.amount)} ~ 0 {asserted.currency}\n"


def _transaction(day: date, entry: BookedEntry) -> Iterator[str]:
    yield f"\n{day} * {quoted(entry.kind)} {quoted(entry.idempotency_key)}\n"
    about: dict[str, str | None] = {
        "entry": str(entry.entry_id),
        "effective": written_time(entry.effective_at),
        "recorded": written_time(entry.recorded_at),
        "period": entry.accounting_period,
        "original-period": entry.original_period,
        "reverses": None if entry.reverses is None else str(entry.reverses),
    }
    for key, value in about.items():
        if value is not None:
            yield f"  {key}: {quoted(value)}\n"
    for leg in entry.legs:
        yield f"  {account_name(leg.code, leg.subledger)}  {_amount(leg.amount)} {leg.currency}\n"


def quoted(text: str) -> str:
    """A Beancount string."""
    return f'"{text.translate(_ESCAPES)}"'


def month_starts(first: datetime, last: datetime) -> list[date]:
    """The first days of the months after `first`, up to the one that follows `last`."""
    found, at = [], first.astimezone(UTC).date().replace(day=1)
    while at <= last.astimezone(UTC).date():
        at = date(at.year + at.month // 12, at.month % 12 + 1, 1)
        found.append(at)
    return found


def _amount(amount: Decimal) -> str:
    return f"{amount:.{LINE_DECIMALS}f}"
