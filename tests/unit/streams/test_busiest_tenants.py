"""Tenants as labels: few of them, and together all messages."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from streams.workers.busiest_tenants import ANEW_EVERY_S, NAMED_AT_MOST, OTHERS, BusiestTenants

TENANTS = st.integers(0, 60).map(lambda number: f"tenant_{number}")
CHUNKS = st.lists(st.tuples(st.dictionaries(TENANTS, st.integers(1, 2000)), st.sampled_from([0.0, 1.0, ANEW_EVERY_S])))


@given(CHUNKS)
def test_labels_are_few_and_every_series_only_grows_while_it_is_there(
    chunks: list[tuple[dict[str, int], float]],
) -> None:
    busiest, now = BusiestTenants(0.0), 0.0
    before = busiest.series()
    for messages, later in chunks:
        now += later
        busiest.add(messages, now)
        series = busiest.series()
        assert len(series) <= NAMED_AT_MOST + 1
        assert all(series[tenant] >= count for tenant, count in before.items() if tenant in series)
        before = series


@given(CHUNKS)
def test_without_a_change_of_names_every_message_is_in_one_series(chunks: list[tuple[dict[str, int], float]]) -> None:
    busiest = BusiestTenants(0.0)
    total: Counter[str] = Counter()
    for messages, _ in chunks:
        busiest.add(messages, 0.0)
        total.update(messages)
    assert sum(busiest.series().values()) == total.total()
    assert all(count == total[tenant] for tenant, count in busiest.series().items() if tenant != OTHERS)


def test_after_a_minute_the_busiest_are_named() -> None:
    busiest = BusiestTenants(0.0)
    busiest.add({f"early_{number}": 1 for number in range(NAMED_AT_MOST)}, 0.0)
    busiest.add({"large": 1000}, 1.0)
    assert busiest.series()[OTHERS] == 1000
    busiest.add({"early_0": 1}, ANEW_EVERY_S)
    busiest.add({"large": 5}, ANEW_EVERY_S + 1)
    assert busiest.series()["large"] == 5
    assert len(busiest.series()) == NAMED_AT_MOST + 1
