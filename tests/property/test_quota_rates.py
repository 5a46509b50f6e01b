"""Rates: never more than GCRA would admit if it had known from the start what each request would use."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from streams.quotas.rates import SLOTS, Rate

SECOND = 1_000_000


def levels(charges: list[tuple[int, int]], limit: int, period: int) -> list[Fraction]:
    """The bucket's level just after each charge, in units: the definition of GCRA, in fractions."""
    level, at, found = Fraction(0), 0, []
    for when, units in charges:
        level = max(Fraction(0), level - Fraction(limit * (when - at), period)) + units
        at = when
        found.append(level)
    return found


steps = st.lists(
    st.tuples(
        st.integers(0, SECOND // 2), st.integers(1, 120), st.integers(0, 100), st.integers(0, SECOND * 3)
    ),
    max_size=40,
)  # fmt: skip


@given(steps, st.integers(1, 200))
def test_what_was_admitted_never_exceeds_gcra_of_what_was_used(
    asked: list[tuple[int, int, int, int]], limit: int
) -> None:
    rate = Rate(limit, SECOND)
    now = 5 * SECOND
    used: list[list[int]] = []
    running: list[tuple[int, int, int, int]] = []
    for wait, units, percent, length in asked:
        now += wait
        for ended in sorted(each for each in running if each[0] <= now):
            running.remove(ended)
            _, at, charged, index = ended
            used[index][1] = charged * percent // 100
            rate.correct(at, used[index][1] - charged)
        if rate.room(now, units) >= units:
            rate.charge(now, units)
            running.append((now + length, now, units, len(used)))
            used.append([now, units])
            # At each admission the level of what is known by now is within the limit
            known = [(at, count) for at, count in used]
            assert levels(known, limit, SECOND)[-1] <= limit


@given(steps, st.integers(1, 200))
def test_nothing_is_refused_that_fits_by_more_than_a_slot(asked: list[tuple[int, int, int, int]], limit: int) -> None:
    rate = Rate(limit, SECOND)
    now = 5 * SECOND
    used: list[tuple[int, int]] = []
    for wait, units, percent, _ in asked:
        now += wait
        if rate.room(now, units) >= units:
            rate.charge(now, units)
            rate.correct(now, units * percent // 100 - units)
            used.append((now, units * percent // 100))
        else:
            slack = Fraction(limit, SLOTS) + 1
            assert levels([*used, (now, units)], limit, SECOND)[-1] > limit - slack


@given(steps, st.integers(1, 200))
def test_a_rate_goes_on_elsewhere_as_it_was(asked: list[tuple[int, int, int, int]], limit: int) -> None:
    here = Rate(limit, SECOND)
    now = 5 * SECOND
    for wait, units, percent, _ in asked:
        now += wait
        if here.room(now, units) >= units:
            here.charge(now, units)
            here.correct(now, -(units * percent // 100))
        there = Rate.restored(limit, SECOND, here.state())
        assert there.room(now, units) == here.room(now, units)
        assert there.wait_us(now, units) == here.wait_us(now, units)


def test_what_was_drained_is_not_given_back() -> None:
    rate = Rate(100, SECOND)
    rate.charge(0, 100)
    assert rate.room(SECOND, 100) == 100
    rate.charge(SECOND, 100)
    rate.correct(0, -100)  # the first used nothing, but time has passed: its second is gone
    assert rate.room(SECOND + 1000, 100) < 4


def test_what_is_given_back_in_time_can_be_used() -> None:
    rate = Rate(100, SECOND)
    rate.charge(0, 100)
    rate.correct(0, -90)
    assert 86 <= rate.room(1000, 90) <= 90


def test_how_long_to_wait_is_told() -> None:
    rate = Rate(100, SECOND)
    rate.charge(0, 100)
    assert rate.wait_us(0, 50) == SECOND // 2
    assert rate.wait_us(0, 101) is None
    assert rate.room(SECOND // 2, 50) >= 50
