"""One tenant's book: what is admitted, shrunk, refused and why; attempts, leases, soft limits."""

from __future__ import annotations

from decimal import Decimal

import pytest
from msgspec import structs

from streams.quotas import answers, book_state
from streams.quotas.amounts import DatedPrice, PriceList
from streams.quotas.book import TenantBook
from streams.quotas.decisions import Ask, Limits, Refused
from streams.quotas.definitions import RATE_US
from streams.quotas.entries import Charged, Leased, Reserved, Returned, Settled
from streams.quotas.errors import OtherContent
from streams.quotas.granting import Slice, grant
from streams.quotas.loading import spent_alerts
from streams.quotas.meters import RateMeter, SlotMeter
from tests.quota_builders import (
    DAY,
    LIMITS,
    NOW,
    SECOND,
    admit,
    ask,
    book,
    budget,
    confirm,
    load,
    note,
    quota,
    rebuilt,
    row,
    settled,
)


def refused(made: object, asked: Ask, now: int = NOW) -> Refused:
    answer = made.decide(asked, now)  # type: ignore[attr-defined]
    assert isinstance(answer, Refused), answer
    return answer


def test_max_tokens_is_filled_in_shrunk_and_then_refused() -> None:
    made = book(quota(limit=1100))
    assert admit(made, ask("a", max_tokens=None)).max_tokens == 1024
    shrunk = admit(made, ask("b", max_tokens=500))
    assert (shrunk.max_tokens, shrunk.limited_by) == (76, ("day-output_tokens",))
    (wall,) = refused(made, ask("c")).walls
    assert (wall.because, wall.needed, wall.room) == ("in_flight", 16, 0)


def test_shrinking_can_be_forbidden() -> None:
    made = book(quota(limit=50, on_shrink="deny"))
    assert refused(made, ask(max_tokens=51)).walls[0].needed == 51
    assert admit(made, ask(max_tokens=50)).max_tokens == 50


def test_each_answer_of_a_request_may_have_max_tokens() -> None:
    made = book(quota(limit=1000))
    entry = admit(made, ask(max_tokens=400, n=2, prompts=2))
    assert (entry.max_tokens, entry.output_cap) == (250, 1000)


