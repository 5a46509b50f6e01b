"""Late usage of a period that is billed: what must still be billed or given back (docs/spec/money.md 7, 13.15).

Values in, values out. Adjustment = rated from all that is known − billed, netted per tax group of the original period:
what is owed goes on the next invoice, what is owed back is a credit note.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final

from billing.bills.credit_notes import net_by_group
from billing.bills.tax import NO_TAX, TaxRules
from billing.money import LINE_STEP, ZERO, exactly
from billing.periods import BillingPeriod
from billing.rating.differences import difference, net
from billing.rating.lines import LineIdentity, LineKind, RatedLine
from billing.rating.period import Coverable, RatedPeriod

ADJUSTMENT: Final = "adj."
"""How the key of an adjustment line begins; what follows is the key of the line that it changes."""
_REPRICED: Final = ".repriced"


@dataclass(frozen=True, slots=True)
class Adjusted:
    """Lines that a billed period still needs, by key: of the tax groups that are owed more, and of those owed less."""

    more: Mapping[str, RatedLine]
    less: Mapping[str, RatedLine]


@dataclass(frozen=True, slots=True)
class Waiting:
    """What the next invoice carries of an earlier period: lines by key, what credits can cover of them, at which tax.

    `drawn`: what its price reductions draw of each grant beyond what was billed, in major units. `then`: what credits
    can cover of its tax groups once it is billed.
    """

    period: BillingPeriod
    lines: Mapping[str, RatedLine]
    open: tuple[Coverable, ...] = ()
    tax: TaxRules = NO_TAX
    drawn: Mapping[str, Decimal] = field(default_factory=dict)
    then: tuple[Coverable, ...] = ()

    def fits(self, tax: TaxRules) -> bool:
        """Whether a document under other rules can carry it: as long as tax meets prices the same way."""
        return (self.tax.mode, self.tax.rounding) == (tax.mode, tax.rounding)

    def dated(self, tax: TaxRules) -> Waiting:
        """The same under the rules of the document that carries it: groups whose rate is another one now keep theirs
        under a name of their own (tax point, docs/spec/money.md 7). `tax` then has the rates of both."""
        changed = {
            group: f"{group}@{self.period.name}"
            for group in {line.tax_group for line in self.lines.values()}
            if group in self.tax.rates and self.tax.rates[group] != tax.rates.get(group)
        }
        rates = {**tax.rates, **{name: self.tax.rates[group] for group, name in changed.items()}}
        return replace(
            self,
            lines={
                key: replace(line, tax_group=changed.get(line.tax_group, line.tax_group))
                for key, line in self.lines.items()
            },
            open=tuple(replace(of, tax_group=changed.get(of.tax_group, of.tax_group)) for of in self.open),
            tax=replace(tax, rates=rates),
        )


def plain_group(tax_group: str) -> str:
    """The tax group of a line whose rate is that of an earlier period."""
    return tax_group.partition("@")[0]


def adjusted(
    rated: Iterable[RatedLine], billed: Iterable[RatedLine], key_of: Callable[[LineIdentity], str]
) -> Adjusted:
    """What brings a period from what was billed to what it is rated at; groups that come to nothing are left out.

    But what is drawn stands on a document (6): of such a group of which a grant takes off more or less than was billed,
    it goes by what that is taken off of, as credits take off whole what came late. Where that comes to nothing, too, as
    one grant only takes the place of another, it goes with the period's other changes (docs/decisions/0063).
    """
    rated, billed = list(rated), list(billed)
    changes = [line for line in difference(rated, billed) if not _is_nothing(line)]
    first = _first_groups(net(billed).values(), rated)
    nets = net_by_group(changes)
    used = net_by_group([line for line in changes if line.identity.kind != LineKind.CREDIT])
    drawn = _drawn_otherwise(changes)
    nets |= {group: used.get(group, ZERO) for group in drawn if not nets[group]}
    others = max(nets.values(), default=ZERO) or min(nets.values(), default=ZERO)
    nets |= {group: others for group in drawn if not nets[group]}
    keyed: dict[str, RatedLine] = {}
    for line in changes:
        key = ADJUSTMENT + key_of(line.identity)
        # So has one that is of another tax group by now: a price reduction, an invoice discount, a true-up.
        if first[line.identity] != line.tax_group:
            key += f".{line.tax_group}"
        if key in keyed and line.identity.kind == LineKind.CREDIT:
            # Billed as the only tax group's that its grant took off, and one of several by now
            with exactly():
                keyed[key] = replace(line, amount=keyed[key].amount + line.amount)
        else:  # a line that is reversed and billed anew at another price has two
            keyed[key if key not in keyed else key + _REPRICED] = line
    keyed = {key: line for key, line in keyed.items() if line.amount or line.identity.kind != LineKind.CREDIT}
    return Adjusted(
        {key: line for key, line in keyed.items() if nets[line.tax_group] > 0},
        {key: line for key, line in keyed.items() if nets[line.tax_group] < 0},
    )


def _is_nothing(line: RatedLine) -> bool:
    """Whether all that a line changes is a last digit of free units, which were quantised anew beside other lines."""
    if line.quantity or line.amount or line.units or line.included:
        return False
    return not line.split[1] if line.split else abs(line.free) <= LINE_STEP


def _drawn_otherwise(changes: Iterable[RatedLine]) -> set[str]:
    """The tax groups of which some grant takes off more or less than was billed, whatever its lines are called: a key
    ends with the tax group where its grant takes off several (docs/spec/money.md 13.12)."""
    changed: dict[tuple[str, str], Decimal] = defaultdict(lambda: ZERO)
    with exactly():
        for line in changes:
            if line.identity.kind == LineKind.CREDIT:
                key = line.identity.charge_key.removesuffix(f".{line.tax_group}")
                changed[line.tax_group, key] += line.amount
    return {group for (group, _), amount in changed.items() if amount}


def _first_groups(billed: Iterable[RatedLine], rated: Iterable[RatedLine]) -> dict[LineIdentity, str]:
    """The tax group of each line that its key stands for: the first that was billed, or is rated."""
    found: dict[LineIdentity, str] = {}
    for lines in (billed, rated):
        for line in sorted(lines, key=lambda line: line.tax_group):
            found.setdefault(line.identity, line.tax_group)
    return found


def changed_key(key: str) -> str:
    """The key of the line that an adjustment line changes; at another price it is a line of its own."""
    return key.removeprefix(ADJUSTMENT)


def dated_key(key: str, period: BillingPeriod) -> str:
    """The key of a line of an earlier period where its document has another line of that key."""
    return f"{key}@{period.start:%Y-%m-%d}"


def of_period(key: str, period: BillingPeriod) -> str:
    """The key of a line of a period as it is among that period's lines."""
    return key.removesuffix(dated_key("", period))


def as_billed(
    rated: RatedPeriod, lines: Sequence[RatedLine], open_: Iterable[Coverable], changed: Mapping[str, RatedLine]
) -> RatedPeriod:
    """A period as it was billed (its lines, what credits can still cover), but the tax groups of what changed as they
    are rated now."""
    groups = {line.tax_group for line in changed.values()}
    return RatedPeriod(
        (
            *(line for line in lines if line.tax_group not in groups),
            *(line for line in rated.lines if line.tax_group in groups),
        ),
        (
            *(of for of in open_ if of.tax_group not in groups),
            *(of for of in rated.coverable if of.tax_group in groups),
        ),
    )
