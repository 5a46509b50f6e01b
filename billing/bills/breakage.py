"""What of paid credits is expected never to be used (docs/spec/money.md 6; decision 34). Values in, values out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction

from billing.money import ZERO, quantise_line


@dataclass(frozen=True, slots=True)
class BreakageEstimate:
    """From `valid_from` on a legal entity expects that this share of what is paid is never used; None: it does not
    say so before expiry."""

    legal_entity: str
    share: Decimal | None
    valid_from: datetime
    document: str
    recorded_at: datetime | None = None
    recorded_by: str = ""


def share_at(estimates: Iterable[BreakageEstimate], legal_entity: str, at: datetime) -> Decimal | None:
    """The share in force at a moment, of estimates in order of recording; None where breakage is known at expiry."""
    latest: BreakageEstimate | None = None
    for each in estimates:
        if each.legal_entity == legal_entity and each.valid_from <= at:
            latest = each if latest is None or each.valid_from >= latest.valid_from else latest
    return None if latest is None else latest.share


def expected_breakage(*, drawn: Decimal, left: Decimal, share: Decimal) -> Decimal:
    """What is recognised of a credit's breakage by when so much of it was drawn, in major units, at 10⁻¹².

    In proportion to what is used of what is expected to be used (IFRS 15 B46): with a share s never used each unit
    drawn brings s / (1 − s) with it, all in all never more than is left.
    """
    if drawn <= 0 or left <= 0:
        return ZERO
    return min(left, quantise_line(Fraction(drawn) * Fraction(share) / (1 - Fraction(share))))
