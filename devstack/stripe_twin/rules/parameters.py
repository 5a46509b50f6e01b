"""Requests checked against Stripe's published parameter names and types.

The source is the installed SDK's own ``stripe.params`` TypedDicts, generated from Stripe's OpenAPI
specification for the pinned API version: a misspelt parameter fails here as it does at Stripe
(docs.stripe.com/error-codes: parameter_unknown, parameter_missing, parameter_invalid_integer,
parameter_invalid_empty).
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cache
from typing import Any, Literal

from stripe import RequestOptions

from devstack.stripe_twin.errors import StripeError, invalid, parameter_missing
from devstack.stripe_twin.rules.forms import Form, FormValue
from devstack.stripe_twin.rules.metadata import check_pair

MAX_STRING = 5000
"""Stripe's general limit on strings ("Max length: 5000" throughout its OpenAPI specification)."""

LONG_STRINGS = {f"evidence[{name}]": 20_000 for name in ("access_activity_log", "uncategorized_text")}
"""Those that the specification lets be longer."""

_INTEGER = re.compile(r"-?\d{1,19}\Z")
_DECIMAL = re.compile(r"-?\d{1,24}(\.\d+)?\Z")
DECIMAL_PLACES = 12

_SDK_ONLY = frozenset(RequestOptions.__annotations__)
"""Keys that the SDK's TypedDicts carry for the call itself (``api_key``, …); they are never sent."""


@dataclass(frozen=True)
class Shape:
    """What a parameter may be. A union has several parts set, as in ``created: {gt, gte, lt, lte} | int``."""

    scalar: type | None = None
    choices: tuple[str, ...] = ()
    fields: dict[str, Shape] | None = field(default=None, hash=False)
    required: frozenset[str] = frozenset()
    items: Shape | None = None
    is_map: bool = False
    emptyable: bool = False


@cache
def shape_of(typed_dict: type) -> Shape:
    """The shape that a ``stripe.params`` TypedDict describes, nested ones included."""
    # A TypedDict's annotations include inherited ones, which do not resolve in its own module: hence a
    # stand-in class in that module with the rest.
    own = {name: hint for name, hint in typed_dict.__annotations__.items() if name not in _SDK_ONLY}
    stand_in = type(typed_dict.__name__, (), {"__annotations__": own, "__module__": typed_dict.__module__})
    fields = {name: _shape(hint) for name, hint in typing.get_type_hints(stand_in).items()}
    required = frozenset(typed_dict.__required_keys__) & fields.keys()  # type: ignore[attr-defined]
    return Shape(fields=fields, required=required)


def _shape(hint: Any) -> Shape:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        merged = Shape()
        for argument in arguments:
            merged = _merge(merged, _shape(argument))
        return merged
    if origin is Literal:
        values = tuple(value for value in arguments if value != "")
        return Shape(choices=values, emptyable="" in arguments)
    if origin is list:
        return Shape(items=_shape(arguments[0]))
    if origin is dict:
        return Shape(is_map=True)
    if hint in (str, int, bool, float, Decimal):
        return Shape(scalar=hint)
    if isinstance(hint, type) and hasattr(hint, "__required_keys__"):
        return shape_of(hint)
    return Shape()  # UntypedStripeObject and the like: SDK-side alternatives of a map


def _merge(a: Shape, b: Shape) -> Shape:
    return replace(
        a,
        scalar=a.scalar or b.scalar,
        choices=a.choices + b.choices,
        fields=a.fields if a.fields is not None else b.fields,
        required=a.required | b.required,
        items=a.items or b.items,
        is_map=a.is_map or b.is_map,
        emptyable=a.emptyable or b.emptyable,
    )


def check(typed_dict: type, form: Form, required: tuple[str, ...] = ()) -> dict[str, Any]:
    """Typed values for a decoded form, or the error that Stripe would give (nothing has run by then).

    An empty string stands for "unset" and stays "". ``required`` adds names that Stripe requires although the
    SDK marks them optional.
    """
    return _check_fields(shape_of(typed_dict), form, "", frozenset(required))


