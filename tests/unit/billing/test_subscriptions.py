"""How a period is cut into pieces."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from billing.errors import NoPriceVersion, SubscriptionRefused
from billing.plans.price_plans import Metric
from billing.plans.subscriptions import check_start, pieces, subscription_id
from tests.billing_builders import NOVEMBER, OCTOBER, SINCE, charge, subscription, version

A = charge("a", Metric.INPUT, "1")
MIDDLE = datetime(2026, 10, 16, 12, tzinfo=UTC)
V1, V2 = version(A), version(A, name="v2", valid_from=MIDDLE)


def test_the_common_case_is_one_piece() -> None:
    (piece,) = pieces([subscription()], {"p": [V1]}, OCTOBER)
    assert (piece.start, piece.end, piece.segment_no, piece.version) == (OCTOBER.start, OCTOBER.end, 1, V1)


def test_a_new_price_version_cuts_the_segment_and_keeps_its_number() -> None:
    first, second = pieces([subscription()], {"p": [V2, V1]}, OCTOBER)
    assert (first.start, first.end, first.version.version, first.segment_no) == (OCTOBER.start, MIDDLE, "v1", 1)
    assert (second.start, second.end, second.version.version, second.segment_no) == (MIDDLE, OCTOBER.end, "v2", 1)


def test_a_version_that_begins_with_the_period_does_not_cut_it() -> None:
    v2 = version(A, name="v2", valid_from=NOVEMBER.start)
    assert [p.version.version for p in pieces([subscription()], {"p": [V1, v2]}, OCTOBER)] == ["v1"]
    assert [p.version.version for p in pieces([subscription()], {"p": [V1, v2]}, NOVEMBER)] == ["v2"]


def test_segments_are_numbered_in_order_of_time_and_touch_without_overlap() -> None:
    early = subscription(ends_at=MIDDLE)
    late = subscription(starts_at=MIDDLE, plan="q")
    first, second = pieces([late, early], {"p": [V1], "q": [version(A, plan="q")]}, OCTOBER)
    assert (first.segment_no, first.end, second.segment_no, second.start) == (1, MIDDLE, 2, MIDDLE)


def test_a_subscription_outside_the_period_gives_no_piece() -> None:
    ended = subscription(ends_at=OCTOBER.start)
    not_begun = subscription(starts_at=OCTOBER.end)
    assert pieces([ended, not_begun], {"p": [V1]}, OCTOBER) == []


def test_a_subscription_that_ended_when_the_period_began_does_not_count_as_a_segment() -> None:
    ended, current = subscription(ends_at=OCTOBER.start), subscription(starts_at=OCTOBER.start)
    assert [piece.segment_no for piece in pieces([ended, current], {"p": [V1]}, OCTOBER)] == [1]


def test_a_time_without_a_price_version_is_an_error() -> None:
    with pytest.raises(NoPriceVersion):
        pieces([subscription()], {"p": [V2]}, OCTOBER)


@pytest.mark.parametrize(
    ("starts_at", "reason"),
    [
        (datetime(2026, 1, 1), "no time zone"),  # noqa: DTZ001
        (datetime(2025, 12, 31, 23, tzinfo=UTC), "no version"),
    ],
)
def test_a_start_that_cannot_be_rated_is_refused(starts_at: datetime, reason: str) -> None:
    with pytest.raises(SubscriptionRefused, match=reason):
        check_start(starts_at, [V1])


def test_the_id_follows_from_tenant_and_start() -> None:
    assert subscription_id("t", SINCE) == subscription_id("t", SINCE)
    assert len({subscription_id("t", SINCE), subscription_id("t", MIDDLE), subscription_id("u", SINCE)}) == 3
