"""Gaps through a boot's life, against sets: what is missing is named, once, and closed when it is there."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from streams.completeness import gaps, number_sets
from streams.completeness.gaps import Gap, Looked

NOON = datetime(2026, 11, 1, 12, tzinfo=UTC)
SETTLE = timedelta(seconds=5)
STEPS = st.lists(
    st.tuples(st.frozensets(st.integers(1, 40), max_size=8), st.integers(0, 40), st.integers(0, 10)), max_size=25
)
"""Numbers that arrive, a heartbeat's last number, and seconds that pass."""


class Life:
    """A boot as the check sees it, and as sets see it."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.now = NOON
        self.received = set[int]()
        self.known = 0
        self.known_since = dict[int, datetime]()
        self.looked = Looked()
        self.open = dict[int, Gap]()
        self.closed = list[Gap]()

    def step(self, arrived: frozenset[int], last_seq: int, seconds: int) -> None:
        """What one check does, in its order."""
        self.now += timedelta(seconds=seconds)
        fresh = number_sets.of_numbers(arrived - self.received)
        self.received |= arrived
        known = max(self.known, last_seq, *arrived, 0)
        self.known_since |= dict.fromkeys(range(self.known + 1, known + 1), self.now)
        self.known = known
        for gap in gaps.filled(list(self.open.values()), fresh):
            self._store(gap)
        self.looked, due = gaps.look(self.looked, self.known, self.now, SETTLE)
        if due:
            first, last, since = due
            absent = number_sets.missing(number_sets.of_numbers(self.received), first, last)
            for gap in gaps.named(list(self.open.values()), absent, since, self.most):
                self._store(gap)

    def _store(self, gap: Gap) -> None:
        if gap.missing:
            self.open[gap.first] = gap
        else:
            self.closed.append(self.open.pop(gap.first))

    @property
    def missing(self) -> set[int]:
        """The numbers below the highest known one that have not arrived."""
        return set(range(1, self.known + 1)) - self.received


@given(steps=STEPS, most=st.sampled_from([1, 2, 100]))
def test_every_number_that_stays_missing_is_in_one_open_gap(
    steps: list[tuple[frozenset[int], int, int]], most: int
) -> None:
    life = Life(most)
    for step in steps:
        life.step(*step)
    life.step(frozenset(), 0, 10)
    life.step(frozenset(), 0, 10)
    spans = sorted((gap.first, gap.last) for gap in life.open.values())
    assert all(x[1] < y[0] for x, y in pairwise(spans)), "gaps do not overlap"
    for gap in life.open.values():
        assert gap.missing == len(life.missing & set(range(gap.first, gap.last + 1)))
    assert sum(gap.missing for gap in life.open.values()) == len(life.missing)
    assert len(life.open) <= most


@given(steps=STEPS)
def test_a_gap_names_nothing_that_was_not_known_for_the_settling_time(
    steps: list[tuple[frozenset[int], int, int]],
) -> None:
    life = Life(100)
    for step in steps:
        before = dict(life.open)
        life.step(*step)
        for first, gap in life.open.items():
            if first not in before:
                assert life.now - life.known_since[first] >= SETTLE
                assert gap.since >= life.known_since[first]


@given(steps=STEPS)
def test_when_everything_arrives_every_gap_is_closed_and_none_is_named_again(
    steps: list[tuple[frozenset[int], int, int]],
) -> None:
    life = Life(100)
    for step in steps:
        life.step(*step)
    life.step(frozenset(range(1, 41)), 0, 10)
    life.step(frozenset(), 0, 10)
    assert life.open == {}
    names = [gap.first for gap in life.closed]
    assert len(names) == len(set(names))