def _check_fields(shape: Shape, form: Form, prefix: str, required: frozenset[str]) -> dict[str, Any]:
    assert shape.fields is not None
    unknown = [name for name in form if name not in shape.fields]
    if unknown:
        raise _unknown(unknown, shape.fields, prefix)
    for name in sorted(shape.required | required):
        if name not in form:
            raise parameter_missing(_join(prefix, name))
    return {name: _check(shape.fields[name], value, _join(prefix, name)) for name, value in form.items()}


def _join(prefix: str, name: str) -> str:
    return f"{prefix}[{name}]" if prefix else name


def _unknown(unknown: list[str], known: dict[str, Shape], prefix: str) -> StripeError:
    names = [_join(prefix, name) for name in unknown]
    message = f"Received unknown parameter{'s' if len(names) > 1 else ''}: {', '.join(names)}"
    near = difflib.get_close_matches(unknown[0], known, n=1)
    if len(unknown) == 1 and near:
        message += f". Did you mean {near[0]}?"
    return invalid(message, names[0], "parameter_unknown")


def _check(shape: Shape, value: FormValue, name: str) -> Any:
    if isinstance(value, str):
        return _check_string(shape, value, name)
    if isinstance(value, dict):
        if shape.fields is not None:
            return _check_fields(shape, value, name, frozenset())
        if shape.is_map:
            return {key: check_pair(key, entry, name) for key, entry in value.items()}
        if shape.items is not None and all(key.isdecimal() for key in value):
            ordered = sorted(value.items(), key=lambda pair: int(pair[0]))
            return [_check(shape.items, entry, f"{name}[{key}]") for key, entry in ordered]
        raise invalid("Invalid array" if shape.items is not None else f"Invalid string: {value}", name)
    if shape.items is None:
        raise invalid("Invalid object" if shape.fields is not None or shape.is_map else "Invalid string", name)
    return [_check(shape.items, entry, f"{name}[{index}]") for index, entry in enumerate(value)]


def _check_string(shape: Shape, value: str, name: str) -> Any:
    if value == "":
        if shape.emptyable or (shape.scalar is str and not shape.choices):
            return ""
        raise _empty(name)
    if value in shape.choices:
        return value
    if shape.scalar is None or (shape.choices and shape.scalar is str):
        if shape.choices:
            raise invalid(f"Invalid {name}: must be one of {_listed(shape.choices)}", name)
        raise invalid("Invalid array" if shape.items is not None else "Invalid object", name)
    return _scalar(shape.scalar, value, name)


def _scalar(kind: type, value: str, name: str) -> Any:
    if kind is int:
        if not _INTEGER.match(value):
            raise invalid(f"Invalid integer: {value}", name, "parameter_invalid_integer")
        return int(value)
    if kind is bool:
        if value not in ("true", "false"):
            raise invalid(f"Invalid boolean: {value}", name)
        return value == "true"
    if kind in (float, Decimal):
        if not _DECIMAL.match(value):
            raise invalid(f"Invalid decimal: {value}", name)
        number = Decimal(value)
        if -int(number.normalize().as_tuple().exponent) > DECIMAL_PLACES:
            raise invalid(f"Invalid decimal: {value}; must have at most 12 decimal places", name)
        return number
    most = LONG_STRINGS.get(name, MAX_STRING)
    if len(value) > most:
        raise invalid(f"Invalid string: {value[:20]}…; must be at most {most} characters", name)
    return value


def _empty(name: str) -> StripeError:
    return invalid(
        f"You passed an empty string for '{name}'. We assume empty values are an attempt to unset a "
        f"parameter; however '{name}' cannot be unset. You should remove '{name}' from your request or "
        "supply a non-empty value.",
        name,
        "parameter_invalid_empty",
    )


def _listed(choices: tuple[str, ...]) -> str:
    if len(choices) < 3:
        return " or ".join(choices)
    return f"{', '.join(choices[:-1])}, or {choices[-1]}"
