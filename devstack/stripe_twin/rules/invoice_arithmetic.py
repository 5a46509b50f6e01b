"""The arithmetic of an invoice: a line's amount, the totals, and what finalizing does to the balance.

Sources: docs.stripe.com/api/invoices/object (amount_due, starting_balance, ending_balance),
docs.stripe.com/api/invoiceitems (``unit_amount_decimal`` × ``quantity``),
docs.stripe.com/billing/customer/balance (a credit lowers and a debt raises the next finalized invoice; an
amount due below the smallest or above the largest chargeable amount is moved to the balance and the invoice
is paid). Amounts are integers in the currency's minor unit; a negative balance is a credit of the customer.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from enum import StrEnum

_EXACT = Context(prec=80, rounding=ROUND_HALF_UP)
"""Wide enough for 24 + 12 digits times 24 + 12 digits: the product is exact, only the last step rounds."""


def line_amount(unit_amount_decimal: Decimal, quantity: Decimal) -> int:
    """``unit_amount_decimal`` × ``quantity``, rounded per line to the minor unit, halves away from zero."""
    return int(_EXACT.multiply(unit_amount_decimal, quantity).to_integral_value(ROUND_HALF_UP, _EXACT))


class BalanceMove(StrEnum):
    """Types of customer balance transactions that finalizing creates."""

    APPLIED = "applied_to_invoice"
    TOO_SMALL = "invoice_too_small"
    TOO_LARGE = "invoice_too_large"


@dataclass(frozen=True)
class Settlement:
    """What an invoice demands once its customer's balance is taken into account."""

    amount_due: int
    ending_balance: int
    moves: tuple[tuple[BalanceMove, int], ...]

    @property
    def is_paid(self) -> bool:
        """Nothing is left to pay, so finalizing pays it."""
        return self.amount_due == 0


def settle(total: int, starting_balance: int, minimum: int, maximum: int) -> Settlement:
    """Apply the balance to ``total``, then move what cannot be charged to the balance.

    Always ``amount_due + ending_balance == total + starting_balance`` up to the sign rule: nothing is lost.
    """
    owed = total + starting_balance
    after_applying = min(owed, 0)
    moves: list[tuple[BalanceMove, int]] = []
    if after_applying != starting_balance:
        moves.append((BalanceMove.APPLIED, after_applying - starting_balance))
    due = max(owed, 0)
    if 0 < due < minimum:
        return Settlement(0, due, (*moves, (BalanceMove.TOO_SMALL, due)))
    if due > maximum:
        return Settlement(0, due, (*moves, (BalanceMove.TOO_LARGE, due)))
    return Settlement(due, after_applying, tuple(moves))
