"""Late usage: re-rate(all) − billed, per tax group (money.md 7, 13.15)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from reconciliation.oracle.line import Line, totals
from reconciliation.oracle.rational import ZERO


def differences(billed: Sequence[Line], rerated: Sequence[Line]) -> list[Line]:
    """A line `adj.` + key for every line that changed: same unit price → delta, other unit price → another key (4).

    A price reduction has a line for each tax group (13.12): one that is drawn for another group by now is two changes,
    and the key of the group that was not billed first ends with its name. Where it was billed as the only group's, and
    is one of several by now, both are that one line.
    """
    before = {(line.key, line.group): line for line in billed}
    after = {(line.key, line.group): line for line in rerated}
    first: dict[str, str] = {}
    for key, group in [*sorted(before), *sorted(after)]:
        first.setdefault(key, group)
    lines = _together(
        _difference(before.get(at), after.get(at), "" if first[at[0]] == at[1] else f".{at[1]}")
        for at in sorted(before.keys() | after.keys())
    )
    return [line for line in lines if line.amount or line.quantity or line.units or line.free or line.included]


def _together(lines: Iterable[Line]) -> list[Line]:
    """Price reductions of one key are one line."""
    found: dict[str, Line] = {}
    others: list[Line] = []
    for line in lines:
        if not _reduces(line):
            others.append(line)
        elif line.key in found:
            found[line.key] = replace(line, amount=found[line.key].amount + line.amount)
        else:
            found[line.key] = line
    return [*others, *found.values()]


def _difference(before: Line | None, after: Line | None, ending: str) -> Line:
    line = after or before
    if line is None:
        raise ValueError("a difference of nothing with nothing")

    def delta(of: Callable[[Line], Fraction | None]) -> Fraction | None:
        old, new = of(before) if before else None, of(after) if after else None
        return None if old is None and new is None else (new or ZERO) - (old or ZERO)

    return Line(
        key=f"adj.{line.key}{ending}",
        kind="adjustment",
        charge=line.charge,
        pair=line.pair,
        group=line.group,
        amount=delta(lambda one: one.amount) or ZERO,
        quantity=delta(lambda one: one.quantity),
        unit_price=line.unit_price,
        free=delta(lambda one: one.free) or ZERO,
        units=delta(lambda one: one.units),
        included=delta(lambda one: one.included),
    )


def netted(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """(lines of groups that come to more, lines of groups that come to less); a group that nets to nothing has none.

    But what is drawn of a grant is shown (6): where price reductions differ in such a group, it goes by what they are
    of; where that comes to nothing either, as one grant gives for another, with the other groups: those that come to
    more, else those that come to less.
    """
    net = totals(lines, _group)
    of_usage = totals([line for line in lines if not _reduces(line)], _group)
    given = totals(filter(_reduces, lines), lambda line: (line.group, line.key.removesuffix(f".{line.group}")))
    drawn = {group for (group, _), amount in given.items() if amount}
    for group in drawn:
        net[group] = net[group] or of_usage.get(group, ZERO)
    others = max(net.values(), default=ZERO) or min(net.values(), default=ZERO)
    for group in drawn:
        net[group] = net[group] or others
    return [line for line in lines if net[line.group] > 0], [line for line in lines if net[line.group] < 0]


def _reduces(line: Line) -> bool:
    return not line.charge and line.key.startswith("adj.credit.")


def _group(line: Line) -> str:
    return line.group
