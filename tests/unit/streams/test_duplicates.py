"""What a further arrival of one identity is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.events import SOURCE_STRENGTH
from streams.rules.duplicates import Verdict, Version, in_force, judge

FIRST = Version(b"content", "stream", datetime(2026, 11, 1, tzinfo=UTC), None)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, Verdict.DUPLICATE),
        ({"completed_at": FIRST.completed_at + timedelta(microseconds=1)}, Verdict.RETIMED),
        ({"content_digest": b"other"}, Verdict.CONFLICT),
        ({"usage_source": "engine"}, Verdict.STRONGER),
        ({"usage_source": "engine", "content_digest": b"other"}, Verdict.STRONGER),
        ({"usage_source": "gateway"}, Verdict.DUPLICATE),
        ({"usage_source": "gateway", "content_digest": b"other"}, Verdict.WEAKER),
        ({"numbered_by": b"r1b1"}, Verdict.DUPLICATE),
    ],
)
def test_an_arrival_is_judged_by_content_and_source(changed: dict[str, object], verdict: Verdict) -> None:
    assert judge([FIRST], replace(FIRST, **changed)) is verdict  # type: ignore[arg-type]


def test_equal_content_numbered_by_two_boots_is_a_conflict() -> None:
    numbered = replace(FIRST, numbered_by=b"r1b1")
    assert judge([numbered], numbered) is Verdict.DUPLICATE
    assert judge([numbered], replace(FIRST, numbered_by=b"r1b2")) is Verdict.CONFLICT
    assert judge([numbered], replace(FIRST, numbered_by=b"r2b1")) is Verdict.CONFLICT


def test_a_resend_of_a_superseded_version_is_its_duplicate() -> None:
    engine = replace(FIRST, usage_source="engine", content_digest=b"truth")
    assert judge([FIRST, engine], FIRST) is Verdict.DUPLICATE
    assert judge([FIRST, engine], replace(FIRST, content_digest=b"third")) is Verdict.CONFLICT


@given(st.lists(st.sampled_from(sorted(SOURCE_STRENGTH)), min_size=1, max_size=5, unique=True))
def test_the_strongest_source_counts_in_whatever_order_they_come(names: list[str]) -> None:
    versions = [replace(FIRST, usage_source=name, content_digest=name.encode()) for name in names]
    for order in permutations(versions):
        stored = [order[0]]
        counting = order[0]
        for arrived in order[1:]:
            verdict = judge(stored, arrived)
            assert verdict is (Verdict.STRONGER if arrived.strength > counting.strength else Verdict.WEAKER)
            counting = arrived if verdict is Verdict.STRONGER else counting
            stored.append(arrived)
        assert in_force(stored) == counting == max(versions, key=lambda v: v.strength)
