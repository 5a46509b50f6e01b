"""All tenants of a shard: who is asked about whom, what has to be written, looked up and told. No input or output.

The service calls this from one thread. What is admitted is in `pending` until the service has written it; only then it
answers. Times are microseconds since 1970, by the database's clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from serving_adapter.quota.groups import group_of, shard_of
from serving_adapter.quota.tiers import policy_of
from streams.alerts import Alert
from streams.quotas import book_state, entries
from streams.quotas.amounts import PriceList
from streams.quotas.book import TenantBook
from streams.quotas.calendar import microseconds, moment
from streams.quotas.counters import Counters
from streams.quotas.deadlines import Deadlines
from streams.quotas.decisions import Ask, Limits, Refused, Row
from streams.quotas.definition_store import Definitions
from streams.quotas.definitions import strictest
from streams.quotas.entries import Entry, Leased, Reserved, Returned, Settled, Unasked
from streams.quotas.feed import Look, Span, Wanted
from streams.quotas.held import Held
from streams.quotas.journal import Batch, Decision
from streams.quotas.loading import fill, threshold_alerts
from streams.quotas.meter_set import NEVER
from streams.quotas.refusals import refusal_detail
from streams.quotas.shedding import count, shed
from streams.quotas.stored_states import StoredStates

SAFE_SHARE: Final = 10
"""Percent of what remains that is promised while what was promised before is not known."""
ROWS_A_SLICE: Final = 250
SPANS_A_LOOK: Final = 200
"""Tenants whose windows are read in one look."""

Unready = Literal["loading", "unknown", "suspended", "closed"]
"""Why nothing can be decided: the tenant's usage or registration is being read, or it may not use anything."""

_UNREADY: Final[Mapping[str, Unready]] = {"suspended": "suspended", "closed": "closed"}


