"""The quota service without its process: the product's shard, its journal and its database in lists, in virtual time.

What is written survives a crash, and nothing else does: batches, states, up to where the feed was read, alerts by their
id. The windows and the feed hold what was ingested, whether the service runs or not.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from streams.alerts import Alert
from streams.quotas import looking
from streams.quotas.amounts import Counts, PriceList
from streams.quotas.decisions import Ask, Limits, Refused, Row
from streams.quotas.definition_store import Definitions
from streams.quotas.entries import Leased, Reserved, Returned, Settled
from streams.quotas.feed import Look, Span, Used, Wanted
from streams.quotas.lease_book import LOST, Lease
from streams.quotas.rebuilding import restore
from streams.quotas.shard import Shard

_MINUTE_US: Final = 60_000_000
_PARTITION: Final = "p0"


class PlayedService:
    """One shard, all of its tenants registered."""

    def __init__(
        self, limits: Limits, definitions: Definitions, names: Iterable[str], now: int,
        prices: Mapping[str, PriceList] | None = None,
    ) -> None:  # fmt: skip
        self.limits = limits
        self.definitions = definitions
        """As the database has them; a look takes others."""
        self.prices: dict[str, PriceList] = dict(prices or {})
        self.alerts: dict[UUID, Alert] = {}
        """As the outbox has them: each once."""
        self._names = set(names)
        self._journal: list[tuple[int, bytes]] = []
        self._states: dict[int, tuple[int, bytes]] = {}
        self._no = 0
        self._windows: dict[str, dict[tuple[str, str, bool, int], Counts]] = defaultdict(dict)
        self._identities: set[tuple[str, str, int]] = set()
        self._feed: list[Row] = []
        self._read = self._durably_read = 0
        """How many rows of the feed were read, and how many of them with all that followed written."""
        self._repriced: set[str] = set()
        self._told: list[Reserved] = []
        """What was answered and is not written yet."""
        self.answered_at_once = 0
        self.shard = self.rebuilt(now)

    # Callers

    @property
    def is_up(self) -> bool:
        """Whether it runs."""
        return bool(self.shard.registered)

    def ask(self, ask: Ask, now: int) -> Reserved | Refused:
        """The answer, once it is written, or what was written stands for it. Raises OtherContent."""
        answer = self.shard.ask(ask, now)
        if answer == "loading":
            self.look(now)
            answer = self.shard.ask(ask, now)
        if isinstance(answer, Reserved) and self.shard.may_answer(ask.tenant_id, answer, now):
            self._told.append(answer)
            self.answered_at_once += 1
            return answer
        self.write()
        assert isinstance(answer, Reserved | Refused), answer
        return answer

    def settle(self, entry: Settled) -> None:
        """An attempt's end is told."""
        self.shard.settle(entry)
        self.write()

    def lease(self, entry: Leased | Returned) -> None:
        """A slice is granted or comes back."""
        self.shard.lease(entry)
        self.write()

    # The database

    def ingest(self, rows: Sequence[Row]) -> None:
        """Usage events are counted."""
        for row in rows:
            of_tenant = self._windows[row.tenant_id]
            key = (row.model, row.adapter, row.bills, row.completed_at // _MINUTE_US)
            of_tenant[key] = _sum(of_tenant.get(key, Counts()), row.counts)
            self._identities.add((row.tenant_id, row.request_id, row.attempt))
        self._feed += rows

    def reprice(self, tenant_id: str, prices: PriceList) -> None:
        """A tenant's prices are others from now on, also of what was used."""
        self.prices[tenant_id] = prices
        self._repriced.add(tenant_id)

    # Time

    def tick(self, now: int) -> None:
        """What the process does beside requests: one look, and a turn of everything else."""
        self.look(now)
        self.shard.tend(now)
        self.shard.go_round(now, len(self._names))
        self.shard.each_second(now)
        made = self.shard.states.make()  # what was begun a tick before, and much has changed since
        self.write(begin_a_state=True)
        self._durably_read = self._read
        if made is not None:
            group, no, state = made
            self._states[group] = (no, state)
            self.shard.states.kept(group)

    def look(self, now: int) -> None:
        """One look at the database."""
        wanted = looking.wanted(self.shard)
        look = Look(now, 0.0, {_PARTITION: len(self._feed)}, self._feed[self._read :], True, None)
        self._read = len(self._feed)
        if self.shard.definitions is not self.definitions:
            look.definitions = self.definitions
        look.prices = {name: self.prices[name] for name in self._repriced | (self.prices.keys() & wanted.spans.keys())}
        self._repriced.clear()
        self._load(look, wanted)
        for _ in looking.take_look(self.shard, look, wanted):
            pass

    def write(self, *, begin_a_state: bool = False) -> None:
        """All that is decided becomes durable."""
        cut = self.shard.next_batch(begin_a_state=begin_a_state)
        if cut is not None:
            self._no += 1
            self._journal.append((self._no, cut.batch.entries))
            for alert in cut.batch.alerts:
                self.alerts.setdefault(alert.alert_id, alert)
            self.shard.written(self._no, cut)
            self._told.clear()

    def crash(self) -> list[Reserved]:
        """kill -9; what was answered and never written."""
        self.shard = Shard(0, 1, self.limits)
        lost, self._told = self._told, []
        return lost

    def restart(self, now: int) -> None:
        """Another process takes the shard."""
        self.shard = self.rebuilt(now)
        self._read = len(self._feed)
        self.shard.lose_escrows(now)

    def lost_escrows(self) -> Iterator[tuple[str, str, Lease]]:
        """What is held for answers of processes that are gone: tenant, id, slice."""
        for name, held in self.shard.books.items():
            for lease_id, lease in held.book.leases.all().items():
                if lease_id.startswith(LOST):
                    yield name, lease_id, lease

    def rebuilt(self, now: int) -> Shard:
        """The shard that a new process would make, as `rebuilding.rebuild` and `load_all` do."""
        shard = Shard(0, 1, self.limits, self.definitions)
        shard.registered = set(self._names)
        restore(shard, [(group, no, state) for group, (no, state) in self._states.items()], self._journal, now)
        live = shard.live()
        for tenant_id, request_id, attempt in live:
            if (tenant_id, request_id, attempt) in self._identities:
                shard.books[tenant_id].book.resolve(request_id, attempt)
        shard.doubt(live)
        reached = max(shard.read.get(_PARTITION, 0), self._durably_read)
        rows = self._feed[reached:]
        shard.expect(sorted({row.tenant_id for row in rows}), now)
        for tenant_id in {row.tenant_id for row in rows} & self.prices.keys() & shard.books.keys():
            held = shard.books[tenant_id]
            shard.define(held, now, held.told_tier, self.prices[tenant_id])
        unreserved: Counter[tuple[str, str, int]] = Counter()
        looking.confirm(shard, rows, now, unreserved)
        shard.note_unreserved(unreserved, now, {_PARTITION: len(self._feed)})
        shard.expect(sorted(shard.registered), now)
        while shard.to_load:
            wanted = looking.wanted(shard)
            look = Look(now, 0.0, {}, [], True, None)
            look.prices = {name: self.prices[name] for name in self.prices.keys() & wanted.spans.keys()}
            self._load(look, wanted)
            for _ in looking.take_look(shard, look, wanted):
                pass
        return shard

    def _load(self, look: Look, wanted: Wanted) -> None:
        look.counted = [attempt for attempt in wanted.attempts if attempt in self._identities]
        look.loaded = {
            name: {span: list(self._used(name, span)) for span in spans} for name, spans in wanted.spans.items()
        }

    def _used(self, name: str, span: Span) -> Iterator[Used]:
        changes = self.prices[name].changes_us if name in self.prices else ()
        for (model, adapter, bills, minute), counts in self._windows.get(name, {}).items():
            begins = minute * _MINUTE_US
            if begins >= span.start:
                priced_at = max((each for each in changes if each <= begins), default=span.start)
                yield Used(model, adapter, bills, begins >= span.end, priced_at, counts)


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(*(a + b for a, b in zip(one, other, strict=True)))


def numbers(shard: Shard, now: int) -> dict[tuple[str, str], Any]:
    """Where every quota of every tenant stands, to compare two shards: by tenant and quota, without rates."""
    found: dict[tuple[str, str], Any] = {}
    for name, held in shard.books.items():
        held.book.roll(now)
        for meter in held.book.meters.budgets:
            key = (name, meter.quota.quota_id)
            found[key] = (meter.confirmed, meter.unconfirmed, meter.reserved, meter.leased, meter.unreserved)
        for slot in held.book.meters.covering("", "").slots:
            found[name, slot.quota.quota_id] = (slot.in_use, slot.leased)
    return found
