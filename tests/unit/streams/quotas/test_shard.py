"""What a shard answers, without a database."""

from __future__ import annotations

from streams.quotas import entries
from streams.quotas.definition_store import NOTHING, Definitions
from streams.quotas.definitions import Quota
from streams.quotas.entries import Reserved
from streams.quotas.feed import Look
from streams.quotas.looking import take_look, wanted
from streams.quotas.shard import Shard
from tests.quota_builders import LIMITS, NOW, ask, budget, quota, settled


def look(shard: Shard, now: int, definitions: Definitions | None = None) -> None:
    """The shard looks at a database without any usage."""
    looked_for = wanted(shard)
    found = Look(now, 0.0, {}, [], caught_up=True, definitions=definitions)
    found.loaded = {name: {span: [] for span in spans} for name, spans in looked_for.spans.items()}
    for _ in take_look(shard, found, looked_for):
        pass


def defined(*quotas: Quota) -> Definitions:
    """Definitions of t1."""
    return Definitions(NOTHING._replace(version=len(quotas)), {"t1": list(quotas)})


def shard_of(*quotas: Quota) -> Shard:
    """A shard with one tenant, whose budgets are loaded."""
    made = Shard(0, 1, LIMITS, defined(*quotas), registered={"t1"})
    made.expect(["t1"], NOW)
    look(made, NOW)
    return made


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
    assert [entry.nonce for entry in entries.decode(due[0].entries) if isinstance(entry, Reserved)] == ["a", "b"]
    assert shard.counters.admitted == 1
