"""Reserve → settle → confirm → expire: in any order, repeated, over crashes; and never over a hard budget."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from streams.quotas import book_state
from streams.quotas.amounts import amount
from streams.quotas.book import TenantBook
from streams.quotas.decisions import Limits, Refused, Row
from streams.quotas.definitions import Quota
from streams.quotas.entries import Entry, Reserved
from streams.quotas.meters import BudgetMeter, SlotMeter
from tests.quota_builders import DAY, NOW, SECOND, admit, ask, book, budget, load, quota, rebuilt, row, settled

LIMITS = Limits(longest_request_us=20 * SECOND, lag_us=10 * SECOND, keep_ended_us=5 * SECOND)
QUOTAS = [
    quota(limit=1000),
    quota(metric="total_tokens", limit=900, model="m-1"),
    quota(metric="requests", limit=12),
    quota("none", "concurrency", 4),
    quota("minute", "output_tokens", 700),
]

steps: dict[str, Callable[[TenantBook], Any]] = {
    "settle": lambda made: made.apply(settled(at=NOW + SECOND)),
    "settle, not final": lambda made: made.apply(settled(at=NOW + SECOND, final=False)),
    "event": lambda made: made.confirm(row(at=NOW + SECOND)),
    "deadline": lambda made: made.tend("r1", NOW + LIMITS.held_us),
}


@given(st.lists(st.sampled_from(sorted(steps)), max_size=8))
def test_an_attempt_counts_once_whatever_comes_in_which_order(order: list[str]) -> None:
    made = book(*QUOTAS, limits=LIMITS._replace(keep_ended_us=DAY))
    entry = admit(made, ask())
    counted = False
    for name in order:
        if name == "event" and counted:
            continue  # an event counts once: that is the ingestion's promise
        counted |= name == "event"
        steps[name](made)
        made.apply(entry)  # a journal may be read twice
    known = counted or any(name.startswith("settle") for name in order)
    meter = budget(made)
    ended = known or "deadline" in order
    assert (meter.used, meter.reserved) == (50 if known else 0, 0 if ended else 100)
    if counted:
        assert (meter.confirmed, meter.unconfirmed, meter.unreserved) == (50, 0, 0)


requests = st.lists(
    st.fixed_dictionaries(
        {
            "wait": st.integers(0, 4 * SECOND),
            "max_tokens": st.none() | st.integers(1, 400),
            "input": st.integers(0, 60),
            "copies": st.sampled_from([1, 1, 1, 2]),
            "model": st.sampled_from(["m-1", "m-2"]),
            "percent": st.integers(0, 100),
            "length": st.integers(0, 19 * SECOND),
            "settle_after": st.none() | st.integers(0, 9 * SECOND),
            "event_after": st.integers(0, 9 * SECOND),
            "crash": st.sampled_from([False] * 5 + [True]),
            "snapshot": st.booleans(),
            "asked_before": st.sampled_from([""] * 4 + ["the same attempt", "another attempt"]),
            "withdrawn_after": st.integers(0, 3 * SECOND),
        }
    ),
    min_size=1,
    max_size=40,
)


class World:
    """A service that may crash, and the usage that really happens."""

    def __init__(self, start: int) -> None:
        self.book = book(*QUOTAS, limits=LIMITS, now=start)
        self.journal: list[Entry] = []
        self.snapshot = b""
        self.events: list[Row] = []
        """Confirmed so far."""
        self.refused = 0

    def take(self, entry: Reserved) -> None:
        """Write it down, and take it."""
        self.journal.append(entry)
        self.book.apply(entry)

    def crash(self, now: int, *, snapshot_first: bool) -> None:
        """Only the journal and the last stored state survive; what is confirmed is read from the windows."""
        if snapshot_first:
            self.snapshot, self.journal = book_state.joined([book_state.encoded(book_state.state_of(self.book))]), []
        before = self.numbers()
        self.book = rebuilt(self.journal, QUOTAS, LIMITS, now, self.snapshot)
        for each in self.events:
            self.book.resolve(each.request_id, each.attempt)
        for meter in self.book.meters.budgets:
            meter.load(self.confirmed(meter.quota, meter.start, meter.end), {})
        self.tend(now)
        assert self.numbers() == before

    def tend(self, now: int) -> None:
        for request_id in list(self.book.requests):
            self.book.tend(request_id, now)

    def numbers(self) -> list[tuple[int, int, int]]:
        return [
            (meter.confirmed, meter.unconfirmed, meter.reserved)
            if isinstance(meter, BudgetMeter)
            else (meter.in_use if isinstance(meter, SlotMeter) else 0, 0, 0)
            for meter in self.book.meters.all
        ]

    def confirmed(self, each: Quota, start: int, end: int) -> int:
        return sum(
            amount(each.metric, event.counts, self.book.meters.prices.at("", 0))
            for event in self.events
            if start <= event.completed_at < end and each.covers(event.model, "")
        )


@settings(max_examples=300)
@given(requests, st.sampled_from([0, DAY // 2 - 30 * SECOND]))
def test_a_hard_budget_is_never_passed_and_the_end_is_what_was_used(asked: list[dict[str, Any]], offset: int) -> None:
    """The second start lies half a minute before midnight, so that requests span the period's end."""
    now = NOW + offset
    world = World(now)
    due: list[tuple[int, int, str, Any]] = []

    def happen(until: int) -> None:
        while due and min(map(itemgetter(0), due)) <= until:
            each = min(due, key=itemgetter(0, 1, 2))
            due.remove(each)
            at, _, what, value = each
            world.book.roll(at)
            world.tend(at)
            if what == "settle":
                world.journal.append(value)
                progress = world.book.apply(value)
                name = (value.request_id, value.attempt)
                if not progress.known and name in [(event.request_id, event.attempt) for event in world.events]:
                    world.book.resolve(value.request_id, value.attempt)  # the shell asks the database about strangers
            else:
                world.events.append(value)
                world.book.confirm(value)

    for number, each in enumerate(asked):
        now += each["wait"]
        happen(now)
        world.tend(now)
        if each["crash"]:
            world.book.roll(now)
            world.crash(now, snapshot_first=each["snapshot"])
        request_id = f"r{number}"
        wanted = ask(request_id, each["input"], each["max_tokens"], n=each["copies"], model=each["model"], nonce="new")
        if each["asked_before"]:  # nobody waited for that answer, and it is withdrawn while the next one may run
            before = world.book.decide(structs.replace(wanted, nonce="old"), now)
            if isinstance(before, Reserved):
                world.take(before)
            gone = settled(request_id, 0, now, input=0, dispatched=False, final=False, nonce="old")
            due.append((now + each["withdrawn_after"], number, "settle", gone))
            if each["asked_before"] == "another attempt":
                wanted = structs.replace(wanted, attempt=2)
        entry = world.book.decide(wanted, now)
        if entry is None:
            was = world.book.admitted(wanted)
            assert was is not None
            entry = structs.replace(was, nonce=wanted.nonce)
        if isinstance(entry, Refused):
            world.refused += 1
            assert all(wall.room < wall.needed for wall in entry.walls)
            continue
        assert isinstance(entry, Reserved)
        assert each["max_tokens"] is None or entry.max_tokens <= each["max_tokens"]
        world.take(entry)
        for meter in world.book.meters.budgets:
            assert meter.used + meter.reserved <= meter.quota.limit
        ended = now + each["length"]
        output = entry.output_cap * each["percent"] // 100
        about = {"input": each["input"], "model": each["model"], "attempt": entry.attempt}
        if each["settle_after"] is not None:
            at = ended + each["settle_after"]
            due.append((at, number, "settle", settled(request_id, output, at, **about)))
        at = ended + each["event_after"]
        due.append((at, number, "event", row(request_id, output, ended, **about)))
    happen(now + 60 * SECOND)
    world.book.roll(now + 60 * SECOND)
    world.tend(now + 60 * SECOND)
    for meter in world.book.meters.budgets:
        assert (meter.unconfirmed, meter.reserved, meter.unreserved) == (0, 0, 0)
        assert meter.start <= now + 60 * SECOND < meter.end
        assert meter.confirmed == world.confirmed(meter.quota, meter.start, meter.end)
        for start in (NOW - DAY // 2, NOW + DAY // 2):
            assert world.confirmed(meter.quota, start, start + DAY) <= meter.quota.limit
    assert all(meter.in_use == 0 for meter in world.book.meters.all if isinstance(meter, SlotMeter))


@given(st.lists(st.tuples(st.integers(1, 400), st.integers(0, 100)), max_size=30), st.integers(0, 300))
def test_an_allowance_bounds_the_overshoot(asked: list[tuple[int, int]], allowance: int) -> None:
    made = book(quota(limit=1000, overshoot_allowance=allowance))
    for number in range(40):
        made.outputs.add(number)
    for number, (max_tokens, percent) in enumerate(asked):
        entry = made.decide(ask(f"r{number}", 0, max_tokens), NOW)
        if isinstance(entry, Reserved):
            made.apply(entry)
            if number % 2:
                made.apply(settled(f"r{number}", entry.output_cap * percent // 100, input=0))
        meter = budget(made)
        assert meter.used + meter.reserved <= 1000 + allowance
        assert meter.expected <= meter.reserved


@given(st.data())
def test_definitions_may_change_at_any_moment_without_losing_what_is_in_flight(data: st.DataObject) -> None:
    made = book(quota(limit=1000))
    for number in range(data.draw(st.integers(0, 8))):
        entry = admit(made, ask(f"r{number}"))
        if data.draw(st.booleans()):
            made.apply(settled(entry.request_id, 20))
    meter = budget(made)
    made.define([quota(limit=5000, version=2), quota(metric="requests", limit=50)], NOW)
    load(made)
    again = budget(made)
    assert (again.reserved, again.unconfirmed) == (meter.reserved, meter.unconfirmed)
    assert budget(made, "day-requests").reserved == meter.reserved // 100
