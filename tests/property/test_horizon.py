"""The horizon: nothing that may have been forgotten is accepted, and reading again gives the same answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from streams.rules.horizon import KEPT_LONGER, SHORTEST, Horizon, identified_at, minted_at
from tests.builders import uuid_v7

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
times = st.integers(0, 400 * 86_400_000).map(lambda ms: BEGIN + timedelta(milliseconds=ms))
lengths = st.integers(45, 100).map(lambda days: timedelta(days=days))


@given(times, st.integers(0))
def test_a_uuid_v7_says_when_it_was_minted_in_either_case(at: datetime, rest: int) -> None:
    assert minted_at(uuid_v7(at, rest)) == at
    assert minted_at(uuid_v7(at, rest).upper()) == at


@given(times, times, times, times, lengths, st.booleans())
def test_no_event_whose_identity_may_be_forgotten_is_accepted(
    completed: datetime, appended: datetime, now: datetime, closed: datetime, length: timedelta, minted: bool
) -> None:
    request_id = uuid_v7(completed) if minted else "req-1"
    before = Horizon(length, closed).forget_before(now)
    assert before is not None
    after = Horizon(length, closed, forgotten_before=before)
    if identified_at(request_id, completed) < before:
        assert after.why_too_old(request_id, completed, appended) is not None


@given(times, times, times, times, lengths)
def test_what_is_still_accepted_by_the_append_time_was_not_forgotten_by_then(
    completed: datetime, appended: datetime, now: datetime, closed: datetime, length: timedelta
) -> None:
    """Applied within five minutes of its append, a message meets its identity: the two bounds never disagree."""
    now = max(appended, min(now, appended + KEPT_LONGER))
    plain = Horizon(length, closed)
    if plain.why_too_old("req-1", completed, appended) is None:
        before = plain.forget_before(now)
        assert before is not None
        assert completed >= before


@given(times, times, st.one_of(st.none(), times), lengths)
def test_an_open_period_is_never_behind_the_horizon(
    completed: datetime, appended: datetime, closed: datetime | None, length: timedelta
) -> None:
    horizon = Horizon(length, closed)
    if closed is None or completed >= closed:
        assert horizon.why_too_old("req-1", completed, appended) is None


@given(times, times, times)
def test_forgetting_never_moves_back(now: datetime, closed: datetime, forgotten: datetime) -> None:
    before = Horizon(SHORTEST, closed, forgotten).forget_before(now)
    assert before is not None
    assert before >= forgotten