def test_a_spent_budget_says_when_its_period_ends() -> None:
    made = book(quota(limit=100))
    load(made, 99)
    (wall,) = refused(made, ask()).walls
    assert (wall.because, wall.wait_us) == ("spent", DAY // 2)


@pytest.mark.parametrize(
    ("used", "reserved", "max_tokens", "because"),
    [
        (990, 60, 30, "in_flight"),
        (970, 60, 75, "in_flight"),
        (970, 60, 85, "spent"),
        (1000, 0, 16, "spent"),
        (0, 1000, 1050, "in_flight"),
        (0, 0, 1051, "never"),
    ],
)
def test_a_budget_with_an_allowance_is_spent_where_nothing_that_ends_makes_room(
    used: int, reserved: int, max_tokens: int, because: str
) -> None:
    made = book(quota(limit=1000, overshoot_allowance=50, on_shrink="deny"))
    for _ in range(16):
        made.outputs.add(10)
    load(made, used)
    if reserved:
        admit(made, ask("other", max_tokens=reserved))
    assert refused(made, ask(max_tokens=max_tokens)).walls[0].because == because


def test_a_request_that_never_fits_is_told_so() -> None:
    made = book(quota(metric="input_tokens", limit=5), quota("second", "input_tokens", 5, model="m-1"))
    assert {wall.because for wall in refused(made, ask(input_tokens=6)).walls} == {"never"}


def test_a_rate_says_how_long_to_wait() -> None:
    made = book(quota("minute", "requests", 2))
    admit(made, ask("a"))
    admit(made, ask("b"))
    (wall,) = refused(made, ask("c")).walls
    assert (wall.because, wall.wait_us) == ("rate", 30 * SECOND)
    admit(made, ask("c"), NOW + 30 * SECOND)


def test_what_remains_of_a_rate_has_what_was_not_used_back() -> None:
    made = book(quota("minute", "output_tokens", 1000))
    admit(made, ask("a", max_tokens=900))
    made.apply(settled("a", 100))
    (standing,) = made.meters.standings("m-1", "", NOW)
    assert standing.remaining == 900
    admit(made, ask("b", max_tokens=500))
    assert b'"remaining":400,' in made.meters.standings_text("m-1", "", NOW)
    made.apply(settled("b", 0))
    for seconds, remaining in ((0, 400), (3, 918)):  # in answers, a slot later
        assert b'"remaining":%d,' % remaining in made.meters.standings_text("m-1", "", NOW + seconds * SECOND)


def test_a_rate_gives_nothing_back_of_what_was_admitted_before_it_held() -> None:
    made = book(quota(limit=10_000))
    admit(made, ask("before", max_tokens=900))
    made.define([quota(limit=10_000), quota("hour", "output_tokens", 1000)], NOW + 1)
    admit(made, ask("a", max_tokens=900), NOW + 2)
    made.apply(settled("before", 0, at=NOW + 3))
    assert admit(made, ask("b", max_tokens=900), NOW + 4).max_tokens == 100


def test_concurrency_counts_requests_until_they_end() -> None:
    made = book(quota("none", "concurrency", 1))
    admit(made, ask("a"))
    assert refused(made, ask("b")).walls[0].because == "concurrency"
    admit(made, ask("a", attempt=2))  # of a request that is in flight
    made.apply(settled("a", final=False))
    assert refused(made, ask("b")).walls[0].because == "concurrency"
    made.apply(settled("a", attempt=2))
    admit(made, ask("b"))


def test_quotas_of_a_model_hold_for_that_model_alone() -> None:
    made = book(quota(limit=100, model="m-1"), quota(limit=1000))
    assert admit(made, ask("a", max_tokens=400, model="m-2")).max_tokens == 400
    assert admit(made, ask("b", max_tokens=400)).max_tokens == 100


def test_spend_is_reserved_at_the_highest_price() -> None:
    prices = PriceList(
        [
            DatedPrice("", "input", Decimal("0.001"), 0),
            DatedPrice("", "cached_input", Decimal("0.0001"), 0),
            DatedPrice("", "output", Decimal("0.01"), 0),
            DatedPrice("m-2", "output", Decimal("0.1"), 0),
        ]
    )
    made = book(quota(metric="spend", limit="1.01"), prices=prices)
    assert admit(made, ask("a", 10, 1000)).max_tokens == 100
    made.apply(settled("a", 50, cached=4))
    spent = budget(made, "day-spend").used
    assert Decimal(spent) / 10**18 == Decimal("0.5064")
    assert admit(made, ask("b", 0, 1000)).max_tokens == 50
    assert refused(made, ask("c", 0, 1000, model="m-2")).walls[0].because == "never"  # 16 tokens of it cost 1.6


def test_a_price_that_rises_while_a_request_may_run_is_reserved_at() -> None:
    rises = NOW + Limits().held_us
    for at, granted in ((rises, 100), (rises + 1, 1000)):
        prices = PriceList(
            [DatedPrice("", "output", Decimal("0.001"), 0), DatedPrice("", "output", Decimal("0.01"), at)]
        )
        made = book(quota(metric="spend", limit="1"), prices=prices)
        assert admit(made, ask("a", 0, 1000)).max_tokens == granted


def test_what_is_settled_after_a_price_fell_counts_as_dear_as_it_may_be_until_it_is_confirmed() -> None:
    falls = NOW + 10 * SECOND
    prices = PriceList(
        [DatedPrice("", "output", Decimal("0.01"), 0), DatedPrice("", "output", Decimal("0.001"), falls)]
    )
    made = book(quota(metric="spend", limit="1"), prices=prices)
    admit(made, ask(max_tokens=100))
    made.apply(settled(output=100, at=falls + SECOND))  # told late
    assert budget(made, "day-spend").used == 10**18
    made.confirm(row(output=100, at=falls - SECOND))
    assert budget(made, "day-spend").used == 10**18


def test_a_slice_that_is_renewed_after_a_price_fell_holds_what_was_used_before_and_is_not_told_yet() -> None:
    falls = NOW + 10 * SECOND
    prices = PriceList(
        [DatedPrice("", "output", Decimal("0.01"), 0), DatedPrice("", "output", Decimal("0.001"), falls)]
    )
    made = book(quota(metric="spend", limit="10"), prices=prices)
    made.apply(lease())
    made.apply(lease(at=falls + SECOND, output=10))
    assert budget(made, "day-spend").leased == 31 * 10**17
    made.apply(lease(at=falls + Limits().held_us + SECOND, output=10))
    assert budget(made, "day-spend").leased == 32 * 10**16


def test_the_same_again_is_answered_the_same_and_other_content_refused() -> None:
    made = book(quota(limit=150))
    entry = admit(made, ask(max_tokens=None))
    assert made.decide(ask(max_tokens=None), NOW) is None
    assert made.admitted(ask(max_tokens=None)) == entry
    with pytest.raises(OtherContent):
        made.decide(ask(max_tokens=99), NOW)
    assert budget(made).reserved == 150


def test_every_attempt_reserves_its_own_and_final_ends_them_all() -> None:
    made = book(quota(limit=250))
    admit(made, ask())
    admit(made, ask(attempt=2))
    assert budget(made).reserved == 200
    assert admit(made, ask(attempt=3)).max_tokens == 50
    made.apply(settled(attempt=2, output=60))
    assert (budget(made).reserved, budget(made).used) == (0, 60)


def test_what_was_never_dispatched_leaves_nothing() -> None:
    made = book(quota(), quota(metric="requests"), quota("minute", "requests", 1))
    admit(made, ask())
    made.apply(settled(output=0, input=0, dispatched=False))
    assert [(meter.used, meter.reserved) for meter in made.meters.budgets] == [(0, 0), (0, 0)]
    admit(made, ask("b"))


def test_what_is_withdrawn_before_it_is_asked_for_is_never_reserved() -> None:
    made = book(quota(), quota("none", "concurrency", 1))
    made.apply(settled(output=0, input=0, dispatched=False))
    with pytest.raises(OtherContent):
        made.decide(ask(), NOW + 1)
    admit(made, ask(attempt=2))
    made.apply(settled(attempt=2, output=7))
    made.confirm(row(output=9))  # it ran all the same
    assert (budget(made).used, budget(made).reserved) == (7 + 9, 0)


def withdrawn(nonce: str, **more: object) -> Settled:
    return settled(output=0, input=0, dispatched=False, nonce=nonce, **more)


def test_a_withdrawal_takes_back_the_question_that_it_names_and_no_later_one() -> None:
    made = book(quota(limit=100), quota("none", "concurrency", 1))
    first = admit(made, ask(nonce="a"))
    made.apply(structs.replace(first, nonce="b"))  # the same attempt was asked for again
    stored = book_state.decode(book_state.joined([book_state.encoded(book_state.state_of(made))]))[0]
    again = book()
    book_state.restore(again, stored)
    again.define([quota(limit=100), quota("none", "concurrency", 1)], NOW)
    load(again)
    for each in (made, again):
        each.apply(withdrawn("a", final=True))
        assert (budget(each).reserved, each.requests["r1"].in_slot) == (100, True)
        with pytest.raises(OtherContent):
            each.decide(ask(nonce="a"), NOW + 1)
        assert isinstance(each.decide(ask("r2"), NOW + 1), Refused)
        each.apply(withdrawn("b", final=False))
        assert (budget(each).reserved, each.requests["r1"].in_slot) == (0, False)
        admit(each, ask(nonce="c"), NOW + 2)


def test_a_withdrawal_that_comes_first_bars_its_own_question_alone() -> None:
    made = book(quota(limit=100))
    made.apply(withdrawn("a", final=False))
    with pytest.raises(OtherContent):
        made.decide(ask(nonce="a"), NOW + 1)
    admit(made, ask(nonce="b"), NOW + 1)
    made.apply(withdrawn("a", final=False))  # told again
    assert budget(made).reserved == 100


def test_an_attempt_that_another_may_follow_ends_itself_alone() -> None:
    made = book(quota(), quota("none", "concurrency", 1))
    admit(made, ask())
    admit(made, ask(attempt=2))
    made.apply(settled(output=30, final=False))
    assert (budget(made).used, budget(made).reserved) == (30, 100)
    made.apply(settled(attempt=2, output=50, final=False))
    admit(made, ask("b"))  # nothing of the first runs any more
    assert (budget(made).used, budget(made).reserved) == (80, 100)
    made.confirm(row(output=30))
    made.confirm(row(attempt=2, output=50))
    assert made.requests["r1"].ended_at is not None


def test_an_expired_reservation_is_corrected_by_its_late_event() -> None:
    made = book(quota(limit=100))
    entry = admit(made, ask())
    assert made.tend("r1", entry.deadline).expired == 1
    assert budget(made).remaining == 100
    made.confirm(row(output=70, at=NOW))
    assert (budget(made).used, budget(made).unreserved) == (70, 0)


LATE = NOW + LIMITS.held_us


def hour_left(made: TenantBook) -> int:
    """How much of the rate of an hour is left at the deadline of a request of now."""
    meter = made.meters.named("hour-output_tokens")
    assert isinstance(meter, RateMeter)
    return meter.rate.room(LATE, 1000)


@pytest.mark.parametrize(
    "first",
    [
        [],
        ["expires"],
        ["crash"],
        ["crash", "expires"],
        ["told by the windows"],
        ["crash", "told by the windows"],
        ["told by the windows", "crash"],
    ],
)
@pytest.mark.parametrize("told", ["event", "settle"])
def test_a_rate_gets_back_what_was_not_used_whoever_tells_it_and_however_late(first: list[str], told: str) -> None:
    quotas = (quota("hour", limit=1000), quota())
    made = book(*quotas)
    admit(made, ask(max_tokens=1000))
    for step in first:
        if step == "expires":
            assert made.tend("r1", LATE).expired == 1
        elif step == "told by the windows":  # a process that begins knows that its event was counted, and no more
            made.resolve("r1", 1)
        else:
            made = rebuilt([], quotas, LIMITS, NOW, book_state.joined([book_state.encoded(book_state.state_of(made))]))
    assert hour_left(made) == 1000 * LIMITS.held_us // RATE_US["hour"], "it may have used all of it"
    for _ in range(2):
        if told == "event":
            made.confirm(row(output=10))
        else:
            made.apply(settled(output=10, at=LATE))
        assert hour_left(made) == 1000


def test_a_rate_is_charged_what_an_attempt_has_used_that_was_said_to_be_over() -> None:
    made = book(quota("hour", limit=1000))
    admit(made, ask(max_tokens=500))
    admit(made, ask(max_tokens=400, attempt=2))
    made.apply(settled(output=10, attempt=2, at=NOW + SECOND))
    assert hour_left(made) == 1000
    made.apply(settled(output=500, at=NOW + 2 * SECOND))
    assert hour_left(made) < 1000


def test_what_an_outage_let_in_fills_a_rate_and_keeps_nobody_waiting_for_longer_than_a_period() -> None:
    made = book(quota("minute", "requests", 10))
    for number in range(100):  # ten minutes' worth, told when the service is back
        made.apply(settled(f"unasked-{number}", at=NOW + number))
        for _ in range(2):  # the database does not know their events
            made.apply(Charged("t1", f"unasked-{number}", 1, NOW + number))
    assert refused(made, ask(), NOW + SECOND).walls[0].because == "rate"
    admit(made, ask(), NOW + 7 * SECOND)


def test_what_was_reserved_is_known_long_after_it_expired_or_was_confirmed_by_a_weaker_source() -> None:
    made = book(quota())
    entry = admit(made, ask("late"))
    assert made.tend("late", entry.deadline).expired == 1
    assert made.tend("late", entry.deadline + 600 * SECOND).again_at is not None
    admit(made, ask("told"))
    confirm(made, row("told", output=70))
    assert made.tend("told", NOW + 60 * SECOND).again_at is None  # forgotten
    for usage in (
        row("late", output=50, at=NOW),
        row("told", output=-70, requests=-1, first=False),
        row("told", output=80),
        row("foreign", output=5),
        row("foreign", output=-5, requests=-1, first=False),
        row("foreign", output=6),
    ):
        confirm(made, usage)
    assert (budget(made).confirmed, budget(made).unreserved) == (50 + 80 + 6, 5), "what replaces it is judged as it was"
    assert made.tend("late", entry.deadline + DAY + SECOND).again_at is None


def test_an_attempt_that_was_withdrawn_and_asked_for_again_is_known_long_after_it_expired() -> None:
    made = book(quota())
    admit(made, ask())
    made.apply(settled(dispatched=False))
    entry = admit(made, ask(), NOW + SECOND)
    assert made.tend("r1", entry.deadline).expired == 1
    assert made.tend("r1", entry.deadline + 600 * SECOND).again_at is not None
    confirm(made, row())
    assert budget(made).unreserved == 0


def test_an_attempt_that_another_one_followed_is_known_when_its_event_comes_at_last() -> None:
    """As of a replica that was killed: its request went on elsewhere, and what it had used is found in its spool."""
    made = book(quota())
    admit(made, ask())
    admit(made, ask(attempt=2))
    made.apply(settled(attempt=2))
    confirm(made, row(attempt=2))
    assert made.tend("r1", NOW + 60 * SECOND).again_at is not None
    confirm(made, row(at=NOW))
    assert budget(made).unreserved == 0
    assert made.tend("r1", NOW + 60 * SECOND).again_at is None
    admit(made, ask("withdrawn"))
    made.apply(settled("withdrawn", dispatched=False))
    assert made.tend("withdrawn", NOW + 60 * SECOND).again_at is None, "nothing comes of it"


def test_what_is_never_confirmed_ends_with_the_period_that_it_counts_in() -> None:
    made = book(quota(limit=100), quota("month", limit=1000))
    made.apply(settled("lost", 40))
    made.apply(settled("met", 40))
    made.confirm(row("met", output=40))
    assert made.tend("met", NOW + 31 * SECOND) == (None, 0, 0)
    late = NOW + 61 * SECOND
    assert made.overdue("lost", late) == [1]
    assert [made.finds("lost", 1), made.finds("lost", 1)] == [True, False]
    assert made.tend("lost", late).again_at is not None
    assert made.tend("lost", NOW + DAY).again_at is not None, "the month goes on"
    assert (budget(made, "month-output_tokens").used, budget(made).used) == (80, 0)
    assert made.tend("lost", NOW + 30 * DAY) == (None, 0, 1)
    assert not made.requests
    assert [meter.used for meter in made.meters.budgets] == [0, 0]
    made.roll(NOW + 31 * DAY)


def test_usage_that_nobody_reserved_counts_and_is_told() -> None:
    made = book(quota(limit=100))
    confirm(made, row("foreign", output=170))
    confirm(made, row("foreign", output=-20, requests=0, first=False))  # a correction belongs to what it corrects
    confirm(made, row("foreign", output=20, requests=0, first=False))
    assert (budget(made).used, budget(made).unreserved, budget(made).remaining) == (170, 170, 0)
    assert refused(made, ask()).walls[0].because == "spent"


def test_corrections_count_as_no_request() -> None:
    made = book(quota(), quota(metric="requests"))
    made.confirm(row(output=70))
    made.confirm(row(output=-20, requests=0, first=False))
    assert [meter.used for meter in made.meters.budgets] == [50, 1]


def test_spend_counts_only_what_bills() -> None:
    made = book(quota(metric="spend"), quota(), prices=PriceList([DatedPrice("", "output", Decimal(1), 0)]))
    made.confirm(row(bills=False))
    assert [meter.used for meter in made.meters.budgets] == [0, 50]


def test_gpu_seconds_stop_when_they_are_used() -> None:
    made = book(quota(metric="gpu_seconds", limit=1))
    admit(made, ask("a"))
    made.confirm(row("a", gpu_us=1_000_000))
    assert refused(made, ask("b")).walls[0].because == "spent"


@pytest.mark.parametrize(("used", "fits"), [(2, True), (3, False), (4, False)])
def test_gpu_time_that_is_priced_stops_when_the_money_is_spent(used: int, *, fits: bool) -> None:
    prices = PriceList([DatedPrice("", "gpu_second", Decimal(1), 0)])
    made = book(quota(metric="spend", limit=3), prices=prices)
    made.confirm(row("before", gpu_us=used * 1_000_000))
    assert grant(made, "m-1", "", Slice(10, 100, 100, 5), NOW, 1) == (Slice(10, 100, 100, 5) if fits else Slice())
    if fits:
        admit(made, ask("a"))
        made.apply(settled("a"))
        assert budget(made, "day-spend").reserved == 0
    else:
        assert refused(made, ask("a")).walls[0].because == "spent"


def test_at_midnight_what_is_in_flight_moves_and_what_is_used_stays() -> None:
    made = book(quota(limit=500))
    midnight = NOW + DAY // 2
    admit(made, ask("old"))
    made.apply(settled("old", 40, at=midnight - 10 * SECOND))
    admit(made, ask("skewed", max_tokens=30), midnight - 5 * SECOND)
    made.apply(settled("skewed", 30, at=midnight - SECOND))
    admit(made, ask("spans", max_tokens=90), midnight - SECOND)
    made.confirm(row("early", output=7, at=midnight + 1))  # of a replica whose clock is fast
    made.roll(midnight)
    meter = budget(made)
    assert (meter.start, meter.confirmed, meter.unconfirmed, meter.reserved) == (midnight, 7, 30, 90)
    made.confirm(row("old", output=40, at=midnight - 10 * SECOND))
    made.confirm(row("spans", output=9, at=midnight + SECOND))
    assert (meter.used, meter.reserved) == (7 + 30 + 9, 0)


def test_what_nobody_had_reserved_is_told_apart_also_where_it_completes_before_its_period_has_begun_here() -> None:
    """As of a replica whose clock is fast."""
    midnight, quotas = NOW + DAY // 2, (quota(), quota(metric="requests"))
    made = book(*quotas)
    made.apply(lease(until=midnight + DAY))
    for name, at in (("before", midnight - 1), ("after", midnight), ("of a slice", midnight)):
        confirm(made, row(name.replace(" ", "-"), at=at))
    note(made, made.apply(settled("of-a-slice", at=midnight - 1, lease_id="l1")), midnight - 1)
    assert [meter.unreserved for meter in made.meters.budgets] == [50, 1]
    again = rebuilt([], quotas, LIMITS, NOW, book_state.joined([book_state.encoded(book_state.state_of(made))]))
    for each in (made, again):
        each.roll(midnight)
        assert [meter.unreserved for meter in each.meters.budgets] == [50, 1]
        each.roll(midnight + DAY)
        assert [meter.unreserved for meter in each.meters.budgets] == [0, 0]


def test_soft_budgets_refuse_nothing_but_put_back_and_shorten() -> None:
    made = book(quota(limit=100, hard=False, thresholds=[50, 100]))
    for number in range(16):
        made.outputs.add(number + 20)
    assert admit(made, ask("a")).priority == 0
    assert grant(made, "m-1", "", Slice(10, 100, 100, 0), NOW, 1).output_tokens == 100
    load(made, 60)
    second = admit(made, ask("b", max_tokens=400))
    assert (second.priority, second.max_tokens, second.limited_by) == (10, 35, ("day-output_tokens",))
    assert grant(made, "m-1", "", Slice(10, 100, 100, 0), NOW, 1) == Slice()
    load(made, 120)
    late = admit(made, ask("c", max_tokens=400))
    assert (late.priority, late.max_tokens, late.limited_by) == (20, 28, ("day-output_tokens",))
    assert budget(made).reserved == 35 + 35 + 28, "what they will probably use, not the 100 that the first may"


def test_a_soft_budget_that_does_not_shrink_only_puts_back() -> None:
    made = book(quota(limit=100, hard=False, thresholds=[50], on_shrink="deny"))
    for number in range(16):
        made.outputs.add(number + 20)
    load(made, 60)
    entry = admit(made, ask("a", max_tokens=400))
    assert (entry.priority, entry.max_tokens, entry.limited_by) == (10, 400, ("day-output_tokens",))


def test_who_waits_for_a_new_period_comes_back_within_a_minute_of_it() -> None:
    made = book(quota(limit=100))
    load(made, 100)
    for jitter in (0.0, 1.0):
        headers, _ = answers.refusal(refused(made, ask("a")), jitter, "deny")
        assert int(dict(headers)["retry-after"]) == DAY // 2 // SECOND + 60 * jitter


def test_thresholds_are_told_once_a_period_also_late_in_it() -> None:
    made = book(quota(limit=100, thresholds=[80, 90, 100]))
    meter = budget(made)
    midnight = NOW + DAY // 2

    def told() -> list[tuple[int, int]]:
        return [(each.percent, each.start) for each in meter.crossed()]

    made.confirm(row("a", output=79))
    assert told() == []
    made.confirm(row("b", output=2))
    assert (told(), told()) == ([(80, midnight - DAY)], [])
    meter.rolled_to(midnight)
    made.confirm(row("late", output=10, at=midnight - 1))
    made.confirm(row("c", output=85, at=midnight))
    assert (told(), told()) == ([(90, midnight - DAY), (80, midnight)], [])
    assert (meter.confirmed, made.decide(ask("d"), midnight + 1) is not None) == (85, True)


@pytest.mark.parametrize(
    ("used", "needs", "told"), [(950, 60, [80, 90, 100]), (985, 16, [80, 90, 100]), (500, 600, []), (850, 200, [80])]
)
def test_a_budget_that_refuses_small_requests_is_told_as_used_up(used: int, needs: int, told: list[int]) -> None:
    """A hard one is seldom used to its last unit; a request that is large says nothing about others."""
    made = book(quota(limit=1000, thresholds=[80, 90, 100], on_shrink="deny"))
    load(made, used)
    answer = refused(made, ask(max_tokens=needs))
    assert answer.walls[0].because == "spent"
    alerts = spent_alerts(made, answer)
    assert [alert.subject["percent"] for alert in alerts] == told
    assert spent_alerts(made, answer) == []
    assert all(f"{used} of 1000" in alert.detail for alert in alerts)


def test_quotas_of_an_adapter_hold_for_that_adapter_alone() -> None:
    made = book(quota(limit=100, adapter="tuned"), quota(limit=1000))
    assert admit(made, ask("a", max_tokens=400)).max_tokens == 400
    assert admit(made, ask("b", max_tokens=400, adapter="tuned")).max_tokens == 100
    made.apply(settled("b", 90, adapter="tuned"))
    made.confirm(row("c", output=7, adapter="tuned"))
    assert budget(made, "day-output_tokens:adapter=tuned").used == 97


def test_learning_promises_only_a_share() -> None:
    made = book(quota(limit=1000))
    entry = made.decide(ask(max_tokens=500), NOW, share=10)
    assert isinstance(entry, Reserved)
    assert entry.max_tokens == 100


def test_learning_promises_a_share_of_what_is_not_used_in_all() -> None:
    made = book(quota(limit=1000), quota("none", "concurrency", 40))
    for number in range(100):
        entry = made.decide(ask(f"r{number}", max_tokens=16), NOW, share=10)
        if isinstance(entry, Reserved):
            made.apply(entry)
    slots = made.meters.named("none-concurrency")
    assert isinstance(slots, SlotMeter)
    assert (budget(made).reserved <= 100, slots.in_use) == (True, 4)
    alone = book(quota(limit=1000))
    for number in range(100):
        entry = alone.decide(ask(f"r{number}", max_tokens=16), NOW, share=10)
        if isinstance(entry, Reserved):
            alone.apply(entry)
    assert 84 < budget(alone).reserved <= 100


def test_rates_begin_as_full_as_a_share_leaves_them_while_nothing_is_known() -> None:
    made = book(quota("minute", "requests", 60))
    made.meters.fill_rates(90, 0, NOW)
    (meter,) = made.meters.all
    assert isinstance(meter, RateMeter)
    assert [meter.rate.room(NOW + seconds * SECOND, 60) for seconds in (0, 10, 60)] == [6, 16, 60]


def lease(**more: int) -> Leased:
    return Leased("t1", "l1", "gw", more.pop("at", NOW), "m-1", "", more.pop("requests", 5), 0, more.pop("output", 300),
                  more.pop("slots", 2), more.pop("until", NOW + 60 * SECOND))  # fmt: skip


def test_a_slice_is_taken_from_every_quota_and_comes_back() -> None:
    made = book(quota(limit=1000), quota(metric="requests", limit=10), quota("none", "concurrency", 3))
    made.apply(lease())
    made.apply(lease())  # the journal read twice
    assert [meter.leased for meter in made.meters.budgets] == [300, 5]
    assert admit(made, ask("a", max_tokens=2000)).max_tokens == 700
    assert refused(made, ask("b", max_tokens=10)).walls[-1].because in ("concurrency", "in_flight")
    made.apply(Returned("t1", "l1", NOW + 1, 2, 0, 100, 0, closed=False))
    assert [meter.leased for meter in made.meters.budgets] == [200, 3]
    made.apply(Returned("t1", "l1", NOW + 2, 0, 0, 0, 0, closed=True))
    assert [meter.leased for meter in made.meters.budgets] == [0, 0]
    slots = made.meters.named("none-concurrency")
    assert isinstance(slots, SlotMeter)
    assert slots.leased == 0


def test_a_slice_that_is_given_back_twice_keeps_what_runs_out_of_it() -> None:
    made = book(quota(limit=1000))
    made.apply(lease())
    for at in (NOW + 1, NOW + 2):
        made.apply(Returned("t1", "l1", at, 3, 0, 200, 0, closed=False))
    assert budget(made).leased == 100
    made.apply(lease(at=NOW + 3, output=50))
    made.apply(Returned("t1", "l1", NOW + 4, 0, 0, 50, 0, closed=False))
    assert budget(made).leased == 100, "renewed since, it may be given back again"


def test_what_is_used_out_of_a_slice_leaves_it_and_is_not_unreserved() -> None:
    made = book(quota(limit=1000))
    made.apply(lease())
    made.apply(settled("x", 120, lease_id="l1", input=0))
    meter = budget(made)
    assert (meter.leased, meter.unconfirmed) == (180, 120)
    made.apply(settled("x", 120, lease_id="l1", input=0))
    made.confirm(row("x", output=120))
    assert (meter.leased, meter.unconfirmed, meter.confirmed, meter.unreserved) == (180, 0, 120, 0)


def test_an_event_that_bills_nothing_and_is_faster_than_the_settle_of_a_slice_leaves_money_alone() -> None:
    made = book(quota(metric="spend", limit=9), prices=PriceList([DatedPrice("", "request", Decimal(1), 0)]))
    made.apply(lease())
    confirm(made, row("foreign"))
    confirm(made, row("x", bills=False))
    note(made, made.apply(settled("x", 50, lease_id="l1")))
    assert (budget(made, "day-spend").confirmed, budget(made, "day-spend").unreserved) == (10**18, 10**18)


def test_an_event_may_be_faster_than_the_settle_of_a_slice() -> None:
    made = book(quota(limit=1000))
    made.apply(lease())
    confirm(made, row("x", output=120))
    assert budget(made).unreserved == 120
    note(made, made.apply(settled("x", 120, lease_id="l1", input=0)))
    meter = budget(made)
    assert (meter.leased, meter.unconfirmed, meter.confirmed, meter.unreserved) == (180, 0, 120, 0)


def test_a_slice_moves_whole_into_the_next_period_and_each_step_may_be_told_twice() -> None:
    made = book(quota(limit=1000))
    midnight = NOW + DAY // 2
    granted = lease(at=midnight - SECOND, until=midnight + 60 * SECOND)
    used = settled("x", 120, at=midnight - 10 * SECOND, lease_id="l1", lease_no=1, input=0)
    for entry in (granted, granted, used, used):
        made.apply(entry)
    assert (budget(made).leased, budget(made).used) == (180, 120)
    made.roll(midnight)
    assert (budget(made).leased, budget(made).used) == (180, 0), "before the first decision of the new period"
    assert admit(made, ask("a", max_tokens=2000), midnight).max_tokens == 820
    later = settled("y", 80, at=midnight + SECOND, lease_id="l1", lease_no=2, input=0)
    for entry in (later, used, granted, later):
        made.apply(entry)
    assert (budget(made).leased, budget(made).used) == (100, 80)
    back = Returned("t1", "l1", midnight + 2 * SECOND, 0, 0, 0, 0, closed=True)
    for entry in (back, back, later):
        made.apply(entry)
    assert (budget(made).leased, budget(made).used) == (0, 80)
    made.expire_leases(midnight + DAY)
    assert budget(made).leased == 0


def test_a_slice_whose_holder_crashed_is_free_when_nothing_of_it_can_run() -> None:
    made = book(quota(limit=1000))
    made.apply(lease())
    made.expire_leases(NOW + 60 * SECOND - 1)
    assert budget(made).leased == 300
    made.expire_leases(NOW + 60 * SECOND)
    assert budget(made).leased == 0


def test_what_is_settled_out_of_a_slice_without_its_model_counts_in_the_models_quotas() -> None:
    made = book(quota(limit=1000, model="m-1"), quota(limit=5000))
    made.apply(lease())
    made.apply(settled("x", 120, lease_id="l1", input=0, model=""))
    mine = budget(made, "day-output_tokens:model=m-1")
    assert (mine.leased, mine.unconfirmed) == (180, 120)
    made.confirm(row("x", output=120))
    assert (mine.unconfirmed, mine.confirmed) == (0, 120)


def test_a_slice_for_any_model_is_taken_from_every_quota() -> None:
    prices = PriceList([DatedPrice("", "output", Decimal(1), 0), DatedPrice("m-2", "output", Decimal(5), 0)])
    made = book(quota(limit=1000, model="m-1"), quota(metric="spend", limit=1500), prices=prices)
    got = grant(made, "", "", Slice(10, 400_000, 400_000, 0), NOW, 2)
    assert got.output_tokens == 150  # half of 1500, at 5 each; of m-1 it would be 500
    made.apply(Leased("t1", "l1", "gw", NOW, "", "", 5, 0, 100, 0, NOW + 60 * SECOND))
    assert [meter.leased for meter in made.meters.budgets] == [100, 500 * 10**18]
    made.apply(settled("x", 60, lease_id="l1", input=0, model="m-2"))
    assert [meter.leased for meter in made.meters.budgets] == [40, 200 * 10**18]
    assert [meter.unconfirmed for meter in made.meters.budgets] == [0, 300 * 10**18]


def test_a_settlement_that_is_told_again_takes_nothing_more_out_of_its_slice() -> None:
    limits = Limits(keep_ended_us=SECOND)
    made = book(quota(limit=1000), limits=limits)
    made.apply(lease())
    made.apply(settled("x", 100, lease_id="l1", input=0, lease_no=1))
    made.confirm(row("x", output=100))
    assert made.tend("x", NOW + 5 * SECOND).again_at is None  # forgotten
    again = book_state.decode(book_state.joined([book_state.encoded(book_state.state_of(made))]))[0]
    for each in (made, book(limits=limits)):
        if each is not made:
            book_state.restore(each, again)
            each.define([quota(limit=1000)], NOW)
        each.apply(settled("x", 100, at=NOW + 5 * SECOND, lease_id="l1", input=0, lease_no=1))
        each.resolve("x", 1)  # the database knows it
        assert (budget(each).leased, budget(each).unconfirmed) == (200, 0)


def test_a_rate_gets_back_what_was_not_used_of_a_slice() -> None:
    made = book(quota("minute", "requests", 600), quota("minute", "output_tokens", 60_000))
    made.apply(lease(requests=200, output=6000))
    made.apply(lease(at=NOW + SECOND, requests=100, output=0))
    made.apply(settled("x", 100, at=NOW + SECOND, lease_id="l1", input=0))
    rates = [meter.rate for meter in made.meters.all if isinstance(meter, RateMeter)]
    assert [rate.room(NOW + SECOND, rate.limit) for rate in rates] == [310, 55_000]
    made.apply(Returned("t1", "l1", NOW + 2 * SECOND, 299, 0, 5900, 2, closed=True))
    assert [rate.room(NOW + 2 * SECOND, rate.limit) for rate in rates] == [600, 60_000]
