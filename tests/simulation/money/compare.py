"""Where two sets of documents differ first, and what kind of difference that is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.money import golden

Plain = Mapping[str, Any]
Rating = Callable[[Plain], list[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Difference:
    """`kind` says what differs without this case's names and numbers, so that equal causes count as one."""

    kind: str
    where: str
    left: object
    right: object


def difference(case: Plain, left: Rating, right: Rating) -> Difference | None:
    """The first difference between what two ratings make of a case; an error is one, whoever raises it."""
    one, other = _outcome(case, left), _outcome(case, right)
    if isinstance(one, str) or isinstance(other, str):
        return Difference(f"error: {one if isinstance(one, str) else other}"[:120], "case", _short(one), _short(other))
    return _in_documents(one, other)


def _outcome(case: Plain, rating: Rating) -> list[dict[str, Any]] | str:
    try:
        return in_order(rating(case))
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _short(outcome: list[dict[str, Any]] | str) -> str:
    return outcome if isinstance(outcome, str) else f"{len(outcome)} documents"


def in_order(documents: Sequence[Plain]) -> list[dict[str, Any]]:
    """By service period, kind and first line: in what order they are issued is not compared."""
    return sorted(
        golden.comparable(documents),
        key=lambda document: (
            document["period"],
            document["doc"],
            document["lines"][0]["key"] if document["lines"] else "",
        ),
    )


def _in_documents(left: Sequence[Plain], right: Sequence[Plain]) -> Difference | None:
    if left == right:
        return None
    names = [[(document["period"], document["doc"]) for document in side] for side in (left, right)]
    if names[0] != names[1]:
        only_left = [name for name in names[0] if name not in names[1]]
        only_right = [name for name in names[1] if name not in names[0]]
        kinds = f"only left {[kind for _, kind in only_left]}, only right {[kind for _, kind in only_right]}"
        return Difference(f"documents: {kinds}", "documents", names[0], names[1])
    for one, other in zip(left, right, strict=True):
        where = f"{one['doc']} {one['period']}"
        found = _in_lines(one, other, where) or _in_fields(one, other, one["doc"], where)
        if found:
            return found
    return None


def _in_lines(left: Plain, right: Plain, where: str) -> Difference | None:
    lines = [{line["key"]: line for line in document["lines"]} for document in (left, right)]
    for key in sorted(lines[0].keys() | lines[1].keys()):
        one, other = lines[0].get(key), lines[1].get(key)
        if one is None or other is None:
            side = "right" if one is None else "left"
            return Difference(f"{left['doc']}: line {kind_of(key)} only {side}", f"{where}, line {key}", one, other)
        found = _in_fields(one, other, f"{left['doc']}: line {kind_of(key)}", f"{where}, line {key}")
        if found:
            return found
    return None


def _in_fields(left: Plain, right: Plain, kind: str, where: str) -> Difference | None:
    for field in sorted((left.keys() | right.keys()) - {"lines"}):
        if left.get(field) != right.get(field):
            return Difference(f"{kind}: {field}", f"{where}, {field}", left.get(field), right.get(field))
    return None


def kind_of(key: str) -> str:
    """A line's key without its names: `adj.u0.s1.v2.t1.fee` → `adj.*.s.v.t.fee`."""
    key = re.sub(r"\b[uf]\d+\b", "*", key)
    key = re.sub(r"\bg\d+\b", "grant", key)
    return re.sub(r"\b([svt])\d+\b", r"\1", key)
