"""The IETF draft's fields of a quota's standing."""

from __future__ import annotations

from dataclasses import replace

from streams.quotas.answers import rate_limit_fields
from streams.quotas.decisions import Standing
from streams.quotas.definitions import UNITS, shown
from tests.quota_builders import quota


def test_amounts_of_money_are_whole_units_cut_off_and_exact_however_large() -> None:
    limit = (10**15 - 1) * UNITS["spend"] + UNITS["spend"] - 1
    spend = replace(quota(period="month", metric="spend"), limit=limit)
    month = 30 * 86_400_000_000
    fields = dict(rate_limit_fields([Standing(spend, 5 * UNITS["spend"] - 1, 2_000_000, month)], 0))
    assert fields["ratelimit-policy"] == '"month-spend";q=999999999999999;w=2592000;qu="spend"'
    assert fields["ratelimit"] == '"month-spend";r=4;t=2'
    assert shown(limit, "spend") == "999999999999999.999999999999999999"
    assert [shown(amount, "gpu_seconds") for amount in (0, 2_500_000, -1, -3_000_000)] == [
        "0",
        "2.5",
        "-0.000001",
        "-3",
    ]


def test_a_window_is_the_whole_one_however_much_of_it_is_left_and_places_have_none() -> None:
    rate, places = quota("minute", "requests", 60), quota("none", "concurrency", 3)
    for now in (0, 59_000_000):
        fields = dict(rate_limit_fields([Standing(rate, 1, 60_000_000), Standing(places, 1, now)], now))
        assert fields["ratelimit-policy"] == (
            '"minute-requests";q=60;w=60;qu="requests", "none-concurrency";q=3;qu="concurrent-requests"'
        )
