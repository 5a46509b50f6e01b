"""Top-ups: how much credit is bought where it runs low (docs/decisions/0020-top-ups.md). Values in, values out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from billing.money import ZERO, exactly


@dataclass(frozen=True, slots=True)
class TopUpRule:
    """From `valid_from` on, where less than `below` is left, `amount` is bought, `monthly_limit` in a month at most.

    Amounts in major units of `currency`. What is bought expires after `expires_months`, None: never.
    """

    billing_account: str
    currency: str
    below: Decimal
    amount: Decimal
    monthly_limit: Decimal
    valid_from: datetime
    expires_months: int | None = None
    rule_no: int = 0


def top_ups_due(rule: TopUpRule, *, left: Decimal, bought: Decimal) -> int:
    """How many top-ups bring what is left to the rule's bound, as far as what was bought in the month lets them."""
    with exactly():
        missing, allowed = rule.below - left, rule.monthly_limit - bought
    if missing <= ZERO or allowed <= ZERO:
        return 0
    wanted, possible = (Fraction(amount) / Fraction(rule.amount) for amount in (missing, allowed))
    return min(math.ceil(wanted), math.floor(possible))
