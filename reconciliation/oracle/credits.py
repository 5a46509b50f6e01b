"""Credits: which grant pays for which usage (money.md 3, 6, 13.8, 13.12)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from reconciliation.oracle.case import Case, Grant
from reconciliation.oracle.line import Draw, Line
from reconciliation.oracle.rational import ZERO, half_even, pieces_that_add_up

_NEVER = 1 << 62


@dataclass(frozen=True, slots=True)
class Reduced:
    """Lines of price reductions, the grant of each, what each grant gave, and what of the usage is left to pay."""

    lines: list[Line]
    grants: list[Grant]
    used: dict[str, Fraction]
    draws: list[Draw]


def in_draw_order(case: Case, *treatments: str) -> list[Grant]:
    """Priority, earlier expiry (none last), unpaid before paid, granted_at, id (6); of the account's currency (1)."""
    grants = [
        grant for grant in case.grants if grant.treatment in treatments and grant.currency == case.account.currency
    ]
    return sorted(
        grants,
        key=lambda grant: (
            grant.priority,
            _NEVER if grant.expires is None else grant.expires,
            grant.kind == "paid",
            grant.granted_at,
            grant.id.encode(),
        ),
    )


def price_reductions(case: Case, draws: Sequence[Draw], left: Mapping[str, Fraction]) -> Reduced:
    """The first pass: before tax, one line per grant and tax group, by the usage it was drawn for (13.12).

    What was taxed when it was sold is in it, so that it is not taxed again.
    """
    grants = in_draw_order(case, "price_reduction", "taxed_at_sale")
    taken, rest = _drawn(grants, draws, {grant.id: left[grant.id] for grant in grants})
    lines, of_lines, used = [], [], {}
    for grant in grants:
        groups = sorted(group for of, group in taken if of == grant.id)
        amounts = pieces_that_add_up(taken[grant.id, group] for group in groups)
        used[grant.id] = sum(amounts, ZERO)
        for group, amount in zip(groups, amounts, strict=True):
            key = f"credit.{grant.id}" if len(groups) == 1 else f"credit.{grant.id}.{group}"
            lines.append(Line(key, "credit", "", None, group, -amount))
            of_lines.append(grant)
    return Reduced(lines, of_lines, used, rest)


def payments(
    case: Case, draws: Sequence[Draw], left: Mapping[str, Fraction], gross_of: Mapping[str, Fraction], most: int
) -> list[tuple[str, int]]:
    """The second pass, after tax: (grant, quanta it pays), together at most `most` quanta.

    `gross_of` turns a group's exact amount into the rounded gross of the invoice, in quanta, so that a grant that
    covers all of an invoice pays it to the last cent.
    """
    grants = in_draw_order(case, "payment")
    quantum = case.account.quantum
    whole_left = {grant.id: Fraction(left[grant.id] // quantum) for grant in grants}
    payable = [replace(draw, value=draw.value * gross_of.get(draw.group, ZERO)) for draw in draws]
    taken, _ = _drawn(grants, payable, whole_left)
    result = []
    total, before = ZERO, 0
    for grant in grants:
        total += sum((amount for (of, _), amount in taken.items() if of == grant.id), ZERO)
        after = min(half_even(total), max(most, 0))
        if after > before:
            result.append((grant.id, after - before))
        before = max(before, after)
    return result


def _drawn(
    grants: Sequence[Grant], draws: Sequence[Draw], left: dict[str, Fraction]
) -> tuple[dict[tuple[str, str], Fraction], list[Draw]]:
    """Event by event in order of completion, from what is valid then.

    Returns: (grant, group) → amount, and the draws with what of them is left to pay.
    """
    taken: dict[tuple[str, str], Fraction] = defaultdict(Fraction)
    if not grants:
        return taken, list(draws)
    rest = []
    for draw in sorted(draws, key=lambda draw: (draw.completed, draw.charge.encode(), draw.model, draw.order)):
        open_value = draw.value
        for grant in grants:
            if open_value > 0 and left[grant.id] > 0 and _covers(grant, draw):
                amount = min(open_value, left[grant.id])
                taken[grant.id, draw.group] += amount
                left[grant.id] -= amount
                open_value -= amount
        rest.append(replace(draw, value=open_value))
    return taken, rest


def covers_fee(grant: Grant, name: str) -> bool:
    """All fees, or this one by its name (6)."""
    return grant.fees or name in grant.charges


def _covers(grant: Grant, draw: Draw) -> bool:
    """Valid in [usable, expires) by usage time; without applicability all usage charges (6, 13.8, 13.12)."""
    meant = covers_fee(grant, draw.charge) if draw.fee else grant.usage or draw.charge in grant.charges
    return meant and (
        grant.usable_from is not None
        and grant.usable_from <= draw.completed
        and (grant.expires is None or draw.completed < grant.expires)
        and (grant.models is None or draw.model in grant.models)
    )
