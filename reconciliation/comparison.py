"""Two records of the same thing, compared without tolerance."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V", int, Decimal, str)


@dataclass(frozen=True, slots=True)
class Difference(Generic[K, V]):
    """One key on which two records do not agree; None where a record does not have the key."""

    key: K
    left: V | None
    right: V | None


def differences(left: Mapping[K, V], right: Mapping[K, V]) -> list[Difference[K, V]]:
    """Every key whose values differ, or that only one side has, in order of the keys.

    Zero and absent are not the same: a record that should be there and is not is a difference.
    """
    keys = sorted(left.keys() | right.keys(), key=repr)
    return [Difference(key, left.get(key), right.get(key)) for key in keys if left.get(key) != right.get(key)]
