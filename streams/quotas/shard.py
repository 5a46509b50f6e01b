"""All tenants of a shard: who is asked about whom, what has to be written, looked up and told. No input or output.

The service calls this from one thread. What is admitted is in `pending` until the service has written it; only then it
answers, but for what is covered by what was written before (`may_answer`). Times are microseconds since 1970, by the
database's clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import msgspec

from serving_adapter.quota.groups import shard_of
from serving_adapter.quota.tiers import policy_of
from streams.alerts import Alert
from streams.quotas import entries
from streams.quotas.amounts import PriceList
from streams.quotas.book import TenantBook
from streams.quotas.calendar import microseconds, moment
from streams.quotas.counters import Counters
from streams.quotas.deadlines import Deadlines
from streams.quotas.decisions import Ask, Limits, Progress, Refused
from streams.quotas.definition_store import Definitions
from streams.quotas.definitions import RATE_US, Quota, strictest
from streams.quotas.entries import Charged, Entry, Leased, Read, Reserved, Returned, Settled, Unasked, Unreserved
from streams.quotas.escrow import ADMITS_US, PAUSE_US, Escrow
from streams.quotas.feed import Span
from streams.quotas.findings import unconfirmed_alert
from streams.quotas.granting import Slice, grant
from streams.quotas.held import Awaited, Held
from streams.quotas.journal import Batch, Decision
from streams.quotas.lead import Lead
from streams.quotas.lease_book import ESCROW, LOST, OWN
from streams.quotas.loading import spent_alerts
from streams.quotas.meter_set import NEVER
from streams.quotas.refusals import refusal_detail
from streams.quotas.shedding import count, shed
from streams.quotas.stored_states import StoredStates

SAFE_SHARE: Final = 10
"""Percent of what remains that is promised while what was promised before is not known."""

Unready = Literal["loading", "unknown", "suspended", "closed"]
"""Why nothing can be decided: the tenant's usage or registration is being read, or it may not use anything."""


class Cut(NamedTuple):
    """A batch, and what becomes of the shard once it is written."""

    batch: Batch
    changed: set[int]
    """Groups of tenants that it is about."""
    answered: list[tuple[Escrow, Reserved]]
    asked_for: list[tuple[Escrow, Slice, int]]


