"""Comparing two records."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from reconciliation.comparison import Difference, differences, multiset_differences

RECORD = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 3))


@given(RECORD, RECORD)
def test_differences_are_exactly_the_keys_that_do_not_agree(left: dict[str, int], right: dict[str, int]) -> None:
    found = differences(left, right)
    assert {d.key for d in found} == {k for k in left.keys() | right.keys() if left.get(k) != right.get(k)}
    assert all((d.left, d.right) == (left.get(d.key), right.get(d.key)) for d in found)
    assert differences(right, left) == [Difference(d.key, d.right, d.left) for d in found]


def test_there_is_no_tolerance() -> None:
    one, other = {"x": Decimal("1.000000000001")}, {"x": Decimal(1)}
    assert differences(one, other) == [Difference("x", Decimal("1.000000000001"), Decimal(1))]
    assert not differences({"x": Decimal("1.0")}, {"x": Decimal(1)})


def test_absent_is_not_zero() -> None:
    assert differences({"x": 0}, {}) == [Difference("x", 0, None)]


def test_multisets_differ_by_how_often_they_have_an_entry() -> None:
    found = multiset_differences("k", Counter({"a": 2, "b": 1}), Counter({"a": 1, "c": 1}))
    assert found == [Difference("k/a", "a", None), Difference("k/b", "b", None), Difference("k/c", None, "c")]
