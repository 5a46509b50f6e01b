"""Answers that need not wait for the disk: for which of them what is written stands."""

from __future__ import annotations

from dataclasses import replace

import pytest

from streams.quotas.definitions import Quota
from streams.quotas.entries import Reserved
from streams.quotas.escrow import ADMITS_US, PAUSE_US
from streams.quotas.lease_book import ESCROW
from streams.quotas.shard import Shard
from tests.quota_builders import NOW, ask, budget, quota, settled
from tests.unit.streams.quotas.test_shard import defined, look, shard_of

LATER = NOW + ADMITS_US // 2 + 1


def admitted(shard: Shard, name: str, now: int, output: int = 100, copies: int = 1) -> bool:
    """Whether the admission of a request may be told before it is written."""
    entry = shard.ask(ask(name, max_tokens=output, n=copies, prompts=copies), now)
    assert isinstance(entry, Reserved)
    return shard.may_answer("t1", entry, now)


def write(shard: Shard, no: int = 1) -> None:
    """All that is pending becomes durable."""
    cut = shard.next_batch()
    assert cut is not None
    shard.written(no, cut)


def granted(*quotas: Quota) -> Shard:
    """A shard that has answered one request when it was written, and may answer another at once."""
    shard = shard_of(*quotas)
    assert not admitted(shard, "first", NOW)
    write(shard)
    return shard


def test_only_what_is_written_stands_for_an_answer() -> None:
    shard = shard_of(quota(limit=100_000))
    assert [admitted(shard, f"r{number}", NOW + number) for number in range(3)] == [False, False, False]
    cut = shard.next_batch()
    assert cut is not None
    assert not admitted(shard, "being written", NOW + 5)
    shard.written(1, cut)
    assert admitted(shard, "at once", NOW + 6)
    assert budget(shard.books["t1"].book).leased == 0
    assert budget(shard.books["t1"].book).reserved == 500


def test_as_much_as_it_holds_and_again_once_that_is_written() -> None:
    shard = granted(quota(limit=100_000))
    assert [admitted(shard, f"a{number}", NOW + 1 + number) for number in range(3)] == [True, True, False]
    write(shard, 2)  # it has grown by then
    assert [admitted(shard, f"b{number}", NOW + 9 + number) for number in range(7)] == [*[True] * 6, False]


def test_no_more_at_a_time_than_slots_are_left_for() -> None:
    shard = granted(quota("none", "concurrency", 5 * 64 - 1))
    for no, at_once in ((2, 2), (3, 4), (4, 4)):
        now = NOW + no * 10
        assert sum(admitted(shard, f"{no}.{number}", now + number) for number in range(8)) == at_once
        write(shard, no)


def test_it_is_a_small_part_of_what_is_left() -> None:
    shard = granted(quota(limit=6_000))
    assert not admitted(shard, "a", NOW + 1)
    assert shard.books["t1"].book.leases.get(ESCROW) is None
    assert not admitted(shard, "small", NOW + 2 + PAUSE_US, output=20)
    write(shard, 2)
    assert admitted(shard, "small again", NOW + 3 + PAUSE_US, output=20)


def test_it_ends_when_nobody_renews_it() -> None:
    shard = granted(quota(limit=100_000))
    assert not admitted(shard, "late", NOW + ADMITS_US)
    shard = granted(quota(limit=100_000))
    shard.go_round(NOW + ADMITS_US, 1)
    assert shard.books["t1"].book.leases.get(ESCROW) is None


def test_it_is_renewed_while_it_is_used() -> None:
    shard = granted(quota(limit=100_000))
    assert admitted(shard, "a", LATER)
    write(shard, 2)
    assert admitted(shard, "b", NOW + ADMITS_US)


def test_it_is_not_renewed_where_little_is_left() -> None:
    shard = granted(quota(limit=100_000))
    used = settled("first", output=95_000, at=LATER)
    shard.settle(used)
    assert admitted(shard, "a", LATER + 1)
    assert shard.books["t1"].book.leases.get(ESCROW) is None
    assert not admitted(shard, "b", LATER + 2)


@pytest.mark.parametrize("why", ["learning", "ending", "near a soft threshold"])
def test_where_every_answer_waits(why: str) -> None:
    shard = shard_of(quota(limit=100_000))
    if why == "learning":
        shard.learning_until = NOW + 100
    elif why == "ending":
        shard.end_escrows(NOW)
    else:
        midnight = budget(shard.books["t1"].book).start
        shard = shard_of(replace(quota(limit=100_000), hard=False, thresholds=(50,)), used={midnight: 60_000})
    assert not admitted(shard, "a", NOW)
    write(shard)
    assert not admitted(shard, "b", NOW + 1)


def test_a_process_that_ends_leaves_nothing_behind() -> None:
    shard = granted(quota(limit=100_000))
    shard.end_escrows(NOW + 1)
    assert shard.books["t1"].book.leases.all() == {}
    assert not admitted(shard, "a", NOW + 2)


def test_what_the_process_before_may_have_answered_is_held_until_nothing_of_it_can_run() -> None:
    shard = granted(quota(limit=100_000), quota("minute", "output_tokens", 50_000), quota("none", "concurrency", 500))
    shard.books["t1"].escrow = None  # as in a process that begins now
    look(shard, NOW + 1)
    shard.lose_escrows(NOW + 2)
    book = shard.books["t1"].book
    (rate,), (slot,) = book.meters.covering("", "").rates, book.meters.covering("", "").slots
    assert budget(book).leased == 200
    assert (slot.leased, rate.rate.room(NOW + 2, 50_000)) == (2, 50_000 - 100 - 200)
    book.expire_leases(NOW + ADMITS_US + shard.limits.held_us)
    assert (budget(book).leased, slot.leased) == (0, 0)


@pytest.mark.parametrize("period", ["day", "minute"])
def test_it_ends_where_other_quotas_hold(period: str) -> None:
    """It was measured by those before; and a rate that begins now must know of all that is admitted from now on."""
    shard = granted(quota(limit=100_000))
    assert admitted(shard, "a", NOW + 1)
    look(shard, NOW + 2, defined(quota(limit=100_000), quota(period, "requests", 500, version=2)))
    look(shard, NOW + 3)
    assert shard.books["t1"].book.leases.get(ESCROW) is None
    assert not admitted(shard, "b", NOW + 4)


def test_where_no_quota_bounds_it_the_journal_can_hold_it_all_the_same() -> None:
    shard = shard_of()
    for no in (1, 2):
        assert not admitted(shard, f"r{no}", NOW + no * PAUSE_US, output=2**31 - 1, copies=1024)
        write(shard, no)
    assert shard.books["t1"].book.leases.get(ESCROW) is None
    assert not admitted(shard, "usual", NOW + 20 * PAUSE_US)
    write(shard, 20)
    assert admitted(shard, "as usual", NOW + 20 * PAUSE_US + 1)
