"""What discounts take off, of a charge and of an invoice (money.md 3, 5, 13.1, 13.8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from itertools import groupby

from reconciliation.oracle.case import Charge, Discount
from reconciliation.oracle.line import Line, totals_of
from reconciliation.oracle.rational import ZERO, pieces_that_add_up
from reconciliation.oracle.segments import Pair, PeriodPlan, number_in_contract


def in_force(discount: Discount | None, plan: PeriodPlan, pair: Pair) -> Discount | None:
    """The discount if it holds in the billing period, by when that begins and which of its contract's it is."""
    if discount is None:
        return None
    begins = plan.period.start
    early = discount.since is not None and begins < discount.since
    over = discount.until is not None and begins >= discount.until
    if early or over:
        return None
    if discount.periods is not None:
        moment = plan.segments[pair[0] - 1].start
        if number_in_contract(plan.period, plan.agreed, moment, discount.since) > discount.periods:
            return None
    return discount


def of_charge(charge: Charge, plan: PeriodPlan, pair: Pair) -> Discount | None:
    """What is taken off a charge in a pair."""
    return in_force(charge.discount, plan, pair)


def off(discount: Discount | None, cost: Fraction, given: Fraction) -> Fraction:
    """A share of what something costs, or of the period's amount what was not `given` yet; never more than the cost."""
    if discount is None:
        return ZERO
    if discount.percent is not None:
        return cost * discount.percent
    return max(ZERO, min(cost, (discount.amount or ZERO) - given))


def of_charges(plan: PeriodPlan, lines: Sequence[Line], given: Mapping[str, Fraction]) -> list[Line]:
    """Off what a charge costs in a pair, fees included: a line of its own, cut like what it is of (3, 13.1).

    Cumulatively per (charge, subscription segment), in order of version. `given`: by charge what of this period's
    amount its fees in advance have had. A prepaid charge's fee and overage bear it by what they cost.
    """
    result = []
    of_fees = in_pairs(lines, lambda line: line.fee)
    costs = sorted(in_pairs(lines, _amount).items(), key=lambda cost: (cost[0][0].encode(), cost[0][1]))
    for key, of_key in groupby(costs, key=lambda cost: cost[0][0]):
        so_far = given.get(key, ZERO)
        offs = []
        for (_, pair), cost in of_key:
            discount = of_charge(plan.charge(key, pair), plan, pair)
            amount = off(discount, cost, so_far)
            so_far += amount if discount and discount.amount is not None else ZERO
            offs.append((pair, amount, of_fees[key, pair] / cost if cost else ZERO))
        for _, of_segment in groupby(offs, key=lambda each: each[0][0]):
            found = list(of_segment)
            cut = pieces_that_add_up(-amount for _, amount, _ in found)
            result += [
                _line(plan, plan.charge(key, pair), pair, amount, amount * fee)
                for (pair, _, fee), amount in zip(found, cut, strict=True)
                if amount
            ]
    return result


def _line(plan: PeriodPlan, charge: Charge, pair: Pair, amount: Fraction, of_fee: Fraction) -> Line:
    kind, key = "discount" if charge.counts_usage else "fee_discount", plan.name(charge.key, pair) + ".discount"
    return Line(key, kind, charge.key, pair, charge.tax_group, amount, of_fee=of_fee)


class InvoiceDiscounts:
    """What invoice discounts take off: of each line by the version of its pair, a line per tax group (3, 5).

    Minimum and maximum belong to the last pair that has their charge. An amount is given once in a period, to earlier
    pairs first, never more than all it is of comes to; a pair's lines bear it by what they cost. `given`: what the
    period's fees in advance have had of it.
    """

    def __init__(self, plan: PeriodPlan, lines: Sequence[Line], given: Fraction) -> None:
        self._plan = plan
        self._given = given
        self._share = self._shares(lines)
        taken = totals_of(lines, lambda line: line.group, self.of)
        groups = sorted(group for group, amount in taken.items() if amount)
        amounts = pieces_that_add_up(-taken[group] for group in groups)
        key = "invoice_discount"
        several = sum(1 for amount in amounts if amount) > 1
        self.lines = [
            Line(f"{key}.{group}" if several else key, key, "", None, group, amount)
            for group, amount in zip(groups, amounts, strict=True)
            if amount
        ]

    def of(self, line: Line) -> Fraction:
        """What is taken off a line."""
        pair = self._pair(line)
        return self._base(line, pair) * self._share.get(pair, ZERO)

    def of_usage(self, line: Line) -> Fraction:
        """What of it is taken off what is usage in the line."""
        found = self._plan.version(self._pair(line)).invoice_discount
        return ZERO if found is None or found.base == "fees" else line.usage * self._share.get(self._pair(line), ZERO)

    def _pair(self, line: Line) -> Pair:
        return line.pair or self._plan.carriers(line.charge)[-1][0].pair

    def _base(self, line: Line, pair: Pair) -> Fraction:
        """What of a line the discount of its pair's version is of."""
        found = self._plan.version(pair).invoice_discount
        if found is None:
            return ZERO
        return {"all": line.amount, "fees": line.fee, "usage": line.usage}[found.base]

    def _shares(self, lines: Sequence[Line]) -> dict[Pair, Fraction]:
        """By pair which share of its lines is taken off."""
        bases = totals_of(lines, self._pair, lambda line: self._base(line, self._pair(line)))
        found = {pair: self._plan.version(pair).invoice_discount for pair in sorted(bases)}
        held = {pair: in_force(one.discount, self._plan, pair) for pair, one in found.items() if one}
        left = sum((bases[pair] for pair, one in held.items() if one and one.amount is not None), ZERO)
        given, shares = ZERO, {}
        for pair, one in held.items():
            if one and one.percent is not None:
                shares[pair] = one.percent
            elif one and (amount := min(off(one, bases[pair], self._given + given), max(ZERO, left - given))):
                shares[pair] = amount / bases[pair]
                given += amount
        return shares


def _amount(line: Line) -> Fraction:
    return line.amount


def in_pairs(lines: Sequence[Line], amount: Callable[[Line], Fraction]) -> dict[tuple[str, Pair], Fraction]:
    """What each charge costs in each pair: an amount of its lines that belong to one."""
    result: dict[tuple[str, Pair], Fraction] = {}
    for line in lines:
        if line.pair is not None:
            at = (line.charge, line.pair)
            result[at] = result.get(at, ZERO) + amount(line)
    return result
