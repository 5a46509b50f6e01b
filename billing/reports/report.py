"""A report: rows with exact amounts, and the equalities that it states about them. Values in, values out.

Frames hold objects alone: pandas groups and orders them, `money.total` adds them up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pandas as pd

from billing.errors import NotAnAmount
from billing.money import ZERO, exactly, total

Amounts = Mapping[tuple[str, str], Decimal]
"""(currency, what of it) → amount in major units."""


@dataclass(frozen=True, slots=True)
class Tie:
    """What a report comes to in a currency, and what another record has, in major units.

    `differences`: the parts that differ, as (part, reported, recorded).
    """

    name: str
    currency: str
    reported: Decimal
    recorded: Decimal
    differences: tuple[tuple[str, Decimal, Decimal], ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every part is equal, without tolerance."""
        return not self.differences


@dataclass(frozen=True, slots=True)
class Report:
    """A table, what it ties to, and what a reader must know of it."""

    name: str
    table: pd.DataFrame
    ties: tuple[Tie, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether all its ties hold."""
        return all(tie.holds for tie in self.ties)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The table's rows in order."""
        return [{str(name): value for name, value in row.items()} for row in self.table.to_dict("records")]


def ties(name: str, reported: Amounts, recorded: Amounts) -> tuple[Tie, ...]:
    """One tie for each currency, over all parts of both; one that says 0 = 0 where there is nothing."""
    found = []
    for currency in sorted({key[0] for key in (*reported, *recorded)}) or [""]:
        parts = sorted({part for code, part in (*reported, *recorded) if code == currency})
        pairs = [(part, reported.get((currency, part), ZERO), recorded.get((currency, part), ZERO)) for part in parts]
        found.append(
            Tie(
                name, currency, total(pair[1] for pair in pairs), total(pair[2] for pair in pairs),
                tuple(pair for pair in pairs if pair[1] != pair[2]),
            )
        )  # fmt: skip
    return tuple(found)


def summed(amounts: Iterable[tuple[tuple[str, str], Decimal]]) -> dict[tuple[str, str], Decimal]:
    """Amounts added up by key."""
    found: dict[tuple[str, str], Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for key, amount in amounts:
            found[key] += amount
    return dict(found)


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    """Rows as a frame of objects with just these columns. Raises NotAnAmount for a float."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float):
                raise NotAnAmount(f"{name} {value!r} is a float: a report is exact")
    return pd.DataFrame([[row[name] for name in columns] for row in rows], columns=list(columns), dtype=object)


def grouped(frame: pd.DataFrame, by: Sequence[str], amounts: Sequence[str]) -> pd.DataFrame:
    """The exact sums of some columns by others, in their order."""
    if frame.empty:
        return frame[[*by, *amounts]]
    found = frame.groupby(list(by), sort=True, dropna=False)
    rows = [
        dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        | {name: total(part[name]) for name in amounts}
        for key, part in found
    ]
    return table(rows, [*by, *amounts])


def pivoted(frame: pd.DataFrame, by: Sequence[str], column: str, amount: str, order: Sequence[str]) -> pd.DataFrame:
    """The exact sums of `amount` by `by`, a column for each of `order`, and their sum as `amount`."""
    sums = grouped(frame, [*by, column], [amount])
    if sums.empty:
        return table([], [*by, *order, amount])
    wide = sums.pivot(index=list(by), columns=column, values=amount).reindex(columns=list(order))
    rows = []
    for key, row in zip(wide.index, wide.itertuples(index=False), strict=True):
        cells = [value if isinstance(value, Decimal) else ZERO for value in row]
        named = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
        rows.append(named | dict(zip(order, cells, strict=True)) | {amount: total(cells)})
    return table(rows, [*by, *order, amount])
