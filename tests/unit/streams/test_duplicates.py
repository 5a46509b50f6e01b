"""What a second arrival of one identity is."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from streams.duplicates import Seen, Verdict, judge

FIRST = Seen(b"content", "stream", datetime(2026, 11, 1, tzinfo=UTC), None)


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
        ({"numbered_by": ("r1", "b1")}, Verdict.DUPLICATE),
    ],
)
def test_an_arrival_is_judged_by_content_and_source(changed: dict[str, object], verdict: Verdict) -> None:
    assert judge(FIRST, replace(FIRST, **changed)) is verdict  # type: ignore[arg-type]


def test_equal_content_numbered_by_two_boots_is_a_conflict() -> None:
    numbered = replace(FIRST, numbered_by=("r1", "b1"))
    assert judge(numbered, numbered) is Verdict.DUPLICATE
    assert judge(numbered, replace(FIRST, numbered_by=("r1", "b2"))) is Verdict.CONFLICT
    assert judge(numbered, replace(FIRST, numbered_by=("r2", "b1"))) is Verdict.CONFLICT
