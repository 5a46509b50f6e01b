"""Stripe's limits, kept by us: no second has more than it may, and a 429 slows down."""

from __future__ import annotations

from collections import Counter

import pytest

from billing.settings import StripeSettings
from billing.stripe.rate_limits import BURST_S, Limits, RateLimiter
from billing.stripe.stripe_gateway import limits_of
from devstack.stripe_twin.errors import StripeError
from devstack.stripe_twin.faults import RateLimits
from tests.benchmarks.sending import floor_s


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def limiter(time: Time, all_per_s: float, endpoint_per_s: float) -> RateLimiter:
    return RateLimiter(Limits(all_per_s, endpoint_per_s), lambda: time.now, time.sleep)


@pytest.mark.parametrize(("endpoints", "per_s"), [(1, 25), (2, 50), (8, 100)])
def test_requests_go_out_as_fast_as_the_tighter_limit_lets_them_and_no_faster(endpoints: int, per_s: int) -> None:
    time = Time()
    limited = limiter(time, 100, 25)
    sent = []
    for n in range(1000):
        limited.wait(f"POST /{n % endpoints}")
        sent.append(time.now)
    assert sent[-1] == pytest.approx(1000 / per_s, rel=0.02)
    for first, last in zip(sent, sent[per_s:], strict=False):
        assert last - first >= 1 - BURST_S - 0.001, "more than the limit and its burst in one second"
    assert limited.calls.total() == 1000


def test_a_429_halves_the_rate_and_answers_bring_it_back() -> None:
    time = Time()
    limited = limiter(time, 100, 100)

    def rate() -> float:
        for _ in range(25):
            limited.wait("a")  # what a burst leaves
        begun = time.now
        for _ in range(20):
            limited.wait("a")
        return 20 / (time.now - begun)

    assert rate() == pytest.approx(100, rel=0.05)
    limited.answered("a", refused=True)
    assert rate() == pytest.approx(50, rel=0.05)
    for _ in range(20):
        limited.answered("a", refused=True)
    assert rate() == pytest.approx(1, rel=0.05), "never to a standstill"
    for _ in range(50):
        limited.answered("a", refused=False)
    assert rate() == pytest.approx(100, rel=0.05)
    assert limited.refusals == 21


@pytest.mark.parametrize(
    ("let_through", "refused_at_most", "of_the_limit"), [(25.0, 0.0, 0.95), (12.5, 0.1, 0.7), (2.0, 0.3, 0.6)]
)
def test_a_twin_that_lets_less_through_is_adapted_to_and_one_that_keeps_its_word_refuses_nothing(
    let_through: float, refused_at_most: float, of_the_limit: float
) -> None:
    """Less: other programs use up the rest of the account's limit."""
    time = Time()
    limited, theirs = limiter(time, 25, 25), RateLimits(lambda: time.now)
    theirs.set(let_through, let_through)
    done = 0
    while done < 1000:
        limited.wait("POST /v1/invoices")
        try:
            theirs.check("acct", "POST /v1/invoices")
            refused = False
        except StripeError as error:
            refused = error.status == 429
        limited.answered("POST /v1/invoices", refused=refused)
        done += not refused
    assert limited.refusals <= refused_at_most * limited.calls.total()
    assert (limited.refusals > 0) == (let_through < 25)
    assert done / time.now >= of_the_limit * let_through


def test_another_endpoint_is_not_held_up_by_a_busy_one() -> None:
    time = Time()
    limited = limiter(time, 1000, 25)
    for _ in range(26):
        limited.wait("busy")
    before = time.now
    limited.wait("free")
    assert time.now == before


def test_the_floor_is_that_of_the_busiest_endpoint_or_of_all() -> None:
    assert floor_s(Counter(a=10_000, b=10_000, c=10_000, d=10_000), Limits(100)) == 400
    assert floor_s(Counter(a=10_000, b=10_000, c=10_000, d=10_000), Limits(25)) == 1600
    assert floor_s(Counter(a=30_000, b=10_000), Limits(100)) == 1200


def test_live_and_sandbox_have_their_limits_and_a_twin_its_own() -> None:
    assert limits_of(StripeSettings("sk_live_1")) == Limits(100)
    assert limits_of(StripeSettings("sk_test_1")) == Limits(25)
    assert limits_of(StripeSettings("sk_test_1", "http://127.0.0.1:1")) is None
