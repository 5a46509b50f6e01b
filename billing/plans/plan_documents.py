"""Plan versions as JSON documents, as they are stored, and what makes two versions differ.

A document has the fields that a plan file has. What is at its default is left out, so that a further field never
changes what is stored already. Numbers are text: JSON's would lose digits.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, Final, TypeVar, cast, get_args, get_origin, get_type_hints

from billing.money import PRICE_DECIMALS, parse_decimal, plain
from billing.periods import rfc3339
from billing.plans.charge_models import MODELS
from billing.plans.price_plans import (
    Allowance,
    Charge,
    Commitment,
    Filters,
    InvoiceDiscount,
    PlanVersion,
    PricePlan,
    Terms,
)

T = TypeVar("T")

FILE_NAMES: Final = {"since": "from"}
"""Fields that a file calls otherwise than the class."""


def version_document(version: PlanVersion) -> dict[str, Any]:
    """The version's content as stored."""
    found: dict[str, Any] = {"charges": [charge_document(charge) for charge in version.charges]}
    for name in ("allowances", "invoice_discount", "commitment"):
        value = getattr(version, name)
        if value:
            found[name] = _document(value)
    return found


def version_of_document(
    plan: str, currency: str, version: str, valid_from: datetime, document: Mapping[str, Any]
) -> PlanVersion:
    """A stored version. Raises NotAnAmount, KeyError or ValueError if the document is none."""
    discount, commitment = document.get("invoice_discount"), document.get("commitment")
    return PlanVersion(
        plan,
        version,
        currency,
        valid_from,
        charges=tuple(charge_of_document(charge) for charge in document["charges"]),
        allowances=tuple(construct(Allowance, given) for given in document.get("allowances", ())),
        invoice_discount=construct(InvoiceDiscount, discount) if discount else None,
        commitment=construct(Commitment, commitment) if commitment else None,
    )


def terms_document(terms: Terms) -> dict[str, Any]:
    """Terms as stored: what differs from the defaults."""
    found: dict[str, Any] = _document(terms)
    return found


def terms_of_document(document: Mapping[str, Any]) -> Terms:
    """Stored terms."""
    return construct(Terms, document)


def charge_document(charge: Charge) -> dict[str, Any]:
    """A charge with its model's parameters beside the rest."""
    own: dict[str, Any] = _document(charge)
    pricing: dict[str, Any] = own.pop("pricing")
    where = own.pop("where", {})
    return {"key": own.pop("key"), "model": charge.pricing.model, "metric": own.pop("metric"), "where": where} | (
        pricing | own
    )


def charge_of_document(document: Mapping[str, Any]) -> Charge:
    """A stored charge."""
    own = {name: document[name] for name in _hints(Charge) if name in document and name not in ("where", "pricing")}
    return Charge(
        where=construct(Filters, document.get("where", {})),
        pricing=construct(MODELS[document["model"]], document),
        **{name: value_of(_hints(Charge)[name], raw) for name, raw in own.items()},
    )


def construct(of: type[T], document: Mapping[str, Any]) -> T:
    """A value of a plan's classes from its fields; fields that the class does not have are left alone."""
    hints = _hints(cast(Hashable, of))
    named = {name: FILE_NAMES.get(name, name) for name in hints}
    return of(**{name: value_of(hints[name], document[key]) for name, key in named.items() if key in document})


def value_of(hint: Any, raw: Any) -> Any:
    """A stored value as the type that a field has."""
    hint = without_none(hint)
    if raw is None:
        return None
    if get_origin(hint) is tuple:
        return tuple(value_of(get_args(hint)[0], item) for item in raw)
    if hint is Decimal:
        return parse_decimal(raw, decimals=PRICE_DECIMALS)
    if hint is datetime:
        return datetime.fromisoformat(raw)
    if isinstance(hint, type) and is_dataclass(hint):
        return construct(hint, raw)
    return hint(raw)


def without_none(hint: Any) -> Any:
    """The type of an optional field without its None."""
    if isinstance(hint, UnionType) and type(None) in get_args(hint):
        (hint,) = [each for each in get_args(hint) if each is not type(None)]
    return hint


@cache
def _hints(of: Any) -> dict[str, Any]:
    hints = get_type_hints(of)
    return {field.name: hints[field.name] for field in fields(of)}


def _document(value: Any) -> Any:
    if isinstance(value, Decimal):
        return plain(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tuple):
        return [_document(item) for item in value]
    if is_dataclass(value):
        return {
            FILE_NAMES.get(field.name, field.name): _document(getattr(value, field.name))
            for field in fields(value)
            if getattr(value, field.name) != _default(field)
        }
    return value


def _default(field: Field[Any]) -> Any:
    return MISSING if field.default is MISSING else field.default


def plan_differences(applied: PricePlan, given: PricePlan) -> list[str]:
    """What a plan says otherwise than the applied one beside its versions: its currency and terms, which it keeps."""
    before, after = (
        {"currency": plan.currency, **{name: _document(getattr(plan.terms, name)) for name in _hints(Terms)}}
        for plan in (applied, given)
    )
    return _told_apart("", before, after)


def differences(applied: PlanVersion, given: PlanVersion) -> list[str]:
    """What a version says otherwise than the applied one of the same name; empty if nothing."""
    found = []
    if applied.valid_from != given.valid_from:
        found.append(f"from is {rfc3339(applied.valid_from)}, the file says {rfc3339(given.valid_from)}")
    before = {charge.key: charge for charge in applied.charges}
    after = {charge.key: charge for charge in given.charges}
    found += [f"charge {key} is missing from the file" for key in before if key not in after]
    found += [f"charge {key} is new in the file" for key in after if key not in before]
    for key in before.keys() & after.keys():
        found += _told_apart(f"charge {key}: ", charge_document(before[key]), charge_document(after[key]))
    old, new = version_document(applied), version_document(given)
    del old["charges"], new["charges"]
    return found + _told_apart("", old, new)


def _told_apart(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [
        f"{what}{name} is {old.get(name)}, the file says {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
