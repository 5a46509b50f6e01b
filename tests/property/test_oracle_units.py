"""The second rating's charge models against a walk unit by unit, which knows no ranges and no differences."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from reconciliation.oracle import models
from reconciliation.oracle.case import Allowance, Charge
from reconciliation.oracle.models import Used
from reconciliation.oracle.rational import ONE, ZERO
from reconciliation.oracle.reading_plans import read_plan

PRICES = st.sampled_from(["0", "0.5", "1", "2", "3"])
BOUNDS = st.lists(st.integers(1, 12), max_size=2, unique=True).map(sorted)
MODELS = st.sampled_from(["per_unit", "graduated", "volume", "package", "prepaid"])


@st.composite
def a_charge(draw: st.DrawFn, key: str) -> Charge:
    plain: dict[str, object] = {"key": key, "model": draw(MODELS)}
    if plain["model"] in ("graduated", "volume"):
        ends = [{"up_to": bound} for bound in draw(BOUNDS)]
        plain["tiers"] = [{**end, "price": draw(PRICES), "flat_fee": draw(PRICES)} for end in [*ends, {}]]
    else:
        plain |= {"price": draw(PRICES), "size": draw(st.integers(1, 5)), "overage_price": draw(PRICES)}
        plain |= {"included": draw(st.integers(0, 8))}
    return read_plan("p", [{"version": "v", "charges": [plain]}], None).versions[0].charges[key]


@st.composite
def uses_of(draw: st.DrawFn, key: str) -> list[Used]:
    """Up to three pairs; the counter goes on or begins anew with each."""
    result, counter = [], 0
    for number in range(1, draw(st.integers(1, 3)) + 1):
        counter += draw(st.integers(0, 1))
        units = Fraction(draw(st.integers(1, 15)))
        result.append(Used((number, 0), draw(a_charge(key)), units, ZERO, ONE, counter))
    return result


def walked(uses: list[Used], free: dict[tuple[int, int], int]) -> Fraction:
    """What the units cost, one after another; the first `free` ones of a pair cost nothing, but have their places."""
    cost, counter = ZERO, None
    for use in uses:
        if use.counter != counter:
            counter, position, packed, within = use.counter, 0, 0, 0
            entered: set[int] = set()
        charge = use.charge
        total = sum(int(other.units) for other in uses if other.counter == counter)
        for n in range(1, int(use.units) + 1):
            position += 1
            billed = n > free.get(use.pair, 0)
            price = charge.price
            if charge.model in ("graduated", "volume"):
                place = position if charge.model == "graduated" else total
                number = next(i for i, tier in enumerate(charge.tiers) if tier.up_to is None or place <= tier.up_to)
                price = charge.tiers[number].price
                if number not in entered:
                    entered.add(number)
                    cost += charge.tiers[number].flat_fee
            elif charge.model == "package":
                opens = billed and packed % charge.size == 0
                packed += billed
                price = charge.price if opens else ZERO
            elif charge.model == "prepaid":
                within += 1
                price = charge.overage_price if within > charge.included else ZERO
            cost += price if billed else ZERO
    return cost


def cost_of(uses: list[Used]) -> Fraction:
    return sum((piece.amount for piece in models.pieces(uses)), ZERO)


@settings(max_examples=150)
@given(uses_of("a"))
def test_ranges_cost_what_their_units_cost_one_by_one(uses: list[Used]) -> None:
    assert cost_of(uses) == walked(uses, {})


@settings(max_examples=150)
@given(uses_of("a"), st.integers(0, 30))
def test_the_first_units_of_a_period_are_free_whatever_the_model(uses: list[Used], units: int) -> None:
    uses = [use for use in uses if use.charge.model != "prepaid"]
    pools = {use.pair: [Allowance("x", Fraction(units), frozenset(["a"]))] for use in uses}
    free = models.free_units({"a": uses}, pools)
    left, by_pair = units, {}
    for use in uses:
        by_pair[use.pair] = min(left, int(use.units))
        left -= by_pair[use.pair]
        assert free.get(("a", use.pair), ZERO) == by_pair[use.pair]
    assert cost_of([replace(use, free=free.get(("a", use.pair), ZERO)) for use in uses]) == walked(uses, by_pair)