@dataclass(slots=True)
class Shard:
    """The state of one shard; see the module."""

    shard: int
    of: int
    limits: Limits
    definitions: Definitions = field(default_factory=Definitions)
    learning_until: int = 0
    """Until then it is not known what else was promised, and only a share is."""
    lead: Lead = field(default_factory=Lead)
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
    read: dict[str, int] = field(default_factory=dict)
    """Of the feed, as the journal has it: what was unreserved up to there is in it."""
    noted: int = 0
    """How often unreserved usage was found."""
    shed: set[Held] = field(default_factory=set)
    """Tenants that flood."""
    states: StoredStates = field(default_factory=StoredStates)
    deadlines: Deadlines = field(init=False)
    _answered: list[tuple[Escrow, Reserved]] = field(default_factory=list)
    """Of what is pending: what was answered out of escrows."""
    _asked_for: list[tuple[Escrow, Slice, int]] = field(default_factory=list)
    """Of what is pending: what escrows grow by, and until when they admit then."""
    _is_ending: bool = False
    _round: list[Held] = field(default_factory=list)
    """Whom `go_round` has not come to yet."""

    def __post_init__(self) -> None:
        # By then most have ended for as long as they are remembered: one look at each
        self.deadlines = Deadlines(min(2 * self.limits.keep_ended_us, self.limits.held_us))

    def owns(self, tenant_id: str) -> bool:
        """Whether the tenant is of this shard."""
        return self.of == 1 or shard_of(tenant_id, self.of) == self.shard

    # Callers

    def ask(self, ask: Ask, now: int) -> Reserved | Refused | Unready:
        """Judge a request; an admitted one is pending. Raises OtherContent."""
        held = self.ready(ask.tenant_id, now, ask.tier)
        if not isinstance(held, Held):
            return held
        before = held.book.admitted(ask)
        if before is not None:
            if before.nonce != ask.nonce:
                before = msgspec.structs.replace(before, nonce=ask.nonce)
                self._take(held, before)
            return before
        answer: Reserved | Refused | None = None
        if held.is_shed:
            self.count(held, 1, now)
            answer = shed(ask, held.book, now) if held.book.volume.is_shed else None
        if answer is None:
            answer = held.book.decide(ask, now, 100 if now >= self.learning_until else SAFE_SHARE)
        assert answer is not None, "it was not admitted before"
        if isinstance(answer, Refused):
            self.counters.refused += 1
            self.alerts += spent_alerts(held.book, answer)
            self.decisions.append(
                Decision(moment(now), ask.tenant_id, ask.request_id, ask.attempt, "refused", refusal_detail(answer))
            )
            return answer
        self._take(held, answer)
        self.counters.admitted += 1
        if answer.max_tokens < answer.asked:
            self.counters.shrunk += 1
        return answer

    def may_answer(self, tenant_id: str, entry: Reserved, now: int) -> bool:
        """Whether an admission may be told before it is written, as the tenant's escrow stands for it. Where it does
        not, the escrow grows."""
        held = self.books[tenant_id]
        escrow = held.escrow
        if escrow is not None and escrow.take(entry, now):
            self._answered.append((escrow, entry))
            self.counters.answered_at_once += 1
            if escrow.wants_longer(now):
                self._renew_escrow(held, escrow, now)
            return True
        if self._is_ending or now < max(held.no_escrow_until, self.learning_until):
            return False
        if escrow is None:
            escrow = held.escrow = Escrow()
        if not escrow.is_asked_for:
            size = grant(held.book, "", "", escrow.larger(entry), now, self.limits.escrow_part)
            more = escrow.missing(size, entry)
            if more is None:
                held.no_escrow_until = now + PAUSE_US
            else:
                self._add_to_escrow(held, escrow, more, now)
        return False

    def end_escrows(self, now: int) -> None:
        """The process ends: from now on every answer waits for its batch."""
        self._is_ending = True
        for held in self.books.values():
            self._end_escrow(held, now)

    def lose_escrows(self, now: int) -> None:
        """What the process before had answered and not written, at most, is held until nothing of it can run, and rates
        are charged for it."""
        for held in self.books.values():
            was = self._take_back_escrow(held, now)
            if was is not None:
                self.lease(msgspec.structs.replace(was, lease_id=f"{LOST}{was.at}"))

    def _add_to_escrow(self, held: Held, escrow: Escrow, more: Slice, now: int) -> None:
        escrow.ask(more)
        held_until = now + ADMITS_US + self.limits.held_us
        self.lease(Leased(held.book.tenant_id, ESCROW, OWN, now, "", "", *more, held_until=held_until))
        self._asked_for.append((escrow, more, now + ADMITS_US))

    def _renew_escrow(self, held: Held, escrow: Escrow, now: int) -> None:
        """For longer, unless it has become a large part of what is left."""
        if grant(held.book, "", "", escrow.size, now, self.limits.escrow_part) == escrow.size:
            self._add_to_escrow(held, escrow, Slice(), now)
        else:
            self._end_escrow(held, now)

    def _end_escrow(self, held: Held, now: int) -> None:
        """What was answered out of it and is not written yet is in the batch of this, or before it."""
        if held.escrow is not None:
            held.escrow, held.no_escrow_until = None, now + PAUSE_US
            self._take_back_escrow(held, now)

    def _take_back_escrow(self, held: Held, now: int) -> Leased | None:
        """End the slice; what it was, as of then."""
        was = held.book.leases.get(ESCROW)
        if was is None:
            return None
        tenant_id, at = held.book.tenant_id, max(now, was.at + 1)
        size = Slice(was.requests, was.input_tokens, was.output_tokens, was.slots)
        self.lease(Returned(tenant_id, ESCROW, at, *size, closed=True))
        return Leased(tenant_id, ESCROW, OWN, at, "", "", *size, held_until=was.held_until)

    def count(self, held: Held, requests: int, now: int) -> None:
        """Count requests of a tenant, so that a flood is seen."""
        self.alerts += count(held.book, requests, now)
        if held.book.volume.is_shed:
            self.shed.add(held)
        else:
            self.shed.discard(held)

    def settle(self, settled: Settled) -> None:
        """Take the end of an attempt."""
        held = self.books.get(settled.tenant_id) or self.open(settled.tenant_id, settled.at)
        self.counters.settled += 1
        progress = self._take(held, settled)
        if progress.doubtful:
            self.doubtful[settled.tenant_id, settled.request_id, settled.attempt] = None
        self.counters.over += progress.over
        for quota_id, start, units in progress.unreserved:
            self._note_unreserved(Unreserved(settled.tenant_id, settled.at, quota_id, start, units))

    def doubt(self, attempts: Iterable[tuple[str, str, int]]) -> None:
        """Ask the database about those of these attempts that rates wait for."""
        for tenant_id, request_id, attempt in attempts:
            if self.books[tenant_id].book.is_uncharged(request_id, attempt):
                self.doubtful[tenant_id, request_id, attempt] = None

    def asked_about(self, tenant_id: str, request_id: str, attempt: int, now: int, *, counted: bool) -> None:
        """The database has said whether the event of an attempt that was doubtful is counted."""
        self.doubtful.pop((tenant_id, request_id, attempt), None)
        held = self.books[tenant_id]
        if counted:
            held.book.resolve(request_id, attempt)
        if held.book.is_uncharged(request_id, attempt):
            self._take(held, Charged(tenant_id, request_id, attempt, now))

    def lease(self, entry: Leased | Returned) -> None:
        """Take a slice that was granted, or one that comes back."""
        held = self.books[entry.tenant_id]
        self.states.before_change(held, "")
        held.book.apply(entry)
        self.pending.append(entry)

    def note_unreserved(self, found: Mapping[tuple[str, str, int], int], at: int, positions: Mapping[str, int]) -> None:
        """Keep what was confirmed and reserved by nobody, by tenant, quota and period, up to these positions of the
        feed: windows do not tell it from the rest."""
        for (tenant_id, quota_id, start), units in found.items():
            self._note_unreserved(Unreserved(tenant_id, at, quota_id, start, units))
        if found:
            self.pending.append(Read(self.shard, at, dict(positions)))
            self.noted += 1

    def _note_unreserved(self, entry: Unreserved) -> None:
        held = self.books[entry.tenant_id]
        self.states.before_change(held, "")
        held.book.apply(entry)
        self.pending.append(entry)

    def unasked(self, entry: Unasked, detail: bytes) -> None:
        """Note a decision that a caller made without us, with the numbers that it was based on."""
        self.pending.append(entry)
        self.counters.unasked += 1
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
        if held is None or (
            held.awaits is None and (now >= held.changes_at or (told_tier and told_tier != held.told_tier))
        ):
            held = self.open(tenant_id, now, told_tier)
        if held.is_loading:
            self.waited_for[tenant_id] = None
            return "loading"
        return held

    def open(self, tenant_id: str, now: int, told_tier: str = "") -> Held:
        """A tenant's book under the definitions of now; budgets are to be loaded."""
        held = self.books.get(tenant_id)
        if held is None:
            held = self.hold(tenant_id)
            self.define(held, now, told_tier or held.told_tier or held.book.tier)
            self.fill_rates(held, now)
        else:
            self.define(held, now, told_tier or held.told_tier or held.book.tier)
        return held

    def expect(self, tenant_ids: Iterable[str], now: int) -> None:
        """Open the books of those tenants who have quotas, so that their budgets are loaded before they ask."""
        at, definitions = moment(now), self.definitions
        for tenant_id in tenant_ids:
            if tenant_id in self.books or self.barred.get(tenant_id) == "closed" or not self.owns(tenant_id):
                continue
            if definitions.versions_of(tenant_id, definitions.tier_of(tenant_id, at)):
                self.open(tenant_id, now)

    def hold(self, tenant_id: str) -> Held:
        """A tenant's book, which knows nothing yet."""
        held = self.books[tenant_id] = Held(TenantBook(tenant_id, self.limits, self.lead))
        self.states.add(held)
        return held

    def fill_rates(self, held: Held, now: int) -> None:
        """While it is not known what was promised: as if all but the share had been charged when that began."""
        if now < self.learning_until:
            since = now - (self.learning_until - self.limits.held_us)
            held.book.meters.fill_rates(100 - SAFE_SHARE, since, now)

    def shift(self, by_us: int) -> None:
        """The clock has stepped forward: what is held runs as long as it would have."""
        for held in self.books.values():
            held.book.shift(by_us)
            self.states.touch(held.group)

    def define(
        self, held: Held, now: int, told_tier: str, prices: PriceList | None = None, read: Collection[Span] = ()
    ) -> None:
        """Take what holds for a tenant now. New budgets have to be loaded: of a tenant that can be asked, what held
        before goes on deciding until those periods are among the ones that were `read`."""
        tenant_id, at = held.book.tenant_id, moment(now)
        tier = self.definitions.tier_of(tenant_id, at, told_tier)
        quotas = self.definitions.quotas_of(tenant_id, tier, at)
        anchor = self.definitions.anchor_of(tenant_id, at)
        prices = prices or held.book.meters.prices
        changes = self.definitions.changes_after(tenant_id, tier, at)
        meters = held.book.meters
        same = held.book.tier == tier and meters.stand_for(quotas, prices, anchor)
        held.awaits = None
        if not same and not held.is_loading:
            empty = meters.empty_under(quotas, now, prices, anchor)
            if any(Span(meter.start, meter.end) not in read for meter in empty):
                held.awaits = Awaited(told_tier, empty)
                self.to_load[tenant_id] = None
                return
        held.told_tier = told_tier
        held.changes_at = NEVER if changes is None else microseconds(changes)
        held.is_shed = policy_of(tier).is_shed
        if held.is_shed and held.book.volume.is_shed:
            self.shed.add(held)
        own = strictest(quota.on_unavailable for quota in quotas if quota.on_unavailable is not None)
        held.on_unavailable = own or policy_of(tier).on_unavailable
        if not same:
            self._end_escrow(held, now)  # it was measured by others, and rates that begin now would not know of it
            priority = policy_of(tier).priority
            began = {} if meters.is_defined else self._rates_began(quotas, tenant_id, told_tier, now)
            held.book.define(quotas, now, tier=tier, priority=priority, prices=prices, anchor=anchor, began=began)
        held.is_loading = held.book.needs_loading
        if held.is_loading:
            self.to_load[tenant_id] = None

    def _rates_began(self, quotas: Iterable[Quota], tenant_id: str, told_tier: str, now: int) -> dict[str, int]:
        """Of the rates that hold now those that did not a while ago, and since when they do: a rebuild reads what was
        admitted before."""
        after = moment(now - 2 * max(RATE_US.values()))
        began = {
            quota.quota_id: self.definitions.began(tenant_id, told_tier, quota.quota_id, moment(now), after)
            for quota in quotas
            if quota.is_rate
        }
        return {quota_id: microseconds(at) for quota_id, at in began.items() if at is not None}

    def _take(self, held: Held, entry: Reserved | Settled | Charged) -> Progress:
        self.states.before_change(held, entry.request_id)
        progress = held.book.apply(entry)
        self.pending.append(entry)
        self.deadlines.watch(held)
        return progress

    # Time

    def tend(self, now: int) -> None:
        """End what is overdue, forget what is over. A bounded piece of work."""
        for held, request_id in self.deadlines.due(now):
            tended = held.book.tend(request_id, now)
            self.counters.expired += tended.expired
            self.counters.never_confirmed += tended.never_confirmed
            if tended.again_at is not None:
                self.deadlines.again(held, request_id, tended.again_at)
                for attempt in held.book.overdue(request_id, now):
                    if held.book.finds(request_id, attempt):  # asked about once: what is counted later is in the feed
                        self.doubtful[held.book.tenant_id, request_id, attempt] = None
                        self.counters.findings += 1
                        self.alerts += unconfirmed_alert(held, request_id, now)

    def end_what_is_over(self, now: int) -> None:
        """End reservations whose deadlines have passed while nobody looked, and slices that were held until then."""
        for held in self.books.values():
            held.book.expire_leases(now)
            for request_id, request in list(held.book.requests.items()):
                if request.ended_at is None and request.deadline <= now:
                    self.counters.expired += held.book.tend(request_id, now).expired

    def go_round(self, now: int, at_most: int) -> None:
        """Of so many tenants, one after the other: take back slices that nobody gave back in time, and end escrows that
        nobody asks for any more. A bounded piece of work."""
        for _ in range(min(at_most, len(self.books))):
            if not self._round:
                self._round = list(self.books.values())
            held = self._round.pop()
            if held.book.leases.any_open:
                held.book.expire_leases(now)
            if held.escrow is not None and now >= held.escrow.until > 0:
                self._end_escrow(held, now)

    def each_second(self, now: int) -> None:
        """End floods that are over."""
        for held in list(self.shed):
            self.count(held, 0, now)

    def live(self) -> list[tuple[str, str, int]]:
        """Every attempt whose usage is not confirmed as far as is known here."""
        return [
            (tenant_id, request_id, attempt)
            for tenant_id, held in self.books.items()
            for request_id, attempt in held.book.live()
        ]

    # The journal

    def next_batch(self, *, begin_a_state: bool = False) -> Cut | None:
        """What is to be written now; None if nothing. `begin_a_state`: as of then."""
        if begin_a_state:
            self.states.begin()
        if not (self.pending or self.alerts or self.decisions):
            self.states.nothing_to_cut()
            return None
        batch = Batch(entries.encode(self.pending), self.decisions, self.alerts)
        cut = Cut(batch, self.states.cut(), self._answered, self._asked_for)
        self.pending, self.decisions, self.alerts = [], [], []
        self._answered, self._asked_for = [], []
        return cut

    def written(self, no: int, cut: Cut) -> None:
        """A batch is durable, and has this number."""
        self.states.written(no, cut.changed)
        for escrow, entry in cut.answered:
            escrow.put_back(entry)
        for escrow, more, until in cut.asked_for:
            escrow.granted(more, until)
