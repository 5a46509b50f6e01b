"""One billing period's lines before credits and tax, in the order of money.md 3."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import groupby

from reconciliation.oracle import fees, models, segments
from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Case, Charge, InvoiceDiscount, Usage
from reconciliation.oracle.line import Draw, Line, totals
from reconciliation.oracle.models import Used
from reconciliation.oracle.rational import ONE, ZERO, at_twelve, pieces_that_add_up
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

    def charge(self, key: str, pair: Pair) -> Charge:
        return self.segments[pair[0] - 1].plan.versions[pair[1]].charges[key]

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
    lines += _line_discounts(plan, lines)
    lines += _limits(plan, lines)
    draws = _draws(plan, measured, lines) if case.grants else []
    lines += fees.in_arrears(plan.period, plan.stretches, plan.name)
    discount = plan.stretches[-1].version.invoice_discount if plan.stretches else None
    if discount and discount.base != "fees":
        draws = [Draw(d.completed, d.charge, d.group, d.order, d.value * (ONE - discount.percent)) for d in draws]
    return Statement(lines + _invoice_discount(discount, lines) + _true_up(plan, lines, discount), draws)


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
                if event.is_request:
                    result[key, (segment.number, index)].append((bill, bill.metrics[charge.metric]))
            elif charge.counts_usage and bill.metrics.get(charge.metric):
                result[key, (segment.number, index)].append((bill, bill.metrics[charge.metric]))
    return result


def _usage_lines(plan: PeriodPlan, measured: Measured) -> list[Line]:
    uses = {
        at: (plan.charge(*at), sum((units for _, units in events), ZERO) if not _by_event(plan, at) else ZERO)
        for at, events in measured.items()
    }
    free = models.free_units(uses, _pools(plan, uses))
    result = []
    by_charge = sorted(uses, key=lambda at: (at[0].encode(), at[1]))
    for key, at_pairs in groupby(by_charge, key=lambda at: at[0]):
        used = [
            Used(
                pair,
                uses[key, pair][0],
                uses[key, pair][1],
                free.get((key, pair), ZERO),
                segments.share_of(plan.segments[pair[0] - 1], plan.period),
                tuple(base for _, base in measured[key, pair]) if _by_event(plan, (key, pair)) else (),
            )
            for _, pair in at_pairs
        ]
        result += _cut(plan, key, models.pieces(used))
    return result


def _by_event(plan: PeriodPlan, at: tuple[str, Pair]) -> bool:
    return plan.charge(*at).model == "percentage"


def _pools(plan: PeriodPlan, pairs: Iterable[tuple[str, Pair]]) -> dict[Pair, dict[str, tuple[str, Fraction]]]:
    """What each pair's version gives free: charge → (pool, units)."""
    result = {}
    for pair in {pair for _, pair in pairs}:
        version = plan.segments[pair[0] - 1].plan.versions[pair[1]]
        result[pair] = {key: (pool.pool, pool.units) for pool in version.allowances for key in pool.charges}
    return result


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
    """A share of what the charge costs in the pair, a line of its own (3, 13.1)."""
    result = []
    for (key, pair), amount in _in_pairs(lines).items():
        charge = plan.charge(key, pair)
        if charge.discount and amount:
            result.append(
                Line(
                    key=plan.name(key, pair) + ".discount",
                    kind="discount",
                    charge=key,
                    pair=pair,
                    group=charge.tax_group,
                    amount=-at_twelve(amount * charge.discount),
                )
            )
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


def _invoice_discount(discount: InvoiceDiscount | None, lines: Sequence[Line]) -> list[Line]:
    """What the discount in force at the period's end takes off what its base names, a line per tax group (3, 5)."""
    if discount is None:
        return []
    bases = totals([line for line in lines if _in_base(discount, line)], lambda line: line.group)
    groups = sorted(group for group, base in bases.items() if base)
    amounts = pieces_that_add_up(bases[group] * discount.percent for group in groups)
    key = "invoice_discount"
    return [
        Line(key if len(groups) == 1 else f"{key}.{group}", key, "", None, group, -amount)
        for group, amount in zip(groups, amounts, strict=True)
        if amount
    ]


def _in_base(discount: InvoiceDiscount, line: Line) -> bool:
    return discount.base == "total" or (discount.base == "fees") == line.is_fee


def _true_up(plan: PeriodPlan, lines: Sequence[Line], discount: InvoiceDiscount | None) -> list[Line]:
    """max(0, weighted commitment − Σ committed charges), these after discounts, limits included (4, 13.8)."""
    commitments = [(stretch, stretch.version.commitment) for stretch in plan.stretches]
    due = segments.weighted([(stretch, one.amount if one else None) for stretch, one in commitments], plan.period)
    keys = {key for _, one in commitments if one for key in one.charges}
    if not keys:
        return []
    committed = sum((line.amount for line in lines if line.charge in keys), ZERO)
    if discount:
        off = sum((line.amount for line in lines if line.charge in keys and _in_base(discount, line)), ZERO)
        committed -= off * discount.percent
    if committed >= due:
        return []
    groups = {charge.tax_group for key in keys for _, charge in plan.carriers(key)}
    group = "std" if len(groups) != 1 else groups.pop()
    return [Line("true_up", "true_up", "", None, group, at_twelve(due - committed))]


def _draws(plan: PeriodPlan, measured: Measured, lines: Sequence[Line]) -> list[Draw]:
    """Each event's part of its pair's lines, by units (by amount for percentage); a maximum lowers all alike."""
    in_pairs = _in_pairs(lines)
    in_charges = totals([line for line in lines if line.pair], lambda line: line.charge)
    lowered = totals([line for line in lines if line.kind == "maximum"], lambda line: line.charge)
    result = []
    for (key, pair), events in measured.items():
        charge = plan.charge(key, pair)
        net = in_pairs.get((key, pair), ZERO)
        if lowered.get(key) and in_charges[key]:
            net *= (in_charges[key] + lowered[key]) / in_charges[key]
        parts = [models.of_event(charge, units) if charge.model == "percentage" else units for _, units in events]
        whole = sum(parts, ZERO)
        if not whole or not net:
            continue
        for (bill, _), part in zip(events, parts, strict=True):
            event = bill.event
            result.append(Draw(event.completed, key, charge.tax_group, event.order, net * part / whole))
    return result


def _in_pairs(lines: Sequence[Line]) -> dict[tuple[str, Pair], Fraction]:
    """What each charge costs in each pair: its lines that belong to one."""
    result: dict[tuple[str, Pair], Fraction] = {}
    for line in lines:
        if line.pair is not None:
            at = (line.charge, line.pair)
            result[at] = result.get(at, ZERO) + line.amount
    return result
