"""Slices: nothing is admitted beyond what was granted, and what is not used comes back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.quota.slices import Slice


def made(requests: int = 10, input_tokens: int = 100, output: int = 1000, slots: int = 5) -> Slice:
    held = Slice("t1~1.1", 0.0)
    held.add(requests, input_tokens, output, slots, 10.0)
    return held


def test_a_request_is_admitted_while_the_slice_holds_it() -> None:
    held = made()
    assert held.admit("a", 1, 60, 900, 1.0)
    assert held.admit("a", 1, 60, 900, 1.0)  # the same again
    assert not held.admit("b", 1, 60, 10, 1.0)
    assert not held.admit("b", 1, 10, 101, 1.0)
    assert not held.admit("b", 1, -1, 10, 1.0)
    assert not held.admit("b", 1, 10, -4096, 1.0)
    assert held.admit("b", 1, 10, 100, 1.0)
    assert held.settle("a", 1, 60, 50)
    assert not held.settle("a", 1, 60, 50)
    assert held.admit("c", 1, 10, 850, 1.0)


def test_a_slice_admits_nothing_when_its_time_is_over() -> None:
    assert not made().admit("a", 1, 1, 1, 10.0)


def test_concurrent_requests_are_bounded() -> None:
    held = made(slots=1)
    assert held.admit("a", 1, 1, 1, 1.0)
    assert not held.admit("b", 1, 1, 1, 1.0)
    held.settle("a", 1, 1, 1)
    assert held.admit("b", 1, 1, 1, 1.0)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 400), st.integers(0, 100), st.booleans()), max_size=40))
def test_used_and_promised_never_exceed_what_was_granted(asked: list[tuple[int, int, int, bool]]) -> None:
    held = made()
    used = 0
    for number, (input_tokens, cap, percent, ends) in enumerate(asked):
        if held.admit(f"r{number}", 1, input_tokens, cap, 1.0) and ends:
            used += cap * percent // 100
            held.settle(f"r{number}", 1, input_tokens, cap * percent // 100)
        assert used + sum(bound[1] for bound in held.in_flight.values()) + held.output_tokens == 1000
        assert held.output_tokens >= 0
        assert held.input_tokens >= 0
        assert held.requests >= 0
