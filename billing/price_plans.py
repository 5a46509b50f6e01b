"""Price plans: dated, immutable versions of charges (docs/spec/money.md 1 and 4). Values only; files: plan_file.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

from billing.errors import NoPriceVersion
from billing.money import PRICE_DECIMALS, exactly, parse_decimal, plain


class Metric(StrEnum):
    """What is counted (docs/spec/money.md 2). Input is uncached; total is input + cached input + output."""

    INPUT = "input"
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    TOTAL_TOKENS = "total_tokens"
    REQUEST = "request"
    GPU_SECOND = "gpu_second"


TOKEN_CLASSES: Final = (Metric.INPUT, Metric.CACHED_INPUT, Metric.OUTPUT)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which usage a charge is for; None takes any value."""

    model: str | None = None
    adapter: str | None = None
    region: str | None = None
    tier: str | None = None

    def take(self, model: str, adapter: str, region: str, tier: str) -> bool:
        """Whether usage with these keys is meant."""
        found = (model, adapter, region, tier)
        return all(wanted in (None, value) for wanted, value in zip(self._wanted(), found, strict=True))

    @property
    def rank(self) -> tuple[int, ...]:
        """Precedence: more filters first, then adapter, model, region, tier. No two charges of a metric tie."""
        given = {name: value is not None for name, value in zip(FILTER_NAMES, self._wanted(), strict=True)}
        return (sum(given.values()), *(given[name] for name in ("adapter", "model", "region", "tier")))

    def _wanted(self) -> tuple[str | None, ...]:
        return (self.model, self.adapter, self.region, self.tier)

    def as_dict(self) -> dict[str, str]:
        """The filters that are given."""
        return {name: value for name, value in zip(FILTER_NAMES, self._wanted(), strict=True) if value is not None}


FILTER_NAMES: Final = tuple(field.name for field in fields(Filters))


@dataclass(frozen=True, slots=True)
class PerUnit:
    """Each unit at one price: `price` major units for `per` units, `per` a power of ten."""

    price: Decimal
    per: int = 1

    @property
    def unit_price(self) -> Decimal:
        """The exact price of one unit."""
        with exactly():
            return self.price.scaleb(-(len(str(self.per)) - 1))


Pricing = PerUnit
"""The charge models that exist. Further ones (graduated, volume, …) join this union and `billing/rating.py`."""


@dataclass(frozen=True, slots=True)
class Charge:
    """One price of a version: what it counts, of which usage, and how it prices it."""

    key: str
    metric: Metric
    where: Filters
    pricing: Pricing


@dataclass(frozen=True, slots=True)
class PlanVersion:
    """The charges in force from `valid_from` until the plan's next version."""

    plan: str
    version: str
    currency: str
    valid_from: datetime
    charges: tuple[Charge, ...]

    def charge_for(self, metric: Metric, *, model: str, adapter: str, region: str, tier: str) -> Charge | None:
        """The most specific charge of a metric for usage with these keys, or None."""
        fitting = [c for c in self.charges if c.metric is metric and c.where.take(model, adapter, region, tier)]
        return max(fitting, key=lambda charge: charge.where.rank, default=None)

    @property
    def metrics(self) -> frozenset[Metric]:
        """Every metric that some charge prices."""
        return frozenset(charge.metric for charge in self.charges)


@dataclass(frozen=True, slots=True)
class PricePlan:
    """A plan with its versions, the earliest first."""

    name: str
    currency: str
    versions: tuple[PlanVersion, ...]


def version_at(versions: Iterable[PlanVersion], at: datetime) -> PlanVersion:
    """The version in force at a moment. Raises NoPriceVersion."""
    begun = [version for version in versions if version.valid_from <= at]
    if not begun:
        raise NoPriceVersion(f"no version of the plan is valid at {at:%Y-%m-%d %H:%M} UTC")
    return max(begun, key=lambda version: version.valid_from)


def unpriced_token_classes(version: PlanVersion) -> tuple[Metric, ...]:
    """Token classes that nothing prices although the version prices others: free by omission, worth a warning."""
    if Metric.TOTAL_TOKENS in version.metrics or not version.metrics & set(TOKEN_CLASSES):
        return ()
    return tuple(metric for metric in TOKEN_CLASSES if metric not in version.metrics)


def differences(applied: PlanVersion, given: PlanVersion) -> list[str]:
    """What a version says otherwise than the applied one of the same name; empty if nothing."""
    found = []
    if applied.valid_from != given.valid_from:
        found.append(f"from is {applied.valid_from:%Y-%m-%dT%H:%MZ}, the file says {given.valid_from:%Y-%m-%dT%H:%MZ}")
    before = {charge.key: charge for charge in applied.charges}
    after = {charge.key: charge for charge in given.charges}
    found += [f"charge {key} is missing from the file" for key in before if key not in after]
    found += [f"charge {key} is new in the file" for key in after if key not in before]
    for key in before.keys() & after.keys():
        old, new = _charge_document(before[key]), _charge_document(after[key])
        found += [
            f"charge {key}: {name} is {old.get(name)}, the file says {new.get(name)}"
            for name in sorted(old.keys() | new.keys())
            if old.get(name) != new.get(name)
        ]
    return found


def version_document(version: PlanVersion) -> dict[str, Any]:
    """The version's content as stored: JSON without numbers that could lose digits."""
    return {"charges": [_charge_document(charge) for charge in version.charges]}


def version_of_document(
    plan: str, currency: str, version: str, valid_from: datetime, document: Mapping[str, Any]
) -> PlanVersion:
    """A stored version."""
    return PlanVersion(plan, version, currency, valid_from, _charges(document["charges"]))


def _charge_document(charge: Charge) -> dict[str, Any]:
    return {
        "key": charge.key,
        "model": "per_unit",
        "metric": charge.metric.value,
        "where": charge.where.as_dict(),
        "price": plain(charge.pricing.price),
        "per": charge.pricing.per,
    }


def _charges(documents: Sequence[Mapping[str, Any]]) -> tuple[Charge, ...]:
    return tuple(
        Charge(
            key=document["key"],
            metric=Metric(document["metric"]),
            where=Filters(**document["where"]),
            pricing=PerUnit(parse_decimal(document["price"], decimals=PRICE_DECIMALS), document["per"]),
        )
        for document in documents
    )
