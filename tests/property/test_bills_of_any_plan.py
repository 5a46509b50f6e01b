"""Laws that the product's bills keep over the random plans, histories and usages of the simulation.

Sums; neither order, nor batching, nor repetition of usage matters; more usage never costs less where a unit's price
does not hang on what follows; a price version that changes nothing cuts a period into pieces that add up to it.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.money import product
from tests.simulation.money import generator, invariants

SEED = 20261121


@settings(max_examples=150)
@given(number=st.integers(0, 10**9))
def test_a_bill_of_any_plan_keeps_every_law(number: int) -> None:
    case = generator.simulated(SEED, number).case
    assert list(invariants.broken(case, product.documents_of, number)) == []
