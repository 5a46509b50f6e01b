"""How far back `reconcile run --watch` looks."""

from __future__ import annotations

from datetime import date

from console.commands.reconcile import LOOKED_BACK, LOOKED_BACK_DAILY, days_back


def test_the_first_look_of_each_day_goes_further_back() -> None:
    today = date(2026, 11, 2)
    assert days_back(LOOKED_BACK, today, None) == LOOKED_BACK_DAILY
    assert days_back(LOOKED_BACK, today, today) == LOOKED_BACK
    assert days_back(LOOKED_BACK, today, date(2026, 11, 1)) == LOOKED_BACK_DAILY
    assert days_back(400, today, None) == 400
