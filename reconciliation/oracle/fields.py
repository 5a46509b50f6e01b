"""Fields of plain data: those that are known, and how a value is read. An unknown one is an error, never ignored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

Plain = Mapping[str, Any]
Read = TypeVar("Read")


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class CaseError(ValueError):
    """The case says something that no rule here reads; `where` is the path to it."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)  # as given, so that it can go from process to process

    def __str__(self) -> str:
        return ": ".join(self.args)


def only(plain: Plain, known: frozenset[str], where: str) -> None:
    if not plain.keys() <= known:
        raise CaseError(where, f"unknown field {', '.join(sorted(plain.keys() - known))}")


def each(plain: Sequence[Plain], known: str, where: str) -> Sequence[Plain]:
    for one in plain:
        only(one, words(known), where)
    return plain


def one_of(value: Any, allowed: Iterable[str], where: str) -> Any:
    if value not in allowed:
        raise CaseError(where, f"{value!r} is none of {', '.join(sorted(allowed))}")
    return value


def optional(plain: Plain, key: str, read: Callable[[Any], Read]) -> Read | None:
    return read(plain[key]) if key in plain else None


def spread(plain: Plain, field: str) -> list[Plain]:
    """One entry for each key that `"l001..l250"` stands for; any other entry alone."""
    match = re.fullmatch(r"([a-z]*)(\d+)\.\.([a-z]*)(\d+)", str(plain.get(field, "")))
    if not match:
        return [plain]
    prefix, first, _, last = match.groups()
    return [{**plain, field: f"{prefix}{n:0{len(first)}d}"} for n in range(int(first), int(last) + 1)]
