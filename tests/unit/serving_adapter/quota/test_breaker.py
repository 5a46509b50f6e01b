"""The breaker: a service that does not answer costs nothing after a few calls; one that stalls is soon asked again."""

from __future__ import annotations

from serving_adapter.quota.breaker import Breaker


def opened() -> Breaker:
    """At 0.06, for 0.05 at first."""
    breaker = Breaker(3, 0.15)
    for at in (0.0, 0.03, 0.06):
        assert breaker.may_call(at)
        breaker.failed(at)
    assert breaker.is_open
    return breaker


def test_calls_that_fail_together_in_one_stall_do_not_open_it() -> None:
    breaker = Breaker(3, 1.0)
    for at in (0.005, 0.006, 0.007, 0.009, 0.04):
        breaker.failed(at)
    assert breaker.may_call(0.04)
    breaker.succeeded()
    for at in (0.05, 0.06, 0.07):
        breaker.failed(at)
    assert not breaker.is_open
    assert breaker.opened == 0


def test_it_probes_one_call_at_a_time_soon_and_then_more_seldom() -> None:
    breaker, at = opened(), 0.06
    breaker.failed(at + 0.01)  # was on its way
    for pause in (0.05, 0.1, 0.15, 0.15):
        assert not breaker.may_call(at + pause - 0.001)
        at += pause + 0.001
        assert breaker.may_call(at)
        assert not breaker.may_call(at)  # somebody tries already
        breaker.failed(at)
    assert breaker.may_call(at + 1)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.may_call(at + 1)
    assert breaker.opened == 1
