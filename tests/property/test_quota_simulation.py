"""The simulation of quotas, small: many tenants, crashes, lost and late news; `make simulate` runs it large."""

from __future__ import annotations

import pytest

from tests.simulation import quotas


@pytest.mark.parametrize("seed", [1, 2])
def test_hard_budgets_hold_and_the_end_is_what_was_used(seed: int) -> None:
    figures = quotas.simulate(seed, tenants=100, requests=1500, say=print)
    assert {key: figures[key] for key in quotas.ZERO} == dict.fromkeys(quotas.ZERO, 0)
    assert figures["quota_crashes"] > 0
    assert figures["quota_unreserved"] > 0
    assert figures["quota_out_of_slices"] > 10
    assert figures["check_then_charge_overshoot"] > 0  # else nothing came near a limit
    assert figures["quota_utilisation"] > figures["reserve_all_utilisation"]
