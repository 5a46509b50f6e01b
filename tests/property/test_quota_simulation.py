"""The simulation of quotas, small: many tenants, crashes, lost and late news; `make simulate` runs it large."""

from __future__ import annotations

import pytest

from tests.simulation import quota_kinds, quotas


@pytest.mark.parametrize("seed", [1, 2])
def test_hard_budgets_hold_and_the_end_is_what_was_used(seed: int) -> None:
    figures = quotas.simulate(seed, tenants=100, requests=1500, say=print)
    assert {key: figures[key] for key in quotas.ZERO} == dict.fromkeys(quotas.ZERO, 0)
    assert figures["quota_crashes"] > 0
    assert figures["quota_unreserved"] > 0
    assert figures["quota_out_of_slices"] > 10
    assert figures["check_then_charge_overshoot"] > 0  # else nothing came near a limit
    assert figures["quota_utilisation"] > figures["reserve_all_utilisation"]


def test_quotas_of_every_kind_hold_and_refuse_nobody_wrongly() -> None:
    figures = quota_kinds.simulate(3, each=1, say=print)
    assert {key: figures[key] for key in quota_kinds.ZERO} == dict.fromkeys(quota_kinds.ZERO, 0)
    never = [key for key, value in figures.items() if not value and key not in quota_kinds.ZERO]
    assert never == ["kinds_refused_soft"], "all of it happened, and nothing soft refuses"
