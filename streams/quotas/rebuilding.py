"""A shard as it was, from definitions, windows and the journal: after a crash, or on another machine.

The shard is taken first, which ends its old owner's writes. Then everything is read in one snapshot: the journal says
what was promised, the identities of events say which of it is among what was counted, and the feed is followed from the
positions of that very snapshot on. Then the windows of all tenants with quotas are read (`load_all`), so that nobody's
first request waits for them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import psycopg

from serving_adapter.quota.groups import group_of
from streams.quotas import book_state, definition_store, entries, feed, journal, looking
from streams.quotas.decisions import Limits
from streams.quotas.definition_store import NOTHING, Definitions
from streams.quotas.entries import Read, Reserved, Unasked, Unreserved
from streams.quotas.feed import Look, Wanted
from streams.quotas.journal import Ownership
from streams.quotas.shard import Shard

KEYS_A_QUERY: Final = 5000
CHUNKS_AT_MOST: Final = 1000
"""Of the feed are read on from: some minutes of the platform's peak, half a million events."""
TENANTS_A_LOOK: Final = 2000
"""Whose windows are read together while nobody waits for anything else."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A shard that can be asked, the look that it begins with, and what it was made of."""

    shard: Shard
    look: Look
    entries: int
    resolved: int
    newest: int = 0
    """The time of the newest entry, in microseconds since 1970: a clock that was ahead then."""
    left_out: int = 0
    """Chunks of the feed in which unreserved usage was not told apart: nobody had read it for too long."""


def rebuild(connection: psycopg.Connection, mine: Ownership, limits: Limits, *, learn: bool = False) -> Rebuilt:
    """Read a shard that was taken. `learn`, or a journal with a gap: what was promised is not known, and only a share
    of what remains is promised for as long as a request of then may run and be metered."""
    with feed.one_snapshot(connection):
        connection.execute("set local idle_in_transaction_session_timeout = 0")  # taking what is read may take a minute
        look = feed.look_within(connection, {}, NOTHING, Wanted(), mine.shard, mine.of)
        shard = Shard(mine.shard, mine.of, limits, look.definitions or Definitions())
        shard.learning_until = look.at + limits.held_us if learn or mine.lost else mine.learning_until
        looking.register(shard, look.states)
        stored, batches = journal.states(connection, mine), journal.batches(connection)
        taken, newest = restore(shard, stored, batches, look.at, mine.read_by)
        live = shard.live()
        resolved = 0
        for start in range(0, len(live), KEYS_A_QUERY):
            for tenant_id, request_id, attempt in feed.counted_among(connection, live[start : start + KEYS_A_QUERY]):
                shard.books[tenant_id].book.resolve(request_id, attempt)
                resolved += 1
        shard.doubt(live)
        left_out = _read_on(connection, shard, mine, look)
    return Rebuilt(shard, look, taken, resolved, newest, left_out)


def _read_on(connection: psycopg.Connection, shard: Shard, mine: Ownership, look: Look) -> int:
    """Find what was used without a reservation while nobody read the feed: windows do not tell it from the rest. Of
    much only the newest, so that a restart takes seconds; returns how many chunks of it are left out."""
    if mine.feed_read is None:
        return 0
    known, read, left_out = mine.feed_read, shard.read, 0
    reached = {source: max(known.get(source, 0), read.get(source, 0)) for source in look.positions}
    behind = sum(through > reached[source] for source, through in look.positions.items())
    most = max(CHUNKS_AT_MOST // max(behind, 1), 1)
    after = {}
    for source, through in look.positions.items():
        after[source] = max(reached[source], through - most)
        left_out += after[source] - reached[source]
    unreserved: Counter[tuple[str, str, int]] = Counter()
    priced: set[str] = set()
    for rows in feed.rows_between(connection, after, look.positions, mine.shard, mine.of):
        tenants = {row.tenant_id for row in rows} - priced
        shard.expect(sorted(tenants), look.at)
        for tenant_id, prices in definition_store.price_lists(connection, tenants & shard.books.keys()).items():
            held = shard.books[tenant_id]
            shard.define(held, look.at, held.told_tier, prices)
        priced |= tenants
        looking.confirm(shard, rows, look.at, unreserved)
    shard.note_unreserved(unreserved, look.at, look.positions)
    return left_out


def load_all(connection: psycopg.Connection, rebuilt: Rebuilt) -> Rebuilt:
    """The same with the windows of every tenant that has quotas, and what the feed has brought meanwhile."""
    shard, look = rebuilt.shard, rebuilt.look
    shard.expect(sorted(shard.registered), look.at)
    while shard.to_load or not look.caught_up:
        wanted = looking.wanted(shard, TENANTS_A_LOOK, look.tenants_through)
        look = feed.look(connection, look.positions, shard.definitions.marks, wanted, shard.shard, shard.of)
        for _ in looking.take_look(shard, look, wanted):
            pass
    return replace(rebuilt, look=look)


def restore(
    shard: Shard, states: Iterable[tuple[int, int, bytes]], batches: Iterable[tuple[int, bytes]], now: int,
    read_by: int | None = None,
) -> tuple[int, int]:  # fmt: skip
    """Take stored states and the entries after them; what has ended meanwhile ends. `read_by`: which shard has read
    the feed for these tenants, if not this one. Returns how many entries, and the time of the newest."""
    as_of: dict[int, int] = {}
    switched: set[str] = set()
    newest = taken = 0
    with_unreserved: set[bytes] = set()
    for group, no, stored in states:
        as_of[group] = no
        for state in book_state.decode(stored):
            held = shard.books.get(state.tenant_id) or shard.hold(state.tenant_id)
            newest = max(newest, book_state.restore(held.book, state))
    for held in shard.books.values():
        shard.define(held, now, held.book.tier)
        shard.fill_rates(held, now)
    for no, batch in batches:
        shard.states.read(no)
        is_twice: bool | None = None
        for entry in entries.decode(batch):
            if isinstance(entry, Read):
                if entry.shard == (shard.shard if read_by is None else read_by):
                    shard.read |= entry.positions
                continue
            group = group_of(entry.tenant_id)
            if group % shard.of != shard.shard or no <= as_of.get(group, 0) or isinstance(entry, Unasked):
                continue
            if isinstance(entry, Unreserved):  # of one batch several may be alike; but it may have been written twice
                if is_twice is None:
                    digest = hashlib.blake2b(batch, digest_size=16).digest()
                    is_twice = digest in with_unreserved
                    with_unreserved.add(digest)
                if is_twice:
                    continue
            told = entry.tier if isinstance(entry, Reserved) else ""
            known = shard.books.get(entry.tenant_id)
            if known is None:
                known = shard.open(entry.tenant_id, now, told)
            elif told and told != known.told_tier:  # rates hold from then on; budgets need not be here, as nobody asks
                known.is_loading = True
                known = shard.open(entry.tenant_id, entry.at, told)
                switched.add(entry.tenant_id)
            known.book.apply(entry)
            shard.states.note(group, no)
            newest = max(newest, entry.at)
            taken += 1
    for tenant_id in switched:
        known = shard.books[tenant_id]
        known.is_loading = True
        shard.define(known, now, known.told_tier)
    shard.end_what_is_over(now)
    shard.deadlines.start(now)
    for held in shard.books.values():
        for request_id in held.book.new_requests:
            request = held.book.requests.get(request_id)
            if request is not None:
                soon = now + shard.limits.keep_ended_us
                due = soon if request.ended_at is not None else min(request.deadline, soon)
                shard.deadlines.again(held, request_id, due)
        held.book.new_requests.clear()
    return taken, newest
