"""R3: rated lines against the second rating of the same usage, tenant by tenant. Values in, values out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from billing.money import ZERO, exactly, plain
from reconciliation.agreement import Check, compare
from reconciliation.close.gates.second_rating import NO_DECIMAL, NotRerated, Used, rated_again
from reconciliation.comparison import Difference, Value

RATED_TWICE = "rated again"
USAGE = "usage"
NAMES = ("model", "adapter", "region", "tier")
DISCOUNT = "invoice_discount"
"""All lines of this kind are one, whatever they are called."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a rated line comes to: amount in major units; its quantity, where it has a price or counts events.

    `charge`: plan, version and charge that it is of, which say its `metric`, and of which `names` (model, adapter,
    region, tier; '' for any) it counts.
    """

    kind: str
    key: str
    tax_group: str
    amount: Decimal
    quantity: Decimal | None
    charge: tuple[str, str, str] = ("", "", "")
    metric: str = ""
    names: tuple[str, str, str, str] = ("", "", "", "")


class RatedTwice:
    """Compares tenants' periods one after another; all that was compared is in `check`."""

    def __init__(self) -> None:
        self._again: dict[str, Value] = {}
        self._rated: dict[str, Value] = {}
        self._hindered: list[Difference] = []

    def add(
        self, where: str, contract: Mapping[str, Any], used: Iterable[Used], lines: Iterable[Told], until: str | None
    ) -> None:
        """Compare a tenant's period, or `until` when it was accrued; what has no reading is a difference by name."""
        try:
            found = rated_again(contract, used, until)
        except NotRerated as error:
            self.hinder(where, error)
            return
        self._again |= {f"{where}/{key}": Decimal(value) for key, value in found.items() if value != NO_DECIMAL}
        told = list(lines)
        for line, name, said, counted in _misnamed(contract, told):
            key = f"{where}/{line.key}/{line.tax_group}/{name}"
            self._again[key], self._rated[key] = counted, said
        first = _sums(told)
        self._rated |= {f"{where}/{key}": value for key, value in first.items() if found.get(key) != NO_DECIMAL}

    def hinder(self, where: str, why: Exception) -> None:
        """What cannot be rated again agrees with nothing."""
        self._hindered.append(Difference(f"{where}/not rated again: {why}", "rated", None))

    def check(self, of: str) -> Check:
        """The second rating `of` some usage against the rated lines."""
        found = compare(RATED_TWICE, of, "rated lines", self._again, self._rated)
        compared, differences = found.compared + len(self._hindered), (*found.differences, *self._hindered)
        return Check(found.name, found.left, found.right, compared, differences)


def _misnamed(contract: Mapping[str, Any], lines: Iterable[Told]) -> Iterator[tuple[Told, str, str, str]]:
    """Lines of usage that say to count what their charge does not: which name, what they say, what it is."""
    charges = {
        (plan, version["version"], charge["key"]): charge
        for plan, versions in contract["plans"].items()
        for version in versions
        for charge in version["charges"]
    }
    for line in lines:
        charge = charges.get(line.charge)
        if line.kind != USAGE or charge is None:
            continue
        where = charge.get("where") or {}
        counted = {"metric": charge.get("metric") or line.metric} | {name: where.get(name) or "" for name in NAMES}
        for (name, value), said in zip(counted.items(), (line.metric, *line.names), strict=True):
            if said != value:
                yield line, name, said, value


def _sums(lines: Iterable[Told]) -> dict[str, Value]:
    """By the keys of `rated_again`; zeros left out."""
    sums: dict[str, Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in lines:
            key = f"{DISCOUNT if line.kind == DISCOUNT else line.key}/{line.tax_group}"
            sums[f"{key}/amount"] += line.amount
            if line.quantity is not None:
                sums[f"{key}/quantity"] += line.quantity
    return {key: Decimal(plain(value)) for key, value in sums.items() if value}
