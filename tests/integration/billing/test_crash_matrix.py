"""A part of the crash matrix: killed at each step, with Stripe failing in each way. All of it: `make simulate`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from devstack.stripe_twin.faults import FaultKind
from tests.fixtures_stripe_twin import TwinProcess
from tests.integration.billing.conftest import World
from tests.simulation.stripe import matrix
from tests.simulation.stripe.cells import KILLS, READS, REQUESTS, some_cells


@pytest.mark.parametrize(
    ("old", "count"), [(False, 84), (True, 24)], ids=["while keys live", "when Stripe has forgotten them"]
)
def test_each_invoice_is_finalized_exactly_once_wherever_it_was_killed_and_whatever_failed(
    world: World, make_stripe_twin: Callable[[], TwinProcess], old: bool, count: int
) -> None:
    cells = some_cells(20261122 + old, count)
    if not old:
        assert {cell.kill for cell in cells} == set(KILLS)
        assert {fault for cell in cells for fault in cell.faults} >= {(r, k) for r in REQUESTS for k in FaultKind}
        assert {fault for cell in cells for fault in cell.faults} >= {(r, k) for r in READS for k in FaultKind}
        assert {cell.times for cell in cells} == {1, 3, 7}
        assert any(cell.raced for cell in cells)
    result = matrix.run(world, make_stripe_twin().start(), cells, old=old)
    assert result.wrong == []
    assert result.right.total() == count
    assert result.killed > count // 3, "kills that never happen show nothing"
    assert result.met > count // 2, "faults that never happen show nothing"
