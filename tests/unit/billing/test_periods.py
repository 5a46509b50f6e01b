"""How billing periods are written and bounded."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from billing.errors import PeriodInvalid
from billing.periods import BillingPeriod, accounting_month, closed_before, parse_period

MICROSECOND = timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("text", "start", "end", "months"),
    [
        ("2026-10", "2026-10-01", "2026-11-01", 1),
        ("2026-12", "2026-12-01", "2027-01-01", 1),
        ("2028-02", "2028-02-01", "2028-03-01", 1),
        ("2026-Q4", "2026-10-01", "2027-01-01", 3),
        ("2026", "2026-01-01", "2027-01-01", 12),
        ("2026-10-17..2026-11-17", "2026-10-17", "2026-11-17", None),
    ],
)
def test_a_period_is_read_and_written_the_same_way(text: str, start: str, end: str, months: int | None) -> None:
    period = parse_period(text)
    assert (period.start, period.end) == (
        datetime.fromisoformat(start).replace(tzinfo=UTC),
        datetime.fromisoformat(end).replace(tzinfo=UTC),
    )
    assert period.name == text
    assert period.months == months


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-13",
        "2026-00",
        "2026-Q5",
        "26-10",
        "2026-10-01",
        "2026-10-17..2026-10-17",
        "2026-02-30..2026-03-01",
        "0000",
    ],
)
def test_what_names_no_period_is_refused_with_the_forms_that_do(text: str) -> None:
    with pytest.raises(PeriodInvalid):
        parse_period(text)


def test_the_start_belongs_to_a_period_and_the_end_to_the_next() -> None:
    october, november = parse_period("2026-10"), parse_period("2026-11")
    assert october.contains(october.start)
    assert not october.contains(october.start - MICROSECOND)
    assert october.contains(october.end - MICROSECOND)
    assert not october.contains(october.end)
    assert november.contains(october.end)


def test_a_bound_that_is_not_utc_is_refused() -> None:
    local = datetime(2026, 10, 1, tzinfo=timezone(timedelta(hours=2)))
    with pytest.raises(PeriodInvalid, match="UTC"):
        BillingPeriod(local, local + timedelta(days=1))
    with pytest.raises(PeriodInvalid, match="UTC"):
        BillingPeriod(datetime(2026, 10, 1), datetime(2026, 11, 1))  # noqa: DTZ001


def test_a_part_of_a_day_is_written_with_its_hours() -> None:
    start = datetime(2026, 10, 16, 12, tzinfo=UTC)
    assert BillingPeriod(start, parse_period("2026-10").end).name == "2026-10-16T12:00:00Z..2026-11-01"


def test_the_accounting_month_is_that_of_utc() -> None:
    tokyo = timezone(timedelta(hours=9))
    assert accounting_month(datetime(2026, 11, 1, 8, 59, tzinfo=tokyo)) == "2026-10"
    assert accounting_month(datetime(2026, 11, 1, 9, 0, tzinfo=tokyo)) == "2026-11"


@pytest.mark.parametrize(
    ("books", "expected"),
    [
        ({}, None),
        ({"a": {}}, None),
        ({"a": {"2026-10": False}}, None),
        ({"a": {"2026-10": True}}, "2026-11-01"),
        ({"a": {"2026-10": True, "2026-11": True, "2026-12": False}}, "2026-12-01"),
        ({"a": {"2026-10": True, "2026-12": True}}, "2026-11-01"),
        ({"a": {"2026-10": False, "2026-11": True}}, None),
        ({"a": {"2026-10": True, "2026-11": True}, "b": {"2026-10": True}}, "2026-11-01"),
        ({"a": {"2026-10": True}, "b": {}}, None),
    ],
)
def test_periods_are_closed_up_to_the_first_month_that_any_book_has_not_closed(
    books: dict[str, dict[str, bool]], expected: str | None
) -> None:
    assert closed_before(books) == (datetime.fromisoformat(expected).replace(tzinfo=UTC) if expected else None)
