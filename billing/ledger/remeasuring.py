"""What exchange rates did to the balances of a month (docs/decisions/0019-exchange-rates.md). Values in, values out.

What is owned and owed in another currency is worth what its rate says at the month's end; what moved it was worth what
the rate said then. The difference is a gain or a loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Final

from billing.ledger.journal import AccountCode
from billing.money import ZERO, exactly, quantise_line

MONETARY: Final = frozenset(
    {
        AccountCode.STRIPE_BALANCE_CLEARING,
        AccountCode.STRIPE_CUSTOMER_CASH,
        AccountCode.BANK,
        AccountCode.SUSPENSE,
        AccountCode.ACCOUNTS_RECEIVABLE,
        AccountCode.UNBILLED_RECEIVABLE,
        AccountCode.DISPUTE_RECEIVABLE,
        AccountCode.CUSTOMER_CREDIT_BALANCE,
        AccountCode.TAX_PAYABLE,
        AccountCode.REFUNDS_PAYABLE,
    }
)
"""Money, and what is settled in money. What is owed in service (2100, 2110) is not (IFRIC 22): it keeps the rate of the
day on which it was paid."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What entries moved in a currency while one rate held: monetary accounts, and 1190; debit positive."""

    currency: str
    rate: Fraction
    monetary: Decimal
    clearing: Decimal = ZERO


def loss(
    opening: Mapping[str, Decimal],
    moved: Iterable[Moved],
    *,
    rate_before: Callable[[str], Fraction],
    rate_after: Callable[[str], Fraction],
) -> Decimal:
    """What a month's rates cost in the functional currency (a gain is negative), at 10⁻¹².

    `opening`: monetary balances by foreign currency at its start. An exchange books what it gave against what it got
    on 1190: what the two differ by at the rates of that moment was lost by it.
    """
    closing = dict(opening)
    worth = sum((Fraction(amount) * rate_before(code) for code, amount in opening.items() if amount), Fraction(0))
    exchanged = Fraction(0)
    for each in moved:
        with exactly():
            closing[each.currency] = closing.get(each.currency, ZERO) + each.monetary
        worth += Fraction(each.monetary) * each.rate
        exchanged += Fraction(each.clearing) * each.rate
    now = sum((Fraction(amount) * rate_after(code) for code, amount in closing.items() if amount), Fraction(0))
    return quantise_line(worth - now + exchanged)
