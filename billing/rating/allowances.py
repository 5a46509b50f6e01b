"""Free units (docs/spec/money.md 4 allowance, 13.3): which of the period's units cost nothing.

The first A units of a pool are free: an earlier segment first, then the higher unit price, then the charge's key. Free
units keep their tier positions, so within a charge the lowest positions go first. "First" counts every unit used under
the pool in the period; what was used under a version without it is paid and counts for nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fractions import Fraction

from billing.periods import BillingPeriod
from billing.plans.price_plans import Allowance
from billing.rating.positions import Counted, steps


def free_units(
    counted: Mapping[str, Sequence[Counted]], *, weighted: bool
) -> dict[tuple[str, int, BillingPeriod], Fraction]:
    """Free units by charge, number of the piece, and the time that is counted over: each time has its own.

    `weighted`: allowances count by the seconds they were held.
    """
    by_time: dict[BillingPeriod, dict[int, dict[str, Counted]]] = defaultdict(lambda: defaultdict(dict))
    for key, listed in counted.items():
        for each in listed:
            by_time[each.over][each.piece_no][key] = each
    found: dict[tuple[str, int, BillingPeriod], Fraction] = {}
    for over, by_piece in by_time.items():
        limits = _limits(by_piece, weighted=weighted)
        used: dict[str, Fraction] = defaultdict(Fraction)
        for number in sorted(by_piece):
            here = by_piece[number]
            for pool in _pools(here):
                left = limits[pool.pool, number] - used[pool.pool]
                charges = [here[key] for key in pool.charges if key in here and here[key].quantity > 0]
                for key, units in _drawn(charges, left).items():
                    found[key, number, over] = units
                used[pool.pool] += sum((each.quantity for each in charges), Fraction(0))
    return found


def _pools(here: Mapping[str, Counted]) -> list[Allowance]:
    """The pools of a piece's version that some of these charges are in."""
    pools = next(iter(here.values())).piece.version.pools
    return [pool for pool in pools if any(key in here for key in pool.charges)]


def _limits(by_piece: Mapping[int, Mapping[str, Counted]], *, weighted: bool) -> dict[tuple[str, int], Fraction]:
    """How many units of a pool are free by a piece: the version's, or all versions' weighted by active seconds."""
    limits: dict[tuple[str, int], Fraction] = {}
    total: dict[str, Fraction] = defaultdict(Fraction)
    for number, here in by_piece.items():
        share = next(iter(here.values())).share
        for pool in _pools(here):
            limits[pool.pool, number] = Fraction(pool.units)
            total[pool.pool] += Fraction(pool.units) * share
    return {key: total[key[0]] for key in limits} if weighted else limits


def _drawn(charges: Sequence[Counted], left: Fraction) -> dict[str, Fraction]:
    """Units that a pool gives to charges of one piece: always the dearest next unit, ties to the first key."""
    ladders = {each.charge.key: [(units, price) for _, units, price in steps(each)] for each in charges}
    drawn: dict[str, Fraction] = defaultdict(Fraction)
    while left > 0 and ladders:
        key = min(ladders, key=lambda name: (-ladders[name][0][1], name.encode()))
        units, _ = ladders[key].pop(0)
        drawn[key] += min(units, left)
        left -= min(units, left)
        if not ladders[key]:
            del ladders[key]
    return drawn
