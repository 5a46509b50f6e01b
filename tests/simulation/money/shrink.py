"""A case made smaller, part by part, as long as it still shows the same kind of difference."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

Plain = dict[str, Any]
MOST_TRIES = 3000
"""Bound on the ratings spent; a case of sixty events needs a few hundred."""


def shrunk(case: Plain, still: Callable[[Plain], bool]) -> Plain:
    """A case for which `still` holds and of which no single part can be left out any more (within the bound)."""
    tries = 0
    found = True
    while found:
        found = False
        for candidate in smaller(case):
            tries += 1
            if tries > MOST_TRIES:
                return case
            if still(candidate):
                case, found = candidate, True
                break
    return case


def smaller(case: Plain) -> Iterator[Plain]:
    """Each with one part less, the parts that take most with them first."""
    for key in ("late", "credits", "prior_credits", "contract", "usage"):
        if key in case:
            yield _without(case, [key])
    yield from _fewer(case, ["usage"], 0)
    if "late" in case:
        yield from _fewer(case, ["late"], 1)
        yield from _fewer_late(case)
    yield from _fewer(case, ["credits"], 0)
    yield from _fewer(case, ["subscription"], 1)
    for name in list(case["plan"]):
        if not any(change.get("plan") == name for change in case["subscription"]):
            yield _without(case, ["plan", name])
        yield from _fewer(case, ["plan", name], 1)
    for key in sorted({charge["key"] for version in _versions(case) for charge in version["charges"]}):
        yield _without_charge(case, key)
    for field in ("allowances", "commitment", "invoice_discount", "recorded"):
        yield from _without_field(case, field, _versions)
    for field in ("discount", "minimum", "maximum", "tier_continuity", "tier_period", "tax_group", "where"):
        yield from _without_field(case, field, _charges)
    for field in ("tax", "stripe_minimum", "quantum"):
        if field in case["account"]:
            yield _without(case, ["account", field])
    for field in list(case.get("contract", {})):
        yield _without(case, ["contract", field])
    for field in ("periods", "anchor_months"):
        if len(case.get(field, ())) > 1:
            candidate = copy.deepcopy(case)
            del candidate[field][-1]
            yield candidate


def _versions(case: Plain) -> list[Plain]:
    return [version for versions in case["plan"].values() for version in versions]


def _charges(case: Plain) -> list[Plain]:
    return [charge for version in _versions(case) for charge in version["charges"]]


def _at(case: Plain, path: list[str]) -> Any:
    found: Any = case
    for step in path:
        found = found.get(step, {})
    return found


def _without(case: Plain, path: list[str]) -> Plain:
    candidate = copy.deepcopy(case)
    del _at(candidate, path[:-1])[path[-1]]
    return candidate


def _fewer(case: Plain, path: list[str], least: int) -> Iterator[Plain]:
    """Halves of the list left out, then single entries."""
    size = len(_at(case, path))
    for first, last in [(0, size // 2), (size // 2, size), *((i, i + 1) for i in range(size))]:
        if first < last and size - (last - first) >= least:
            candidate = copy.deepcopy(case)
            del _at(candidate, path)[first:last]
            yield candidate


def _fewer_late(case: Plain) -> Iterator[Plain]:
    for number, batch in enumerate(case["late"]):
        for fewer in _fewer(batch, ["usage"], 1):
            yield {**case, "late": [*case["late"][:number], fewer, *case["late"][number + 1 :]]}


def _without_charge(case: Plain, key: str) -> Plain:
    candidate = copy.deepcopy(case)
    for version in _versions(candidate):
        version["charges"] = [charge for charge in version["charges"] if charge["key"] != key]
    return candidate


def _without_field(case: Plain, field: str, parts: Callable[[Plain], list[Plain]]) -> Iterator[Plain]:
    if any(field in part for part in parts(case)):
        candidate = copy.deepcopy(case)
        for part in parts(candidate):
            part.pop(field, None)
        yield candidate
