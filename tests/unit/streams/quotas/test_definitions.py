"""Definitions: what is refused, by field, and which version holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from streams.quotas.definitions import in_force, quota_from, shown, strictest
from streams.quotas.errors import InvalidQuota

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
GOOD: dict[str, Any] = {"tenant_id": "t1", "period": "month", "metric": "output_tokens", "limit": 100}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"limit": -1}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": "NaN"}, "limit"),
        ({"limit": "0.5"}, "limit"),
        ({"limit": True}, "limit"),
        ({"limit": None}, "limit"),
        ({"limit": 10**16}, "limit"),
        ({"metric": "tokens"}, "metric"),
        ({"metric": None}, "metric"),
        ({"period": "week"}, "period"),
        ({"period": "none"}, "period"),
        ({"period": "minute", "metric": "spend"}, "metric"),
        ({"period": "minute", "metric": "gpu_seconds"}, "metric"),
        ({"period": "day", "metric": "concurrency"}, "period"),
        ({"period": "none", "metric": "concurrency", "limit": 0}, "limit"),
        ({"thresholds": [80, 101]}, "thresholds"),
        ({"thresholds": [80, 80]}, "thresholds"),
        ({"thresholds": [0]}, "thresholds"),
        ({"thresholds": ["80"]}, "thresholds"),
        ({"thresholds": "80"}, "thresholds"),
        ({"thresholds": [2000], "hard": False}, "thresholds"),
        ({"period": "minute", "thresholds": [80]}, "thresholds"),
        ({"overshoot_allowance": 5, "hard": False}, "overshoot_allowance"),
        ({"overshoot_allowance": -5}, "overshoot_allowance"),
        ({"hard": "yes"}, "hard"),
        ({"hard": False, "period": "minute", "metric": "requests"}, "hard"),
        ({"hard": False, "period": "none", "metric": "concurrency"}, "hard"),
        ({"min_tokens": 0}, "min_tokens"),
        ({"on_shrink": "maybe"}, "on_shrink"),
        ({"on_unavailable": "maybe"}, "on_unavailable"),
        ({"tenant_id": ""}, "tenant_id"),
        ({"tier": "free"}, "tenant_id"),
        ({"tenant_id": "a b"}, "tenant_id"),
        ({"model": "a\nb"}, "model"),
        ({"from": "2026-11-22"}, "from"),
        ({"from": "2026-11-20T00:00:00Z"}, "from"),
        ({"from": "soon"}, "from"),
        ({"limits": 5}, "limits"),
    ],
)
def test_a_wrong_definition_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidQuota) as refused:
        quota_from(GOOD | change, now=NOW)
    assert refused.value.field == field


def test_a_soft_budget_has_thresholds_unless_it_says_that_it_has_none() -> None:
    assert quota_from(GOOD | {"hard": False}, now=NOW).thresholds == (80, 90, 100)
    assert quota_from(GOOD | {"hard": False, "thresholds": []}, now=NOW).thresholds == ()
    assert quota_from(GOOD, now=NOW).thresholds == ()


def test_a_soft_limit_may_have_thresholds_above_100_percent() -> None:
    assert quota_from(GOOD | {"hard": False, "thresholds": [150, 80]}, now=NOW).thresholds == (80, 150)


def test_amounts_are_exact_in_smallest_units() -> None:
    spend = quota_from(GOOD | {"metric": "spend", "limit": "0.000000000000000001"}, now=NOW)
    assert (spend.limit, shown(spend.limit, "spend")) == (1, "0.000000000000000001")
    gpu = quota_from(GOOD | {"metric": "gpu_seconds", "limit": Decimal("2.5")}, now=NOW)
    assert (gpu.limit, shown(gpu.limit, "gpu_seconds")) == (2_500_000, "2.5")
    assert shown(quota_from(GOOD, now=NOW).limit, "output_tokens") == "100"


def test_the_latest_version_that_has_begun_holds_and_a_tenants_own_before_its_tiers() -> None:
    def quota(limit: int, days: int = 0, **more: Any) -> Any:
        at = NOW + timedelta(days=days)
        return quota_from(GOOD | {"limit": limit, "from": at} | more, now=NOW)

    tiers = {"tenant_id": None, "tier": "free"}
    versions = [quota(10, **tiers), quota(20), quota(30, days=2), quota(5, **tiers, metric="requests")]

    def limits(days: int, tier: str = "free") -> dict[str, int]:
        return {q.quota_id: q.limit for q in in_force(versions, "t1", tier, NOW + timedelta(days=days))}

    assert limits(0) == {"month-output_tokens": 20, "month-requests": 5}
    assert limits(2) == {"month-output_tokens": 30, "month-requests": 5}
    assert limits(0, tier="paid") == {"month-output_tokens": 20}
    assert [q.limit for q in in_force(versions, "t2", "free", NOW)] == [10, 5]


def test_the_strictest_way_to_go_on_wins() -> None:
    assert strictest(["allow", "deny", "safe_capacity"]) == "deny"
    assert strictest([]) is None
