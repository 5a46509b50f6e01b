"""One billing period's lines before credits and tax, in the order of money.md 3."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby

from reconciliation.oracle import fees, models, segments
from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Case, Charge, Usage, Version
from reconciliation.oracle.line import Draw, Line, totals, totals_of
from reconciliation.oracle.models import Used
from reconciliation.oracle.rational import ZERO, at_twelve, pieces_that_add_up
from reconciliation.oracle.segments import Naming, Pair, Segment, Stretch
from reconciliation.oracle.usage import Billable, billable


@dataclass
class Statement:
    """The lines of a period, and what its credits may draw on (only worked out where there are grants)."""

    lines: list[Line] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)


Measured = dict[tuple[str, Pair], list[tuple[Billable, Fraction]]]
"""Per (charge, pair) the events that bill there, each with its units (or its base, for percentage)."""


@dataclass(frozen=True, slots=True)
class PeriodPlan:
    """A period cut into segments and stretches, and how lines are named there."""

    period: Period
    segments: list[Segment]
    stretches: list[Stretch]
    name: Naming

    def version(self, pair: Pair) -> Version:
        return self.segments[pair[0] - 1].plan.versions[pair[1]]

    def charge(self, key: str, pair: Pair) -> Charge:
        return self.version(pair).charges[key]

    def carriers(self, key: str) -> list[tuple[Stretch, Charge]]:
        """The stretches whose version has the charge."""
        return [(s, s.version.charges[key]) for s in self.stretches if key in s.version.charges]


def period_plan(case: Case, period: Period) -> PeriodPlan:
    found = segments.segments_in(period, case.changes)
    return PeriodPlan(period, found, segments.stretches_in(found), Naming(found))


def statement(case: Case, period: Period, usage: Usage) -> Statement:
    """Usage, discounts, minimum, maximum, fees in arrears, invoice discount, true-up: in that order (3)."""
    plan = period_plan(case, period)
    measured = _measured(case, plan, usage)
    lines = _usage_lines(plan, measured)
    lines += fees.in_arrears(plan.period, plan.stretches, plan.name)
    lines += _line_discounts(plan, lines)
    lines += _limits(plan, lines)
    off = _Discounted(plan, lines)
    draws = _draws(plan, measured, lines, off) if case.grants else []
    return Statement(lines + off.lines + _true_up(plan, lines, off), draws)


def _measured(case: Case, plan: PeriodPlan, usage: Usage) -> Measured:
    """Each event whole into the segment that contains its completion, at the version of its completion or start (2)."""
    result: Measured = defaultdict(list)
    for bill in billable(usage, case.contract):
        event = bill.event
        segment = segments.segment_at(plan.segments, event.completed)
        if segment is None:
            continue
        priced_at = event.started if case.contract.price_at == "start" else event.completed
        index = segments.version_at(segment.plan, priced_at)
        for key, charge in segment.plan.versions[index].charges.items():
            if charge.model == "percentage":
                if event.is_request and charge.metric in bill.metrics:
                    result[key, (segment.number, index)].append((bill, bill.metrics[charge.metric]))
            elif charge.counts_usage and bill.metrics.get(charge.metric):
                result[key, (segment.number, index)].append((bill, bill.metrics[charge.metric]))
    return result


def _usage_lines(plan: PeriodPlan, measured: Measured) -> list[Line]:
    uses: dict[str, list[Used]] = {}
    for key, pair in sorted(measured, key=lambda at: (at[0].encode(), at[1])):
        uses.setdefault(key, []).append(_used(plan, measured, key, pair))
    pools = {use.pair: plan.version(use.pair).allowances for listed in uses.values() for use in listed}
    free = models.free_units(uses, pools)
    result = []
    for key, listed in uses.items():
        with_free = [replace(use, free=free.get((key, use.pair), ZERO)) for use in listed]
        result += _cut(plan, key, models.pieces(with_free))
    return result


def _used(plan: PeriodPlan, measured: Measured, key: str, pair: Pair) -> Used:
    charge, portion = plan.charge(key, pair), segments.share_of(plan.segments[pair[0] - 1], plan.period)
    counted = [units for _, units in measured[key, pair]]
    if charge.model == "percentage":
        return Used(pair, charge, ZERO, ZERO, portion, tuple(counted))
    return Used(pair, charge, sum(counted, ZERO), ZERO, portion)


def _cut(plan: PeriodPlan, key: str, pieces: Sequence[models.Piece]) -> list[Line]:
    """Cut at 10⁻¹², cumulatively per (charge, subscription segment), in order of version, then tier (3, 13.2)."""
    result = []
    for _, group in groupby(pieces, key=lambda piece: piece.pair[0]):
        of_segment = list(group)
        amounts = pieces_that_add_up(piece.amount for piece in of_segment)
        for piece, amount in zip(of_segment, amounts, strict=True):
            result.append(
                Line(
                    key=plan.name(key, piece.pair) + piece.suffix,
                    kind="usage",
                    charge=key,
                    pair=piece.pair,
                    group=plan.charge(key, piece.pair).tax_group,
                    amount=amount,
                    quantity=piece.quantity,
                    unit_price=piece.unit_price,
                    free=piece.free,
                    units=piece.units,
                    included=piece.included,
                )
            )
    return result


def _line_discounts(plan: PeriodPlan, lines: Sequence[Line]) -> list[Line]:
    """A share of what the charge costs in the pair, fees included: a line of its own, cut like what it is of (3, 13.1).

    Cumulatively per (charge, subscription segment), in order of version.
    """
    result = []
    costs = sorted(_in_pairs(lines).items(), key=lambda cost: (cost[0][0].encode(), cost[0][1]))
    for (key, _), of_segment in groupby(costs, key=lambda cost: (cost[0][0], cost[0][1][0])):
        found = [(pair, plan.charge(key, pair), amount) for (_, pair), amount in of_segment]
        cut = pieces_that_add_up(-amount * charge.discount for _, charge, amount in found)
        for (pair, charge, _), amount in zip(found, cut, strict=True):
            if amount:
                kind = "discount" if charge.counts_usage else "fee_discount"
                name = plan.name(key, pair) + ".discount"
                result.append(Line(name, kind, key, pair, charge.tax_group, amount))
    return result


def _limits(plan: PeriodPlan, lines: Sequence[Line]) -> list[Line]:
    """Weighted minimums (maximums) of all segments, added, compared once with the charge's total (13.7).

    A stretch whose version sets no maximum leaves the charge without one.
    """
    costs = totals(lines, lambda line: line.charge)
    result = []
    for key in sorted({key for stretch in plan.stretches for key in stretch.version.charges}):
        carriers = plan.carriers(key)
        last = carriers[-1][1]
        if not last.counts_usage:
            continue
        total = costs.get(key, ZERO)
        least = segments.weighted([(stretch, charge.minimum) for stretch, charge in carriers], plan.period)
        if total < least:
            result.append(Line(f"{key}.minimum", "minimum", key, None, last.tax_group, at_twelve(least - total)))
        if all(charge.maximum is not None for _, charge in carriers):
            most = segments.weighted([(stretch, charge.maximum) for stretch, charge in carriers], plan.period)
            if total > most:
                result.append(Line(f"{key}.maximum", "maximum", key, None, last.tax_group, -at_twelve(total - most)))
    return result


class _Discounted:
    """What invoice discounts take off: of each line by the version of its pair, a line per tax group (3, 5).

    Minimum and maximum belong to the last pair that has their charge.
    """

    def __init__(self, plan: PeriodPlan, lines: Sequence[Line]) -> None:
        self._plan = plan
        off = totals_of(lines, lambda line: line.group, self.of)
        groups = sorted(group for group, amount in off.items() if amount)
        amounts = pieces_that_add_up(-off[group] for group in groups)
        key = "invoice_discount"
        several = sum(1 for amount in amounts if amount) > 1
        self.lines = [
            Line(f"{key}.{group}" if several else key, key, "", None, group, amount)
            for group, amount in zip(groups, amounts, strict=True)
            if amount
        ]

    def of(self, line: Line) -> Fraction:
        """What is taken off a line."""
        pair = line.pair or self._plan.carriers(line.charge)[-1][0].pair
        discount = self._plan.version(pair).invoice_discount
        if discount is None or (discount.base != "all" and (discount.base == "fees") != line.is_fee):
            return ZERO
        return line.amount * discount.percent


def _true_up(plan: PeriodPlan, lines: Sequence[Line], off: _Discounted) -> list[Line]:
    """max(0, weighted commitment − Σ committed charges), these after discounts, limits included (4, 13.8).

    Its tax group is that of the charge that is named first.
    """
    commitments = [(stretch, stretch.version.commitment) for stretch in plan.stretches]
    due = segments.weighted([(stretch, one.amount if one else None) for stretch, one in commitments], plan.period)
    keys = [key for _, one in commitments if one for key in one.charges]
    if not keys:
        return []
    committed = sum((line.amount - off.of(line) for line in lines if line.charge in keys), ZERO)
    amount = at_twelve(max(ZERO, due - committed))
    if not amount:
        return []
    groups = [plan.carriers(key)[-1][1].tax_group for key in keys if plan.carriers(key)]
    return [Line("true_up", "true_up", "", None, groups[0] if groups else "std", amount)]


def _draws(plan: PeriodPlan, measured: Measured, lines: Sequence[Line], off: _Discounted) -> list[Draw]:
    """What each charge's usage comes to, over its pairs by their lines, over their events by units (by amount for
    percentage): limits and invoice discounts change all alike. What has no usage counts at the end (6, 13.8)."""
    usage = [line for line in lines if not line.is_fee]
    in_pairs = _in_pairs(usage)
    result = []
    for key, whole in totals_of(usage, lambda line: line.charge, lambda line: line.amount - off.of(line)).items():
        in_charge = sum((amount for (of, _), amount in in_pairs.items() if of == key), ZERO)
        if whole <= 0:
            continue
        if in_charge <= 0:
            charge = plan.carriers(key)[-1][1]
            result.append(Draw(plan.stretches[-1].end - 1, key, charge.tax_group, 0, whole))
            continue
        for (of, pair), amount in in_pairs.items():
            if of == key:
                result += _in_time(plan.charge(key, pair), measured[key, pair], amount * whole / in_charge)
    return [draw for draw in result if draw.value > 0]


def _in_time(charge: Charge, events: Sequence[tuple[Billable, Fraction]], amount: Fraction) -> list[Draw]:
    by_event = charge.model == "percentage"
    parts = [models.of_event(charge, units) if by_event else units for _, units in events]
    whole = sum(parts, ZERO)
    if not whole:
        return []
    return [
        Draw(bill.event.completed, charge.key, charge.tax_group, bill.event.order, amount * part / whole)
        for (bill, _), part in zip(events, parts, strict=True)
    ]


def _in_pairs(lines: Sequence[Line]) -> dict[tuple[str, Pair], Fraction]:
    """What each charge costs in each pair: its lines that belong to one."""
    result: dict[tuple[str, Pair], Fraction] = {}
    for line in lines:
        if line.pair is not None:
            at = (line.charge, line.pair)
            result[at] = result.get(at, ZERO) + line.amount
    return result
