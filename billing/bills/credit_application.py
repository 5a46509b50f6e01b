"""Credits that reduce prices, as lines of a document (docs/spec/money.md 3, 6, 13.12).

Values in, values out. Which grant gives for which usage: credits.py; what others pay of the total: payment_credits.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from billing.bills import credits
from billing.bills.credit_notes import Returned, net_by_group
from billing.bills.credits import Grant
from billing.money import ZERO, exactly, total
from billing.rating.lines import LineKind, RatedLine, fees_by_key
from billing.rating.made_lines import credit_line
from billing.rating.period import Coverable


@dataclass(frozen=True, slots=True)
class PriceReductions:
    """Lines that reduce prices, what they draw of each grant (major units), and what they leave to cover."""

    lines: tuple[RatedLine, ...]
    drawn: Mapping[str, Decimal]
    open: tuple[Coverable, ...]


def price_reductions(
    coverable: Sequence[Coverable], grants: Iterable[Grant], left: Mapping[str, Decimal], like: RatedLine | None
) -> PriceReductions:
    """What grants that lower the price take off: a negative line per grant and tax group.

    `left` is what is left of each grant in major units; `like` a line of which they have names and time, None where
    nothing can be covered.
    """
    reducing = [grant for grant in grants if credits.reduces_price(grant)]
    draws = credits.draw(coverable, reducing, {g.grant_id: Fraction(left.get(g.grant_id, ZERO)) for g in reducing})
    amounts = credits.by_grant_and_group(draws)
    groups: dict[str, int] = defaultdict(int)
    for grant_id, _ in amounts:
        groups[grant_id] += 1
    lines: list[RatedLine] = []
    drawn: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for (grant_id, group), amount in amounts.items():
        assert like is not None, "what can be covered stands on some line"
        key = f"credit.{grant_id}" + (f".{group}" if groups[grant_id] > 1 else "")
        lines.append(credit_line(like, key, -amount, group))
        with exactly():
            drawn[grant_id] += amount
    return PriceReductions(tuple(lines), dict(drawn), tuple(credits.after(coverable, draws)))


Written = tuple[RatedLine, int]
"""A line of a document over fees in advance, and its amount there in minor units: 0 where it is on none."""


def given_back_with_fees(
    billed: Sequence[Written], less: Sequence[RatedLine], grants: Iterable[Grant]
) -> list[Returned]:
    """What price reductions give back of fees in advance when these come to less: what they took off beyond what is
    left of the period's fees that they cover, tax group by tax group, the last drawn first, and no more of a tax group
    than is taken back of it: nobody pays by a credit note (docs/decisions/0051).

    `billed`: all lines so far of the documents over a period's fees in advance, and of what lowered or replaced these
    without one; `less` what is taken back of them now.
    """
    known = {grant.grant_id: grant for grant in grants}
    drawn, nets = _drawn_in_advance(billed, known), net_by_group(less)
    lines = [*(line for line, _ in billed), *less]
    first = {(each.line.tax_group, each.grant.grant_id): each.line for each in reversed(drawn)}
    keys = [(id_, line.identity.charge_key) for (group, id_), line in first.items() if group in nets]
    found: list[Returned] = []
    for group in sorted(nets):
        listed = [each for each in drawn if each.line.tax_group == group and each.exact]
        left = fees_by_key(line for line in lines if line.tax_group == group)
        fitting = _fitting(listed, {key: amount for key, amount in left.items() if amount > 0})
        most, of_group = -nets[group], list[Returned]()
        for each, kept in reversed(list(zip(listed, fitting, strict=True))):
            with exactly():
                back = min(-each.exact - kept, most)
                most -= max(back, ZERO)
            if back > 0:
                id_, like = each.grant.grant_id, first[group, each.grant.grant_id]
                key = like.identity.charge_key
                key = f"credit.{id_}.{group}" if keys.count((id_, key)) > 1 else key
                of_group.append(Returned(credit_line(like, key, back, group), (each.exact, each.minor)))
        if of_group and not total(
            line.amount for line in [*lines, *(r.line for r in of_group)] if line.tax_group == group
        ):
            rest = sum(minor for line, minor in billed if line.tax_group == group)
            of_group[-1] = replace(of_group[-1], rest_minor=rest)
        found += of_group
    return found


@dataclass(slots=True)
class _Drawn:
    """What is left of a line of credit on an invoice for fees in advance: negative, exact and in minor units."""

    line: RatedLine
    grant: Grant
    exact: Decimal
    minor: int


def _drawn_in_advance(billed: Iterable[Written], known: Mapping[str, Grant]) -> list[_Drawn]:
    """In order of drawing; a credit note gives back what its grant drew last."""
    found: list[_Drawn] = []
    for line, minor in billed:
        if line.identity.kind != LineKind.CREDIT:
            continue
        grant = known[grant_of(line, known)]
        if line.amount < 0:
            found.append(_Drawn(line, grant, line.amount, minor))
            found.sort(key=lambda each: (each.line.service_start, credits.draw_order(each.grant)))
            continue
        back, touched = line.amount, None
        for each in reversed(found):
            if each.grant is grant and each.line.tax_group == line.tax_group and back > 0 and each.exact:
                if touched is not None:
                    minor, touched.minor = minor + touched.minor, 0
                with exactly():
                    part = min(back, -each.exact)
                    back, each.exact = back - part, each.exact + part
                touched = each
        if touched is not None:
            touched.minor += minor
    return found


def _fitting(drawn: Sequence[_Drawn], left: Mapping[str, Decimal]) -> list[Decimal]:
    """What of each reduction fits the fees left, together with what fits of those before it: these give way to it where
    they cover others, too."""
    free = dict(left)
    on: dict[tuple[int, str], Decimal] = defaultdict(lambda: ZERO)
    covered = [[key for key in sorted(left) if _covers(each, key)] for each in drawn]

    def place(number: int, most: Decimal, seen: set[str]) -> Decimal:
        for key in covered[number]:
            if key in seen:
                continue
            seen.add(key)
            placed = min(most, free[key])
            if placed:
                free[key] -= placed
            for other in range(len(drawn)) if not placed else ():
                if other != number and on[other, key] and (placed := place(other, min(most, on[other, key]), seen)):
                    on[other, key] -= placed
                    break
            if placed:
                on[number, key] += placed
                return placed
        return ZERO

    found: list[Decimal] = []
    with exactly():
        for number, each in enumerate(drawn):
            kept = ZERO
            while kept < -each.exact and (placed := place(number, -each.exact - kept, set())):
                kept += placed
            found.append(kept)
    return found


def _covers(drawn: _Drawn, key: str) -> bool:
    of = Coverable(drawn.line.service_start, key, drawn.line.tax_group, Fraction(1), is_fee=True)
    return drawn.grant.applies_to.covers(of)


def grant_of(line: RatedLine, grant_ids: Iterable[str]) -> str:
    """Whose price reduction a line is. The ids that are known to be among the lines hold no dot."""
    key = line.identity.charge_key
    return next(each for each in grant_ids if key in (f"credit.{each}", f"credit.{each}.{line.tax_group}"))
