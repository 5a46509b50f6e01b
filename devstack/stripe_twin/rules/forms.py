"""Form bodies and query strings in Stripe's bracket syntax, decoded to nested values.

``a[b]=1`` is a hash, ``a[]=1`` an array, ``a[0]=1`` an array or a hash with the key "0": only the parameter's
type tells which, so numbered keys stay a hash here and ``rules.parameters`` decides.
Source: docs.stripe.com/api ("accepts form-encoded request bodies"); the nesting is Rack's.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl

from devstack.stripe_twin.errors import StripeError, invalid

Form = dict[str, "FormValue"]
FormValue = str | list["FormValue"] | Form

MAX_DEPTH = 16
"""Deeper than any of Stripe's parameters; bounds recursion on hostile input."""

MAX_PAIRS = 50_000
"""250 lines with fifty metadata pairs each need about 15,000 pairs."""

_SEGMENTS = re.compile(r"\[([^\[\]]*)\]")


def decode(text: str) -> Form:
    """Decode ``a=1&b[c]=2``. A scalar given twice keeps its last value. Raises StripeError (400)."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PAIRS)
    except ValueError:
        raise invalid("Invalid request: the body is not a valid form in UTF-8, or is too large.") from None
    form: Form = {}
    for name, value in pairs:
        path = _path(name)
        if path is not None:
            _assign(form, path, value, name)
    return form


def _path(name: str) -> list[str] | None:
    """``a[b][]`` → ["a", "b", ""]; a name without a head (``[x]``) is dropped, as Rack does."""
    head, bracket, _ = name.partition("[")
    if not bracket:
        return [name] if name else None
    rest = name[len(head) :]
    segments = _SEGMENTS.findall(rest)
    if not head or "".join(f"[{segment}]" for segment in segments) != rest:
        return [name]
    if len(segments) >= MAX_DEPTH:
        raise invalid("Invalid request: parameters are nested too deeply.", head)
    return [head, *segments]


def _assign(container: Form, path: list[str], value: str, name: str) -> None:
    key, rest = path[0], path[1:]
    if not rest:
        if isinstance(container.get(key), dict | list):
            raise _conflict(name, "String")
        container[key] = value
    elif rest[0] == "":
        array = container.setdefault(key, [])
        if not isinstance(array, list):
            raise _conflict(name, "Array")
        _append(array, rest[1:], value, name)
    else:
        inner = container.setdefault(key, {})
        if not isinstance(inner, dict):
            raise _conflict(name, "Hash")
        _assign(inner, rest, value, name)


def _append(array: list[FormValue], path: list[str], value: str, name: str) -> None:
    """``a[][x]=1&a[][y]=2&a[][x]=3`` is two hashes: a new one starts when a key comes again."""
    if not path:
        array.append(value)
        return
    last = array[-1] if array else None
    if not isinstance(last, dict) or _holds(last, path):
        last = {}
        array.append(last)
    _assign(last, path, value, name)


def _holds(container: Form, path: list[str]) -> bool:
    value: FormValue | None = container
    for key in path:
        if key == "" or not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _conflict(name: str, expected: str) -> StripeError:
    return invalid(f"Invalid request: `{name}` is used both as {expected} and as something else.", name)