@dataclass(slots=True)
class Shard:
    """The state of one shard; see the module."""

    shard: int
    of: int
    limits: Limits
    definitions: Definitions = field(default_factory=Definitions)
    learning_until: int = 0
    books: dict[str, Held] = field(default_factory=dict)
    pending: list[Entry] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    counters: Counters = field(default_factory=Counters)
    registered: set[str] = field(default_factory=set)
    barred: dict[str, Unready] = field(default_factory=dict)
    """Tenants that are `suspended` or `closed`; and, until the next look, those that are `unknown`."""
    to_load: dict[str, None] = field(default_factory=dict)
    """Tenants whose windows are to be read."""
    waited_for: dict[str, None] = field(default_factory=dict)
    """Those of them that somebody waits for: first."""
    to_look_up: dict[str, None] = field(default_factory=dict)
    doubtful: dict[tuple[str, str, int], None] = field(default_factory=dict)
    """Attempts of which it is not known whether their usage was counted long ago."""
    shed: set[Held] = field(default_factory=set)
    """Tenants that flood."""
    states: StoredStates = field(default_factory=StoredStates)
    _deadlines: Deadlines = field(init=False)

    def __post_init__(self) -> None:
        self._deadlines = Deadlines(self.limits.keep_ended_us)

    def owns(self, tenant_id: str) -> bool:
        """Whether the tenant is of this shard."""
        return self.of == 1 or shard_of(tenant_id, self.of) == self.shard

    # Callers

    def ask(self, ask: Ask, now: int) -> Reserved | Refused | Unready:
        """Judge a request; an admitted one is pending. Raises OtherContent."""
        held = self.ready(ask.tenant_id, now, ask.tier)
        if not isinstance(held, Held):
            return held
        share = 100 if now >= self.learning_until else SAFE_SHARE
        answer: Reserved | Refused | None = None
        if held.is_shed:
            self.count(held, 1, now)
            answer = shed(ask, held.book, now) if held.book.volume.is_shed else None
        if answer is None:
            answer = held.book.decide(ask, now, share)
        if answer is None:
            before = held.book.admitted(ask)
            assert before is not None, "decide() says that it was admitted before"
            return before
        if isinstance(answer, Refused):
            self.counters.refused += 1
            self.decisions.append(
                Decision(moment(now), ask.tenant_id, ask.request_id, ask.attempt, "refused", refusal_detail(answer))
            )
            return answer
        self._take(held, answer)
        self.counters.admitted += 1
        if answer.max_tokens < answer.asked:
            self.counters.shrunk += 1
        return answer

    def count(self, held: Held, requests: int, now: int) -> None:
        """Count requests of a tenant, so that a flood is seen."""
        self.alerts += count(held.book, requests, now)
        if held.book.volume.is_shed:
            self.shed.add(held)
        else:
            self.shed.discard(held)

    def settle(self, settled: Settled) -> None:
        """Take the end of an attempt."""
        held = self.books.get(settled.tenant_id) or self._open(settled.tenant_id, settled.at)
        self.counters.settled += 1
        part = held.book.requests.get(settled.request_id)
        if part is None and settled.dispatched:
            self.doubtful[settled.tenant_id, settled.request_id, settled.attempt] = None
        self.counters.over += self._take(held, settled)

    def lease(self, entry: Leased | Returned) -> None:
        """Take a slice that was granted, or one that comes back."""
        held = self.books[entry.tenant_id]
        self.states.before_change(held, "")
        held.book.apply(entry)
        self.pending.append(entry)

    def unasked(self, entry: Unasked) -> None:
        """Note a decision that a caller made without us."""
        self.pending.append(entry)
        self.counters.unasked += 1
        detail = msgspec.json.encode({"mode": entry.mode, "admitted": entry.admitted})
        self.decisions.append(
            Decision(moment(entry.at), entry.tenant_id, entry.request_id, entry.attempt, "unasked", detail)
        )

    def ready(self, tenant_id: str, now: int, told_tier: str = "") -> Held | Unready:
        """A tenant's book with its budgets loaded, or why it cannot be had."""
        if tenant_id in self.barred:
            return self.barred[tenant_id]
        if tenant_id not in self.registered:
            self.to_look_up[tenant_id] = None
            return "loading"
        held = self.books.get(tenant_id)
        if held is None or now >= held.changes_at or (told_tier and told_tier != held.told_tier):
            held = self._open(tenant_id, now, told_tier)
        if held.is_loading:
            self.waited_for[tenant_id] = None
            return "loading"
        return held

    def _open(self, tenant_id: str, now: int, told_tier: str = "") -> Held:
        """A tenant's book under the definitions of now; budgets are to be loaded."""
        held = self.books.get(tenant_id)
        if held is None:
            held = self.books[tenant_id] = Held(TenantBook(tenant_id, self.limits))
            self.states.add(held)
        self._define(held, now, told_tier or held.told_tier or held.book.tier)
        return held

    def _define(self, held: Held, now: int, told_tier: str, prices: PriceList | None = None) -> None:
        tenant_id, at = held.book.tenant_id, moment(now)
        tier = self.definitions.tier_of(tenant_id, at, told_tier)
        quotas = self.definitions.quotas_of(tenant_id, tier, at)
        anchor = self.definitions.anchor_of(tenant_id, at)
        prices = prices or held.book.meters.prices
        changes = self.definitions.changes_after(tenant_id, tier, at)
        held.told_tier = told_tier
        held.changes_at = NEVER if changes is None else microseconds(changes)
        same = held.book.tier == tier and held.book.meters.stand_for(quotas, prices, anchor)
        held.is_shed = policy_of(tier).is_shed
        own = strictest(quota.on_unavailable for quota in quotas if quota.on_unavailable is not None)
        held.on_unavailable = own or policy_of(tier).on_unavailable
        if not same:
            priority = policy_of(tier).priority
            held.book.define(quotas, now, tier=tier, priority=priority, prices=prices, anchor=anchor)
        held.is_loading = held.book.needs_loading
        if held.is_loading:
            self.to_load[tenant_id] = None

    def _take(self, held: Held, entry: Reserved | Settled) -> int:
        self.states.before_change(held, entry.request_id)
        over = held.book.apply(entry).over
        self.pending.append(entry)
        self._deadlines.watch(held)
        return over

    # The database

    def wanted(self) -> Wanted:
        """What the next look should find out."""
        spans = {}
        for tenant_id in list(self.waited_for | self.to_load)[:SPANS_A_LOOK]:
            held = self.books.get(tenant_id)
            if held is not None:
                spans[tenant_id] = sorted(
                    {Span(m.start, m.end) for m in held.book.meters.budgets}, key=lambda s: s.start
                )
        return Wanted(spans, list(self.doubtful), list(self.to_look_up))

    def take_look(self, look: Look, wanted: Wanted) -> Iterator[None]:
        """Take what a look has found, in slices; the next look must not begin before the last."""
        if look.definitions is not None:
            self.definitions = look.definitions
            for number, held in enumerate(list(self.books.values())):
                self._define(held, look.at, held.told_tier)
                if number % 50 == 49:
                    yield
        self.register(look.states, wanted.tenants)
        for start in range(0, len(look.rows), ROWS_A_SLICE):
            self._confirm(look.rows[start : start + ROWS_A_SLICE], look.at)
            yield
        for tenant_id, prices in look.prices.items():
            priced = self.books.get(tenant_id)
            if priced is not None and prices != priced.book.meters.prices:
                self._define(priced, look.at, priced.told_tier, prices)
        for tenant_id, spans in look.loaded.items():
            held = self.books[tenant_id]
            held.book.roll(look.at)
            fill(held.book, spans)
            self.alerts += threshold_alerts(held.book, look.at)
            held.is_loading = held.book.needs_loading
            if not held.is_loading:
                self.to_load.pop(tenant_id, None)
                self.waited_for.pop(tenant_id, None)
        found = set(look.counted)
        for tenant_id, request_id, attempt in wanted.attempts:
            self.doubtful.pop((tenant_id, request_id, attempt), None)
            if (tenant_id, request_id, attempt) in found:
                self.books[tenant_id].book.resolve(request_id, attempt)

    def register(self, states: Mapping[str, str], asked: Sequence[str] = ()) -> None:
        """Take which tenants there are, and which of those asked for there are not."""
        self.barred = {tenant_id: _UNREADY[state] for tenant_id, state in states.items() if state != "active"}
        self.registered.update(states)
        for tenant_id in asked:
            self.to_look_up.pop(tenant_id, None)
            if tenant_id not in states:
                self.barred[tenant_id] = "unknown"

    def _confirm(self, rows: Sequence[Row], now: int) -> None:
        touched: dict[str, Held] = {}
        for row in rows:
            held = self.books.get(row.tenant_id)
            if held is None:
                tier = self.definitions.tier_of(row.tenant_id, moment(now))
                if not self.definitions.versions_of(row.tenant_id, tier):
                    continue
                held = self._open(row.tenant_id, now)
            held.book.roll(now)
            progress = held.book.confirm(row)
            self.counters.confirmed += row.first
            self.counters.unreserved += row.first and not progress.known
            self.counters.over += progress.over
            touched[row.tenant_id] = held
        for held in touched.values():
            self._deadlines.watch(held)
            self.alerts += threshold_alerts(held.book, now)

    # Time

    def tend(self, now: int) -> None:
        """End what is overdue, forget what is over. A bounded piece of work."""
        for held, request_id in self._deadlines.due(now):
            tended = held.book.tend(request_id, now)
            self.counters.expired += tended.expired
            if tended.again_at is not None:
                self._deadlines.again(held, request_id, tended.again_at)
                for attempt in held.book.overdue(request_id, now):
                    self.counters.findings += 1
                    self.doubtful[held.book.tenant_id, request_id, attempt] = None

    def each_second(self, now: int) -> None:
        """Take back slices that nobody gave back in time; end floods that are over."""
        for held in self.books.values():
            if held.book.leases.any_open:
                held.book.expire_leases(now)
        for held in list(self.shed):
            self.count(held, 0, now)

    # The journal

    def next_batch(self, *, begin_a_state: bool = False) -> tuple[Batch, set[int]] | None:
        """What is to be written now, and which groups it is about; None if nothing. `begin_a_state`: as of then."""
        if begin_a_state:
            self.states.begin()
        if not (self.pending or self.alerts or self.decisions):
            self.states.nothing_to_cut()
            return None
        batch = Batch(entries.encode(self.pending), self.decisions, self.alerts)
        self.pending, self.decisions, self.alerts = [], [], []
        return batch, self.states.cut()

    # Rebuilding

    def restore(self, states: Iterable[tuple[int, int, bytes]], batches: Iterable[tuple[int, bytes]], now: int) -> int:
        """Take stored states and the entries after them; returns how many entries. Definitions must be here already."""
        as_of: dict[int, int] = {}
        for group, no, stored in states:
            as_of[group] = no
            for state in book_state.decode(stored):
                held = self.books.get(state.tenant_id)
                if held is None:
                    held = self.books[state.tenant_id] = Held(TenantBook(state.tenant_id, self.limits))
                    self.states.add(held)
                book_state.restore(held.book, state)
        for held in self.books.values():
            self._define(held, now, held.book.tier)
        taken = 0
        for no, batch in batches:
            for entry in entries.decode(batch):
                group = group_of(entry.tenant_id)
                if group % self.of != self.shard or no <= as_of.get(group, 0) or isinstance(entry, Unasked):
                    continue
                held = self.books.get(entry.tenant_id) or self._open(entry.tenant_id, now)
                held.book.apply(entry)
                self.states.note(group, no)
                taken += 1
        self._deadlines.start(now)
        for held in self.books.values():
            self._deadlines.watch(held)
        return taken

    def live(self) -> list[tuple[str, str, int]]:
        """Every attempt whose usage is not confirmed as far as is known here."""
        return [
            (tenant_id, request_id, attempt)
            for tenant_id, held in self.books.items()
            for request_id, attempt in held.book.live()
        ]
