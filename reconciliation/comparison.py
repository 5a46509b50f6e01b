"""Two records of the same thing, compared without tolerance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from billing.money import plain

Value = int | Decimal | str


@dataclass(frozen=True, slots=True)
class Difference:
    """One key on which two records do not agree; None where a record does not have the key."""

    key: str
    left: Value | None
    right: Value | None


def differences(left: Mapping[str, Value], right: Mapping[str, Value]) -> list[Difference]:
    """Every key whose values differ, or that only one side has, in order of the keys.

    Zero and absent are not the same: a record that should be there and is not is a difference.
    """
    keys = sorted(left.keys() | right.keys())
    return [
        Difference(key, _as_told(left.get(key)), _as_told(right.get(key)))
        for key in keys
        if left.get(key) != right.get(key)
    ]


def _as_told(value: Value | None) -> Value | None:
    """Without the zeros behind a number that its column's scale leaves."""
    return Decimal(plain(value)) if isinstance(value, Decimal) else value


def multiset_differences(key: str, left: Counter[str], right: Counter[str]) -> list[Difference]:
    """Entries that only one of two multisets has, each as often as it has it more."""
    missing = [Difference(f"{key}/{entry}", entry, None) for entry in (left - right).elements()]
    extra = [Difference(f"{key}/{entry}", None, entry) for entry in (right - left).elements()]
    return missing + extra
