"""A part of the crash matrix of corrections. All of it: `python -m tests.simulation.stripe.run --corrections`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.fixtures_stripe_twin import TwinProcess
from tests.integration.billing.conftest import World
from tests.simulation.stripe import corrections
from tests.simulation.stripe.corrections import REQUESTS, STORIES, some_cells


@pytest.mark.parametrize(("old", "count"), [(False, 27), (True, 6)], ids=["while keys live", "when forgotten"])
def test_each_correction_is_done_exactly_once_wherever_it_was_killed_and_whatever_failed(
    world: World, make_stripe_twin: Callable[[], TwinProcess], old: bool, count: int
) -> None:
    cells = some_cells(20261122 + old, count)
    if not old:
        assert {cell.story for cell in cells} == set(STORIES)
        assert {cell.at for cell in cells} == set(REQUESTS)
    result = corrections.run(world, make_stripe_twin().start(), cells, old=old)
    assert result.wrong == []
    assert result.killed > count // 5, "kills that never happen show nothing"
    assert result.met > count // 2, "faults that never happen show nothing"
