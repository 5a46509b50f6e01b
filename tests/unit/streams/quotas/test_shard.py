"""What a shard answers, without a database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal

import pytest

from serving_adapter.quota.groups import group_of
from streams.quotas import book_state, entries
from streams.quotas.amounts import Counts, DatedPrice, PriceList
from streams.quotas.answers import Settlement, settled_of
from streams.quotas.book import TenantBook
from streams.quotas.calendar import moment
from streams.quotas.decisions import Refused, Tended
from streams.quotas.definition_store import NOTHING, Definitions
from streams.quotas.definitions import Quota
from streams.quotas.entries import Leased, Reserved
from streams.quotas.feed import Look, Used, Wanted
from streams.quotas.lease_book import ESCROW, LOST
from streams.quotas.looking import confirm, take_look, wanted
from streams.quotas.rebuilding import restore
from streams.quotas.shard import Shard
from tests.quota_builders import DAY, LIMITS, NOON, NOW, SECOND, ask, budget, quota, row, settled


def look(
    shard: Shard,
    now: int,
    definitions: Definitions | None = None,
    used: Mapping[int, int] = {},
    prices: PriceList | None = None,
    counted: Sequence[tuple[str, str, int]] = (),
) -> None:
    """The shard looks at a database with so many output tokens in the periods that begin at these times."""
    looked_for = wanted(shard)
    found = Look(now, 0.0, {}, [], caught_up=True, definitions=definitions)
    for name, spans in looked_for.spans.items():
        found.loaded[name] = {
            span: [
                Used("m-1", "", True, at >= span.end, at, Counts(1, 0, 0, output))
                for at, output in used.items()
                if at >= span.start
            ]
            for span in spans
        }
    found.prices = {"t1": prices} if prices is not None else {}
    found.counted = [each for each in counted if each in looked_for.attempts]
    for _ in take_look(shard, found, looked_for):
        pass


def defined(*quotas: Quota) -> Definitions:
    """Definitions of t1."""
    return Definitions(NOTHING._replace(version=len(quotas)), {"t1": list(quotas)})


def shard_of(*quotas: Quota, now: int = NOW, used: Mapping[int, int] = {}) -> Shard:
    """A shard with one tenant, whose budgets are loaded."""
    made = Shard(0, 1, LIMITS, defined(*quotas), registered={"t1"})
    made.expect(["t1"], now)
    look(made, now, used=used)
    return made


@pytest.mark.parametrize(("since", "told"), [(NOON, [80]), (NOON + timedelta(hours=36), [])])
def test_a_threshold_reached_late_in_a_period_is_told_by_a_service_that_begins_in_the_next(
    since: datetime, told: list[int]
) -> None:
    midnight = NOW + DAY // 2
    held = replace(quota(limit=100, thresholds=[80, 100]), starts_at=since)
    shard = shard_of(held, now=midnight + DAY, used={midnight - DAY: 500, midnight: 85, midnight + DAY: 30})
    assert [alert.subject["percent"] for alert in shard.alerts] == told
    assert all(alert.subject["period"] == moment(midnight).isoformat() for alert in shard.alerts)
    assert budget(shard.books["t1"].book).confirmed == 30


def test_the_same_attempt_asked_again_is_another_question_that_alone_can_be_withdrawn() -> None:
    shard = shard_of(quota(limit=100))
    first = shard.ask(ask(nonce="a"), NOW)
    again = shard.ask(ask(nonce="b"), NOW + 1)
    assert shard.ask(ask(nonce="b"), NOW + 2) == again
    assert isinstance(first, Reserved)
    assert isinstance(again, Reserved)
    assert (again.max_tokens, again.nonce) == (first.max_tokens, "b")
    shard.settle(settled(output=0, dispatched=False, final=False, nonce="a", at=NOW + 3))
    assert budget(shard.books["t1"].book).reserved == 100
    due = shard.next_batch()
    assert due is not None
    assert [entry.nonce for entry in entries.decode(due.batch.entries) if isinstance(entry, Reserved)] == ["a", "b"]
    assert shard.counters.admitted == 1


HOUR = 3600 * SECOND
OLD = quota(limit=100)
CHANGES: dict[str, tuple[Definitions | None, PriceList | None]] = {
    "another budget": (defined(OLD, quota(metric="requests", limit=5)), None),
    "one that begins later": (
        defined(OLD, replace(quota(metric="requests", limit=5), starts_at=NOON + timedelta(hours=1))),
        None,
    ),
    "a price": (None, PriceList([DatedPrice("", "output", Decimal(1), 0)])),
    "a tier": (Definitions(of_tiers={"": [OLD], "paid": [quota(metric="requests", limit=5)]}), None),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_what_held_before_decides_until_the_budgets_of_what_holds_now_are_read(name: str) -> None:
    definitions, prices = CHANGES[name]
    shard = shard_of(OLD, quota(metric="spend", limit=10)) if name == "a price" else shard_of(OLD)
    look(shard, NOW + 1, definitions, prices=prices)
    now, tier = NOW + HOUR, "paid" if name == "a tier" else ""
    assert isinstance(shard.ask(ask("a", max_tokens=20, tier=tier), now), Reserved)
    for number in range(3):
        assert isinstance(shard.ask(ask(f"b{number}", max_tokens=20, tier=tier), now + 1), Reserved)
    look(shard, now + 2, used={NOW - DAY // 2: 9}, prices=prices)
    assert not shard.to_load
    for number in range(2):
        answer = shard.ask(ask(f"c{number}", max_tokens=20, tier=tier), now + 3)
        if isinstance(answer, Refused):
            break
    assert isinstance(answer, Refused)
    assert answer.walls[0].quota.metric == ("spend" if name == "a price" else "requests")


def test_a_look_that_reprices_everybody_lets_others_in_between() -> None:
    names = [f"t{number}" for number in range(101)]
    shard = Shard(0, 1, LIMITS, Definitions(of_tenants={name: [quota()] for name in names}), registered=set(names))
    shard.expect(names, NOW)
    look(shard, NOW)
    prices = {name: PriceList([DatedPrice("", "output", Decimal(1), 0)]) for name in names}
    found = Look(NOW, 0.0, {}, [], caught_up=True, definitions=None, prices=prices)
    assert len(list(take_look(shard, found, Wanted()))) == 2


def test_what_has_ended_while_no_service_ran_counts_no_more_after_a_restart() -> None:
    quotas = (quota(limit=1000), quota("none", "concurrency", 5))
    before = shard_of(*quotas)
    over = before.ask(ask("over"), NOW)
    assert isinstance(over, Reserved)
    before.lease(Leased("t1", "t1~1", "gw", NOW, "m-1", "", 5, 0, 300, 2, over.deadline))
    later = before.ask(ask("runs"), NOW + 2 * SECOND)
    assert isinstance(later, Reserved)
    due = before.next_batch()
    assert due is not None
    for now, held in ((over.deadline - 1, (200, 300)), (over.deadline, (100, 0)), (later.deadline, (0, 0))):
        shard = Shard(0, 1, LIMITS, defined(*quotas), registered={"t1"})
        restore(shard, [], [(1, due.batch.entries)], now)
        book = shard.books["t1"].book
        assert (budget(book).reserved, budget(book).leased) == held
        assert sum(request.in_slot for request in book.requests.values()) == held[0] // 100


def test_a_reservation_ends_at_its_deadline_also_shortly_after_a_restart() -> None:
    before = shard_of(quota(limit=1000))
    entry = before.ask(ask(), NOW)
    assert isinstance(entry, Reserved)
    due = before.next_batch()
    assert due is not None
    shard = Shard(0, 1, LIMITS, defined(quota(limit=1000)), registered={"t1"})
    restore(shard, [], [(1, due.batch.entries)], entry.deadline - 2 * SECOND)
    for now, reserved in ((entry.deadline - SECOND, 100), (entry.deadline + SECOND, 0)):
        shard.tend(now)
        assert budget(shard.books["t1"].book).reserved == reserved


def test_the_database_is_asked_once_about_an_attempt_that_is_overdue() -> None:
    shard = shard_of(quota(limit=1000))
    shard.tend(NOW)
    shard.settle(settled(output=50, at=NOW))
    asked = []
    for seconds in range(1, 300):
        shard.tend(NOW + seconds * SECOND)
        asked += [seconds] if wanted(shard).attempts else []
        look(shard, NOW + seconds * SECOND)
    assert len(asked) == 2, "when it was settled by a stranger, and when it was overdue"
    assert [alert.kind for alert in shard.alerts] == ["quota_unconfirmed"]


def test_the_database_is_asked_about_an_attempt_that_nobody_knows_of_a_request_that_is_known() -> None:
    shard = shard_of(quota(limit=1000))
    assert isinstance(shard.ask(ask(), NOW), Reserved)
    shard.settle(settled(attempt=2, at=NOW + SECOND))  # a fail mode let it in, and its event may be counted already
    assert wanted(shard).attempts == [("t1", "r1", 2)]


def test_a_request_that_the_tier_before_decided_is_charged_to_it_after_a_restart_too() -> None:
    tiers = {"a": [quota("minute", "output_tokens", 300)], "b": [quota("minute", "requests", 9), quota(limit=1000)]}
    shard = Shard(0, 1, LIMITS, Definitions(of_tiers=tiers), registered={"t1"})
    for number, tier in enumerate("aba"):  # b waits for its budget to be read
        assert isinstance(shard.ask(ask(f"r{number}", tier=tier), NOW + number), Reserved)
    due = shard.next_batch()
    assert due is not None
    again = Shard(0, 1, LIMITS, Definitions(of_tiers=tiers), registered={"t1"})
    restore(again, [], [(1, due.batch.entries)], NOW + 9)
    assert isinstance(again.ask(ask("r3", tier="a"), NOW + 9), Refused)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_rate_goes_on_when_callers_tell_its_tier_again_and_gives_back_what_it_charged(restarted: bool) -> None:
    tiers = {"a": [quota("minute", "output_tokens", 300)], "b": [quota("minute", "requests", 9), quota(limit=1000)]}
    shard = Shard(0, 1, LIMITS, Definitions(of_tiers=tiers), registered={"t1"})
    journal: list[tuple[int, bytes]] = []
    granted = []
    for number, tier in enumerate("abba"):
        now = NOW + number * 1000
        shard.ready("t1", now, tier)
        look(shard, now)  # the budget of b is read
        answer = shard.ask(ask(f"r{number}", max_tokens=300 if number == 3 else 100, tier=tier), now)
        assert isinstance(answer, Reserved)
        granted.append(answer.max_tokens)
        if tier == "b":
            shard.settle(settled(f"r{number}", output=1, at=now + 1))
        due = shard.next_batch()
        assert due is not None
        journal.append((number + 1, due.batch.entries))
        if restarted:
            shard = Shard(0, 1, LIMITS, Definitions(of_tiers=tiers), registered={"t1"})
            restore(shard, [], journal, now + 2)
            look(shard, now + 2)
    assert granted == [100, 100, 100, 200]


def test_a_rate_that_has_just_begun_counts_nothing_of_before_after_a_restart_either() -> None:
    begins = replace(quota("minute", "requests", 2), starts_at=moment(NOW + SECOND), version=2)
    journal: list[tuple[int, bytes]] = []
    shard = shard_of(begins)
    for number, allowed in enumerate((True, True, True, True, True, False)):  # it begins after the third
        now = NOW + number * SECOND * 2 // 5
        assert isinstance(shard.ask(ask(f"r{number}"), now), Reserved) is allowed
        if (due := shard.next_batch()) is not None:
            journal.append((number + 1, due.batch.entries))
        shard = Shard(0, 1, LIMITS, defined(begins), registered={"t1"})
        restore(shard, [], journal, now)


def test_a_settlement_that_is_told_twice_is_charged_to_no_rate_by_who_comes_after() -> None:
    """A stored state leaves out what is over."""
    rate = quota("hour", "requests", 10)
    shard = shard_of(rate)
    assert isinstance(shard.ask(ask(), NOW), Reserved)
    shard.settle(settled(at=NOW))
    confirm(shard, [row()], NOW, Counter())
    due = shard.next_batch()
    assert due is not None
    shard.written(1, due)
    assert shard.next_batch(begin_a_state=True) is None
    made = shard.states.make()
    assert made is not None
    shard.settle(settled(at=NOW + SECOND))
    due = shard.next_batch()
    assert due is not None
    again = Shard(0, 1, LIMITS, defined(rate), registered={"t1"})
    restore(again, [(made.group, made.no, made.state)], [(2, due.batch.entries)], NOW + SECOND)
    (one,) = again.books["t1"].book.meters.standings("", "", NOW + SECOND)
    assert one.remaining == 9


@pytest.mark.parametrize(
    ("name", "counted", "charged"),
    [("r1", "before", 1), ("unasked", "never", 2), ("unasked", "before", 1), ("unasked", "after", 2)],
)
@pytest.mark.parametrize("restarts", ["never", "before the look", "with a state before the look", "after the look"])
def test_what_is_told_long_after_its_event_is_charged_to_no_rate_a_second_time(
    name: str, counted: str, charged: int, restarts: str
) -> None:
    """Of an attempt that nobody knows (any more) the database says whether its event was counted before."""
    rate, late = quota("hour", "requests", 10), NOW + 61 * SECOND
    shard = shard_of(rate)
    journal: list[tuple[int, bytes]] = []
    shard.tend(NOW)
    assert isinstance(shard.ask(ask(), NOW), Reserved)
    confirm(shard, [row()], NOW, Counter())
    shard.tend(late)
    assert not shard.books["t1"].book.requests, "it is forgotten"

    def again(shard: Shard) -> Shard:
        if (due := shard.next_batch()) is not None:
            journal.append((len(journal) + 1, due.batch.entries))
        stored = book_state.joined([book_state.encoded(book_state.state_of(shard.books["t1"].book))])
        states = [(group_of("t1"), len(journal), stored)] if restarts == "with a state before the look" else []
        shard = Shard(0, 1, LIMITS, defined(rate), registered={"t1"})
        restore(shard, states, journal, late)
        shard.books["t1"].book.resolve("r1", 1)
        shard.doubt(shard.live())
        return shard

    shard.settle(settled(name, at=late))
    if "before" in restarts:
        shard = again(shard)
    if counted == "after":
        confirm(shard, [row(name)], late, Counter())
    for _ in range(2):
        look(shard, late + 1, counted=[] if counted == "never" else [("t1", name, 1)])
    if restarts == "after the look":
        shard = again(shard)
    (one,) = shard.books["t1"].book.meters.standings("", "", late)
    assert one.remaining == 10 - charged


def test_what_several_settlements_tell_at_once_to_be_out_of_a_slice_is_unreserved_no_more_after_a_restart() -> None:
    shard = shard_of(quota(metric="requests"))
    shard.lease(Leased("t1", "t1~1", "gw", NOW, "m-1", "", 5, 100, 300, 0, NOW + DAY))
    for name in ("a", "b"):
        unreserved: Counter[tuple[str, str, int]] = Counter()
        confirm(shard, [row(name)], NOW, unreserved)
        shard.note_unreserved(unreserved, NOW + len(shard.pending), {})
    assert budget(shard.books["t1"].book, "day-requests").unreserved == 2
    for name in ("a", "b"):
        shard.settle(settled(name, at=NOW + SECOND, lease_id="t1~1"))
    due = shard.next_batch()
    assert due is not None
    again = Shard(0, 1, LIMITS, defined(quota(metric="requests")), registered={"t1"})
    restore(again, [], [(1, due.batch.entries), (2, due.batch.entries)], NOW + SECOND)
    for each in (shard, again):  # also of a batch that was written twice
        assert budget(each.books["t1"].book, "day-requests").unreserved == 0


def test_a_request_ends_at_its_deadline_also_where_that_is_sooner_than_it_would_be_looked_at() -> None:
    limits = LIMITS._replace(longest_request_us=4 * SECOND, lag_us=SECOND)
    shard = Shard(0, 1, limits, defined(quota(limit=1000)), registered={"t1"})
    shard.expect(["t1"], NOW)
    look(shard, NOW)
    shard.tend(NOW)
    assert isinstance(shard.ask(ask(), NOW), Reserved)
    for seconds, reserved in ((4, 100), (6, 0)):
        shard.tend(NOW + seconds * SECOND)
        assert budget(shard.books["t1"].book).reserved == reserved


def test_a_request_that_is_over_soon_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are 300 looks in a turn of ten milliseconds."""
    shard, looks, tend = shard_of(quota()), [], TenantBook.tend

    def counted(book: TenantBook, request_id: str, now: int) -> Tended:
        looks.append(now)
        return tend(book, request_id, now)

    monkeypatch.setattr(TenantBook, "tend", counted)
    shard.tend(NOW)
    assert isinstance(shard.ask(ask(), NOW), Reserved)
    shard.settle(settled(at=NOW + 20 * SECOND))
    confirm(shard, [row(at=NOW + 20 * SECOND)], NOW + 21 * SECOND, Counter())
    for seconds in range(100):
        shard.tend(NOW + seconds * SECOND)
    assert (len(looks), shard.books["t1"].book.requests) == (1, {})


