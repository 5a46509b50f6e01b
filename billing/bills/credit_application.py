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
from billing.bills.credit_notes import net_by_group
from billing.bills.credits import Grant
from billing.money import ZERO, exactly
from billing.rating.lines import LineIdentity, LineKind, RatedLine
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


def given_back_with_fees(
    billed: Iterable[RatedLine], less: Sequence[RatedLine], grants: Iterable[Grant]
) -> tuple[list[RatedLine], list[LineIdentity]]:
    """What price reductions give back of a document over fees in advance when these come to less: what they take off
    beyond what is left of the fees, tax group by tax group, the last drawn first (docs/decisions/0051).

    `billed`: all lines of the document and its credit notes so far, `less` what is taken back of them now. With the
    lines come back those of them, one for a tax group, after which nothing is left of the group.
    """
    billed, known = list(billed), {grant.grant_id: grant for grant in grants}
    drawn: dict[tuple[str, str], list[RatedLine]] = defaultdict(list)
    for line in billed:
        if line.identity.kind == LineKind.CREDIT:
            drawn[line.tax_group, grant_of(line, known)].append(line)
    left = net_by_group([*billed, *less])
    found: list[RatedLine] = []
    closing = []
    for group in sorted({line.tax_group for line in less}):
        beyond = -left[group]
        for grant in sorted(known.values(), key=credits.draw_order, reverse=True):
            listed = drawn.get((group, grant.grant_id), [])
            with exactly():
                back = min(beyond, -sum((line.amount for line in listed), ZERO))
                if back > 0:
                    found.append(replace(listed[0], amount=back))
                    beyond -= back
                    closing += [listed[0].identity] if not beyond else []
    return found, closing


def grant_of(line: RatedLine, grant_ids: Iterable[str]) -> str:
    """Whose price reduction a line is. The ids that are known to be among the lines hold no dot."""
    key = line.identity.charge_key
    return next(each for each in grant_ids if key in (f"credit.{each}", f"credit.{each}.{line.tax_group}"))
