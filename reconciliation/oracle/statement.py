"""One billing period's lines before credits and tax, in the order of money.md 3."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby

from reconciliation.oracle import advance, discounts, fees, models, segments
from reconciliation.oracle.calendar import Period
from reconciliation.oracle.case import Allowance, Case, Charge, Event, Usage, Version
from reconciliation.oracle.discounts import InvoiceDiscounts, in_pairs
from reconciliation.oracle.line import Draw, Line, totals, totals_of
from reconciliation.oracle.models import Used
from reconciliation.oracle.rational import ZERO, at_twelve, pieces_that_add_up
from reconciliation.oracle.segments import Pair, PeriodPlan, Stretch, period_plan
from reconciliation.oracle.usage import Billable, billable


@dataclass
class Statement:
    """The lines of a period, and what its credits may draw on (only worked out where there are grants)."""

    lines: list[Line] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)


Measured = dict[tuple[str, Pair], list[tuple[Billable, Fraction]]]
"""Per (charge, pair) the events that bill there, each with its units (or its base, for percentage)."""


def statement(case: Case, period: Period, usage: Usage) -> Statement:
    """Usage, discounts, minimum, maximum, fees in arrears, invoice discount, true-up: in that order (3)."""
    plan = period_plan(case, period)
    measured = _measured(case, plan, usage)
    lines = _usage_lines(case, plan, measured)
    lines += fees.in_arrears(plan.period, plan.stretches, plan.name)
    in_advance = advance.sums(case, plan)
    lines += discounts.of_charges(plan, lines, in_advance.given)
    lines += _limits(plan, lines)
    off = InvoiceDiscounts(plan, lines, in_advance.given.get("", ZERO))
    by_model = any(grant.models for grant in case.grants)
    draws = _draws(plan, measured, lines, off, by_model) if case.grants else []
    return Statement(lines + off.lines + _true_up(plan, lines, off, in_advance.net), draws)


def accrued(case: Case, period: Period, usage: Usage, until: int) -> list[Line]:
    """What a period that goes on has come to by an instant within it: it is accrued by then, and not billed (1, 9).

    What completed before it costs what it does by the terms of the whole period; fees in arrears are due by the second;
    line discounts are off both. Minimum, maximum, invoice discount and true-up are of a period that is over.
    """
    plan = period_plan(case, period)
    so_far = {
        at: within
        for at, listed in _measured(case, plan, usage).items()
        if (within := [each for each in listed if each[0].event.completed < until])
    }
    lines = _usage_lines(case, plan, so_far)
    over = [replace(one, end=min(one.end, until)) for one in plan.stretches if one.start < until]
    lines += fees.in_arrears(plan.period, over, plan.name)
    return lines + discounts.of_charges(plan, lines, advance.sums(case, plan).given)


def _measured(case: Case, plan: PeriodPlan, usage: Usage) -> Measured:
    """Each event whole into the segment that contains its completion, at the version of its completion or start (2)."""
    result: Measured = defaultdict(list)
    for bill in billable(usage, case.contract):
        event = bill.event
        segment = segments.segment_at(plan.segments, event.completed)
        if segment is None:
            continue
        priced_at = event.started if case.contract.terms_at(event.completed).price_at == "start" else event.completed
        index = segments.version_at(segment.plan, priced_at)
        for key, charge in _taking(segment.plan.versions[index], event):
            if charge.model == "percentage":
                if event.is_request and charge.metric in bill.metrics:
                    result[key, (segment.number, index)].append((bill, bill.metrics[charge.metric]))
            elif charge.counts_usage and bill.metrics.get(charge.metric):
                result[key, (segment.number, index)].append((bill, bill.metrics[charge.metric]))
    return result


def _taking(version: Version, event: Event) -> list[tuple[str, Charge]]:
    """The charges that an event is for: of each metric the most specific ones (docs/pricing.md)."""
    fitting: dict[str, list[tuple[str, Charge]]] = defaultdict(list)
    for key, charge in version.charges.items():
        if charge.counts_usage and charge.where.takes(event):
            fitting[charge.metric].append((key, charge))
    highest = {metric: max(charge.where.rank for _, charge in listed) for metric, listed in fitting.items()}
    return [each for metric, listed in fitting.items() for each in listed if each[1].where.rank == highest[metric]]


def _usage_lines(case: Case, plan: PeriodPlan, measured: Measured) -> list[Line]:
    """Everything that is counted begins anew with each tier period; the lines are those of the billing period (4)."""
    times: dict[Period, dict[str, list[Used]]] = {}
    for key, pair in sorted(measured, key=lambda at: (at[0].encode(), at[1])):
        counted = {other for of, other in measured if of == key}
        for over in plan.times(plan.charge(key, pair), pair):
            within = [(bill, units) for bill, units in measured[key, pair] if bill.event.completed in over]
            if within:
                counters = _counters(plan, key, counted, over)
                use = _used(case, plan, within, key, pair, over, counters)
                times.setdefault(over, {}).setdefault(key, []).append(use)
    costs: dict[str, list[list[models.Piece]]] = {}
    for over in sorted(times):
        uses = times[over]
        pools = {use.pair: _pools(case, plan, use.pair, over) for listed in uses.values() for use in listed}
        free = models.free_units(uses, pools)
        for key, listed in uses.items():
            with_free = [replace(use, free=free.get((key, use.pair), ZERO)) for use in listed]
            costs.setdefault(key, []).append(models.pieces(with_free))
    return [line for key, listed in costs.items() for line in _cut(plan, key, models.over_all_times(listed))]


def _used(
    case: Case,
    plan: PeriodPlan,
    within: Sequence[tuple[Billable, Fraction]],
    key: str,
    pair: Pair,
    over: Period,
    counters: Mapping[int, int],
) -> Used:
    charge, portion = plan.charge(key, pair), segments.share_within(plan.segments[pair[0] - 1], over)
    counter = counters[pair[0]]
    counted = [units for _, units in within]
    if charge.model == "percentage":
        return Used(pair, charge, ZERO, ZERO, portion, counter, tuple(counted))
    if charge.model == "prepaid" and case.contract.weighted_allowances:
        charge = replace(charge, included=_weighted_included(plan, key, counter, over, counters))
    return Used(pair, charge, sum(counted, ZERO), ZERO, portion, counter)


def _counters(plan: PeriodPlan, key: str, counted: Iterable[Pair], over: Period) -> dict[int, int]:
    """By subscription segment the number of a charge's counter: it goes on (`carry`), or begins anew with the segment
    (`reset`, `prorate`), and price versions of one segment share it (4).

    The first version that has the charge in the segment says so, whether anything was used by then or not; one that was
    never in force there, and prices what began before, where no other has it.
    """
    first: dict[int, Charge] = {}
    for stretch, charge in plan.carriers(key):
        if _counts_over(plan, stretch, [key], over):
            first.setdefault(stretch.pair[0], charge)
    for pair in sorted(counted):
        first.setdefault(pair[0], plan.charge(key, pair))
    result, number = {}, 0
    for segment in sorted(first):
        number += first[segment].continuity != "carry"
        result[segment] = number
    return result


def _pools(case: Case, plan: PeriodPlan, pair: Pair, over: Period) -> Sequence[Allowance]:
    """What a pair's version gives free; weighted, where the contract says so: then all stretches' parts are added, as
    minimums are (13.3, 13.7), so that a change that changes nothing leaves it as it is."""
    pools = plan.version(pair).allowances
    if not case.contract.weighted_allowances:
        return pools
    units = [
        (s, {one.pool: one.units for one in s.version.allowances if _counts_over(plan, s, one.charges, over)})
        for s in plan.stretches
    ]
    return [replace(one, units=segments.weighted([(s, of.get(one.pool)) for s, of in units], over)) for one in pools]


def _counts_over(plan: PeriodPlan, stretch: Stretch, keys: Iterable[str], over: Period) -> bool:
    charges = (stretch.version.charges[key] for key in keys if key in stretch.version.charges)
    return any(over in plan.times(charge, stretch.pair) for charge in charges)


def _weighted_included(
    plan: PeriodPlan, key: str, counter: int, over: Period, counters: Mapping[int, int]
) -> Fraction:  # fmt: skip
    """The parts of all stretches that are counted together (4, 13.3)."""
    together = [
        (stretch, charge.included)
        for stretch, charge in plan.carriers(key)
        if _counts_over(plan, stretch, [key], over) and counters[stretch.pair[0]] == counter
    ]
    return segments.weighted(together, over)


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


def _limits(plan: PeriodPlan, lines: Sequence[Line]) -> list[Line]:
    """Weighted minimums (maximums) of all segments, added, compared once with the charge's total (13.7).

    A stretch whose version sets no maximum leaves the charge without one; where none sets a minimum there is none, also
    for what comes to less than nothing. A prepaid charge's fee and overage bear what a maximum takes off by what they
    cost; what a minimum adds is no fee.
    """
    costs = totals(lines, lambda line: line.charge)
    of_fees = totals_of(lines, lambda line: line.charge, lambda line: line.fee)
    result = []
    for key in sorted({key for stretch in plan.stretches for key in stretch.version.charges}):
        carriers = plan.carriers(key)
        last = carriers[-1][1]
        total = costs.get(key, ZERO)
        least = segments.weighted([(stretch, charge.minimum) for stretch, charge in carriers], plan.period)
        if total < least and any(charge.minimum is not None for _, charge in carriers):
            result.append(Line(f"{key}.minimum", "minimum", key, None, last.tax_group, at_twelve(least - total)))
        if all(charge.maximum is not None for _, charge in carriers):
            most = segments.weighted([(stretch, charge.maximum) for stretch, charge in carriers], plan.period)
            if total > most:
                off = -at_twelve(total - most)
                of_fee = off * of_fees[key] / total
                result.append(Line(f"{key}.maximum", "maximum", key, None, last.tax_group, off, of_fee=of_fee))
    return result


def _true_up(
    plan: PeriodPlan, lines: Sequence[Line], off: InvoiceDiscounts, in_advance: Mapping[str, Fraction]
) -> list[Line]:
    """max(0, weighted commitment − Σ committed charges), these after discounts, limits included (4, 13.8), with what
    the period's fees in advance came to: a true-up comes after fees, whenever these are billed (3).

    Its tax group is what the period's first commitment says, or that of the charge that is named first.
    """
    commitments = [(stretch, stretch.version.commitment) for stretch in plan.stretches]
    due = segments.weighted([(stretch, one.amount if one else None) for stretch, one in commitments], plan.period)
    held = [one for _, one in commitments if one]
    keys = [key for one in held for key in one.charges]
    if not held:
        return []
    every = any(not one.charges for one in held)
    committed = sum((line.amount - off.of(line) for line in lines if line.charge in keys), ZERO)
    if every:
        committed += sum((line.usage - off.of_usage(line) for line in lines if line.charge not in keys), ZERO)
    committed += sum((in_advance.get(key, ZERO) for key in {*keys}), ZERO)
    amount = at_twelve(max(ZERO, due - committed))
    if not amount:
        return []
    usage = [key for stretch in plan.stretches for key, one in stretch.version.charges.items() if one.counts_usage]
    groups = [plan.carriers(key)[-1][1].tax_group for key in [*keys, *usage] if plan.carriers(key)]
    group = held[0].tax_group or (groups[0] if groups else "std")
    return [Line("true_up", "true_up", "", None, group, amount)]


def _draws(
    plan: PeriodPlan, measured: Measured, lines: Sequence[Line], off: InvoiceDiscounts, by_model: bool
) -> list[Draw]:
    """What each charge's usage comes to, over its pairs by their lines, over their events by units (by amount for
    percentage): limits and invoice discounts change all alike, and so does what is less than nothing, as a refund.
    What has no usage counts at the end (6, 13.8)."""
    costs = in_pairs(lines, lambda line: line.usage)
    result = []
    for key, whole in totals_of(lines, lambda line: line.charge, lambda line: line.usage - off.of_usage(line)).items():
        in_charge = sum((amount for (of, _), amount in costs.items() if of == key), ZERO)
        if whole <= 0:
            continue
        if in_charge <= 0:
            charge = plan.carriers(key)[-1][1]
            result.append(Draw(plan.stretches[-1].end - 1, key, charge.tax_group, 0, whole))
            continue
        above = {pair: amount for (of, pair), amount in costs.items() if of == key and amount > 0}
        for pair, amount in above.items():
            share = amount / sum(above.values(), ZERO)
            result += _in_time(plan.charge(key, pair), measured[key, pair], share * whole, by_model)
    return [draw for draw in [*result, *_of_fees(plan, lines, off)] if draw.value > 0]


def _of_fees(plan: PeriodPlan, lines: Sequence[Line], off: InvoiceDiscounts) -> list[Draw]:
    """What fees in arrears come to after discounts, when their time begins: as they would be in advance.

    Invoice discounts change all of a charge alike, and so does what is less than nothing, as with its usage.
    """
    begins = {stretch.pair: stretch.start for stretch in plan.stretches}
    of_pairs = [line for line in lines if line.fee and line.pair]
    left = totals_of(lines, lambda line: line.charge, lambda line: line.fee - off.of(line) + off.of_usage(line))
    found = totals_of(
        of_pairs, lambda line: (line.charge, fees.named(plan, line), line.pair, line.group), lambda line: line.fee
    )
    above: dict[str, Fraction] = defaultdict(Fraction)
    for (key, _, _, _), amount in found.items():
        above[key] += max(amount, ZERO)
    return [
        Draw(begins[pair], name, group, 0, amount * left[key] / above[key], fee=True)
        for (key, name, pair, group), amount in found.items()
        if pair and amount > 0
    ]


def _in_time(
    charge: Charge, events: Sequence[tuple[Billable, Fraction]], amount: Fraction, by_model: bool
) -> list[Draw]:
    by_event = charge.model == "percentage"
    parts = [max(ZERO, models.of_event(charge, units) if by_event else units) for _, units in events]
    whole = sum(parts, ZERO)
    if not whole:
        return []
    return [
        Draw(
            bill.event.completed,
            charge.key,
            charge.tax_group,
            bill.event.order,
            amount * part / whole,
            bill.event.names.get("model", "") if by_model else "",
        )
        for (bill, _), part in zip(events, parts, strict=True)
    ]