@pytest.mark.parametrize("told_first", ["event", "settlement"])
def test_a_request_that_expired_is_forgotten_once_its_usage_event_has_come(told_first: str) -> None:
    shard = shard_of(quota())
    shard.tend(NOW)
    entry = shard.ask(ask(), NOW)
    assert isinstance(entry, Reserved)
    late = entry.deadline + 600 * SECOND
    for at in (NOW + 60 * SECOND, entry.deadline, late):
        shard.tend(at + SECOND)
    assert list(shard.books["t1"].book.requests) == ["r1"]
    if told_first == "settlement":
        shard.settle(settled(at=late))
    confirm(shard, [row(at=late)], late + SECOND, Counter())
    for seconds in range(100):
        shard.tend(late + seconds * SECOND)
    assert shard.books["t1"].book.requests == {}


@pytest.mark.parametrize(
    ("lease_id", "taken"),
    [("t1~1", ("t1~1", 3)), ("t2~1", ("", 0)), (ESCROW, ("", 0)), (f"{LOST}1", ("", 0)), ("", ("", 0))],
)
def test_a_settlement_out_of_another_tenants_slice_is_one_that_nobody_had_reserved(
    lease_id: str, taken: tuple[str, int]
) -> None:
    entry = settled_of("t1", "r1", Settlement(lease_id=lease_id, lease_no=3), NOW)
    assert (entry.lease_id, entry.lease_no) == taken
