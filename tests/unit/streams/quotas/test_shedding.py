"""A free tenant that floods is limited, told of, and let go again; others are not."""

from __future__ import annotations

from dataclasses import replace

from serving_adapter.quota.groups import group_of
from streams.quotas import answers, book_state
from streams.quotas.decisions import Limits, Refused
from streams.quotas.definition_store import NOTHING, Definitions, Tier
from streams.quotas.entries import Reserved
from streams.quotas.rebuilding import restore
from streams.quotas.shard import Shard
from streams.quotas.volume import KNOWN_FROM, MINUTE_US
from tests.quota_builders import NOON, NOW, ask, quota


def a_shard(tier: str) -> Shard:
    rate = replace(quota("minute", "requests", 10**9), tenant_id="", tier=tier)
    shard = Shard(0, 1, Limits(), Definitions(NOTHING, {}, {tier: [rate]}, {"t1": [Tier(tier, NOON)]}, {}))
    shard.registered = {"t1"}
    return shard


def minute(shard: Shard, number: int, count: int) -> list[Refused]:
    """So many requests in a minute; those that were refused."""
    refused = []
    for each in range(count):
        now = NOW + number * MINUTE_US + each * (MINUTE_US // count)
        answer = shard.ask(ask(f"r{number}-{each}"), now)
        assert isinstance(answer, Refused | Reserved)
        if isinstance(answer, Refused):
            refused.append(answer)
    return refused


def test_what_was_admitted_before_is_no_part_of_a_flood() -> None:
    shard = a_shard("free")
    for number in range(KNOWN_FROM + 1):
        assert not minute(shard, number, 100)
    now = NOW + 20 * MINUTE_US
    first = shard.ask(ask("r0"), now)
    for each in range(2000):
        assert shard.ask(ask("r0"), now + each) == first, "asked again and again: no flood"
    assert not shard.shed
    assert minute(shard, 20, 2000)
    assert shard.shed
    assert shard.ask(ask("r0"), now + MINUTE_US - 1) == first, "nor refused in one"


def test_a_free_tenant_that_floods_is_limited_told_of_and_let_go() -> None:
    shard = a_shard("free")
    for number in range(KNOWN_FROM + 1):
        assert not minute(shard, number, 100)
    refused = minute(shard, 20, 2000)
    assert 900 < len(refused) < 1100
    assert {wall.because for each in refused for wall in each.walls} == {"flood"}
    headers, body = answers.refusal(refused[-1], 0.0, "deny")
    assert dict(headers)["x-should-retry"] == "true"
    assert b"many times as many requests as usual" in body
    assert len(minute(shard, 21, 2000)) == 1800
    assert [alert.kind for alert in shard.alerts] == ["quota_flood"]
    shard.each_second(NOW + 26 * MINUTE_US)
    assert [alert.kind for alert in shard.alerts] == ["quota_flood", "quota_flood_over"]
    assert shard.alerts[0].subject == shard.alerts[1].subject
    assert not minute(shard, 27, 200)


def test_a_flood_from_before_a_restart_is_over_when_nothing_more_is_asked() -> None:
    shard = a_shard("free")
    for number in range(KNOWN_FROM + 1):
        minute(shard, number, 100)
    assert minute(shard, 20, 2000)
    state = book_state.joined([book_state.encoded(book_state.state_of(shard.books["t1"].book))])
    again = a_shard("free")
    restore(again, [(group_of("t1"), 1, state)], [], NOW + 21 * MINUTE_US)
    for number in range(21, 25):
        again.each_second(NOW + number * MINUTE_US)
    assert [alert.kind for alert in again.alerts] == ["quota_flood_over"]


def test_others_are_not() -> None:
    shard = a_shard("paid")
    for number in range(KNOWN_FROM + 1):
        minute(shard, number, 10)
    assert not minute(shard, 20, 2000)
    assert not shard.alerts
