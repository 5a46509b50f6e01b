"""The breaker: a service that does not answer costs nothing after a few calls."""

from __future__ import annotations

from serving_adapter.quota.breaker import Breaker


def test_it_opens_after_failures_in_a_row_and_probes_one_call_at_a_time() -> None:
    breaker = Breaker(3, 1.0)
    for _ in range(2):
        breaker.failed(0.0)
    breaker.succeeded()
    for _ in range(3):
        assert breaker.may_call(0.0)
        breaker.failed(0.0)
    assert not breaker.may_call(0.9)
    assert breaker.may_call(1.0)
    assert not breaker.may_call(1.0)  # somebody tries already
    breaker.failed(1.1)
    assert not breaker.may_call(2.0)
    assert breaker.may_call(2.1)
    breaker.succeeded()
    assert not breaker.is_open
    assert breaker.may_call(2.1)
    assert breaker.opened == 1
