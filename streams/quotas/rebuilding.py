"""A shard as it was, from definitions, windows and the journal: after a crash, or on another machine.

The shard is taken first, which ends its old owner's writes. Then everything is read in one snapshot: the journal says
what was promised, the identities of events say which of it is among what was counted, and the feed is followed from the
positions of that very snapshot on. Budgets' windows are read when a tenant is first asked about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import psycopg

from streams.quotas import feed, journal
from streams.quotas.decisions import Limits
from streams.quotas.definition_store import NOTHING, Definitions
from streams.quotas.feed import Look, Wanted
from streams.quotas.journal import Ownership
from streams.quotas.shard import Shard

KEYS_A_QUERY: Final = 5000


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A shard that can be asked, the look that it begins with, and what it was made of."""

    shard: Shard
    look: Look
    entries: int
    resolved: int


def rebuild(connection: psycopg.Connection, mine: Ownership, limits: Limits, *, learn: bool = False) -> Rebuilt:
    """Read a shard that was taken. `learn`, or a journal with a gap: what was promised is not known, and only a share
    of what remains is promised for as long as a request of then may run and be metered."""
    with feed.one_snapshot(connection):
        look = feed.look_within(connection, {}, NOTHING, Wanted(), mine.shard, mine.of)
        shard = Shard(mine.shard, mine.of, limits, look.definitions or Definitions())
        if learn or mine.lost:
            shard.learning_until = look.at + limits.held_us
        shard.register(feed.registered(connection, mine.shard, mine.of))
        taken = shard.restore(journal.states(connection, mine), journal.batches(connection), look.at)
        live = shard.live()
        resolved = 0
        for start in range(0, len(live), KEYS_A_QUERY):
            for tenant_id, request_id, attempt in feed.counted_among(connection, live[start : start + KEYS_A_QUERY]):
                shard.books[tenant_id].book.resolve(request_id, attempt)
                resolved += 1
    return Rebuilt(shard, look, taken, resolved)
