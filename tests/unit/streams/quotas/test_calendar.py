"""Periods of budgets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.quotas.calendar import Anchor, bounds, microseconds, moment
from streams.quotas.definitions import Period


def period(kind: Period, at: str, anchor: Anchor | None = None) -> tuple[str, str]:
    start, end = bounds(
        kind, microseconds(datetime.fromisoformat(at)), anchor or Anchor(datetime(1970, 1, 1, tzinfo=UTC))
    )
    return str(moment(start))[:16], str(moment(end))[:16]


def test_days_and_months_begin_at_midnight_utc() -> None:
    assert period("day", "2026-11-21T23:59:59.999999+00:00") == ("2026-11-21 00:00", "2026-11-22 00:00")
    assert period("day", "2026-11-22T00:00:00+00:00") == ("2026-11-22 00:00", "2026-11-23 00:00")
    assert period("month", "2026-12-31T23:00:00+00:00") == ("2026-12-01 00:00", "2027-01-01 00:00")


@pytest.mark.parametrize(
    ("at", "start", "end"),
    [
        ("2027-02-27T00:00:00+00:00", "2027-01-31 06:00", "2027-02-28 06:00"),
        ("2027-02-28T07:00:00+00:00", "2027-02-28 06:00", "2027-03-31 06:00"),
        ("2028-02-29T05:00:00+00:00", "2028-01-31 06:00", "2028-02-29 06:00"),
    ],
)
def test_a_subscription_of_the_31st_has_the_last_day_of_shorter_months(at: str, start: str, end: str) -> None:
    assert period("billing_period", at, Anchor(datetime(2026, 10, 31, 6, tzinfo=UTC))) == (start, end)


moments = st.integers(
    microseconds(datetime(2020, 1, 1, tzinfo=UTC)), microseconds(datetime(2040, 1, 1, tzinfo=UTC))
).map(moment)


@given(
    moments,
    moments,
    st.sampled_from([1, 3, 12]),
)
def test_every_moment_is_in_one_period_and_periods_join(at: datetime, anchored: datetime, months: int) -> None:
    anchor = Anchor(anchored, months)
    start, end = bounds("billing_period", microseconds(at), anchor)
    assert start <= microseconds(at) < end
    assert timedelta(days=27) < moment(end) - moment(start) < timedelta(days=367)
    assert bounds("billing_period", end, anchor)[0] == end
    assert bounds("billing_period", start - 1, anchor)[1] == start
