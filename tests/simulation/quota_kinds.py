"""Every kind of quota under random requests, in virtual time, against what `quota_rules` reckons; from one seed.

Budgets in money while prices change, rates that bind, soft limits with thresholds, quotas that change in mid-period,
those of a model, of an adapter, of GPU time; tiers that callers tell, one after the other; slices. Requests have
attempts and copies, streams are cut short, settlements get lost, come twice or late, some usage nobody asked for, some
events come after their reservation's deadline; workers stand still, the service is killed and rebuilt, holders of
slices crash. All of it happens over a midnight.

What a limit allows is reckoned apart from the product, from what really happened and from what the service was told.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from random import Random
from typing import Any, Final

from msgspec import structs

from serving_adapter.quota.tiers import policy_of
from streams.quotas.amounts import Counts, DatedPrice, PriceList
from streams.quotas.calendar import microseconds, moment
from streams.quotas.decisions import Ask, Limits, Refused, Row
from streams.quotas.definition_store import NOTHING, Definitions
from streams.quotas.definitions import UNITS, Quota, quota_from
from streams.quotas.entries import Leased, Reserved, Returned, Settled
from streams.quotas.granting import Slice
from streams.quotas.meters import BudgetMeter, SlotMeter
from tests.simulation.played_holders import Holders, Key
from tests.simulation.played_service import PlayedService, numbers
from tests.simulation.quota_rules import FOR_EVER, SECOND, SLOT, Attempt, Leasing, PriceRow, Prices, Rule, Tenant, Via

MIDNIGHT: Final = microseconds(datetime(2026, 11, 22, tzinfo=UTC))
BEGIN: Final = MIDNIGHT - 220 * SECOND
END: Final = MIDNIGHT + 300 * SECOND
OVER: Final = END + 420 * SECOND
"""When the last event has come, and the last reservation has ended."""
LIMITS: Final = Limits(longest_request_us=60 * SECOND, lag_us=70 * SECOND, escrow_part=4)
LOOK_US: Final = 200_000
GRACE_US: Final = 6 * SECOND
"""How long after a change of definitions either holds: the service may be away for four seconds."""
DEARER: Final = MIDNIGHT - 60 * SECOND
CHEAPER: Final = MIDNIGHT + 120 * SECOND
TOLD: Final = DEARER - LIMITS.held_us - 10 * SECOND
"""When prices that change become known where they were not from the beginning: before anything that is bounded at the
old ones could end at the new ones."""
SLICE: Final = Slice(20, 6_000, 12_000, 10)
SWITCH_US: Final = 25 * SECOND
"""How often another tier is told."""
REQUESTS_EACH: Final = 60
KILLS: Final = 0.05
"""How often the service is killed when it has answered, and not written what."""
KINDS: Final = ("money", "rates", "soft", "changing", "models", "tiers", "slices")
BUSY: Final = {"slices": 3}
"""So many times as many requests as others."""
PRICE_ROWS: Final = (
    PriceRow("", "request", Fraction("0.0001"), 0),
    PriceRow("", "input", Fraction("0.000002"), 0),
    PriceRow("", "cached_input", Fraction("0.000001"), 0),
    PriceRow("m-1", "output", Fraction("0.00001"), 0),
    PriceRow("m-2", "output", Fraction("0.00003"), 0),
    PriceRow("m-1", "output", Fraction("0.00002"), DEARER),
    PriceRow("m-2", "output", Fraction("0.00001"), CHEAPER),
)
OVERSHOOT, WRONGLY_REFUSED, WRONG_RESTART, WRONG_END = ZERO = (
    "kinds_overshoot", "kinds_wrongly_refused", "kinds_wrong_after_restart", "kinds_wrong_in_the_end",
)  # fmt: skip
"""Figures that must be 0."""


def rules_of(kind: str, number: int) -> list[Rule]:
    """A tenant's quotas."""
    if kind == "money":
        return [Rule("day", "spend", Fraction("0.12")), Rule("none", "concurrency", Fraction(8))]
    if kind == "rates":
        return [
            Rule("second", "requests", Fraction(1)),
            Rule("minute", "output_tokens", Fraction(4_000)),
            Rule("minute", "requests", Fraction(8)),
            Rule("hour", "total_tokens", Fraction(60_000)),
        ]
    if kind == "soft":
        return [Rule("day", "output_tokens", Fraction(4_000), hard=False)]
    if kind == "changing":
        first, second = MIDNIGHT - 90 * SECOND, MIDNIGHT + 100 * SECOND
        return [
            Rule("day", "output_tokens", Fraction(9_000), ends=first),
            Rule("day", "output_tokens", Fraction(4_000), begins=first, ends=second),
            Rule("day", "output_tokens", Fraction(7_000), begins=second),
            Rule("day", "requests", Fraction(15), begins=MIDNIGHT - 120 * SECOND, ends=MIDNIGHT + 60 * SECOND),
            Rule("minute", "requests", Fraction(5), begins=MIDNIGHT + 30 * SECOND),
        ]
    if kind == "models":
        return [
            Rule("day", "output_tokens", Fraction(3_000), model="m-1"),
            Rule("day", "total_tokens", Fraction(9_000)),
            Rule("day", "requests", Fraction(4), adapter="fr"),
            Rule("day", "gpu_seconds", Fraction(30), model="m-2"),
            Rule("day", "cached_input_tokens", Fraction(3_000)),
        ]
    if kind == "tiers":
        return [
            Rule("day", "output_tokens", Fraction(8_000), told_tier="one"),
            Rule("minute", "requests", Fraction(6), told_tier="one"),
            Rule("day", "output_tokens", Fraction(6_000), told_tier="two"),
            Rule("day", "requests", Fraction(30), told_tier="two"),
            Rule("minute", "output_tokens", Fraction(3_000), told_tier="two"),
            Rule("none", "concurrency", Fraction(3), told_tier="two"),
        ]
    return [
        Rule("day", "output_tokens", Fraction(120_000)),
        Rule("day", "requests", Fraction(350)),
        Rule("day", "spend", Fraction("2.2")),
        Rule("none", "concurrency", Fraction(80)),
    ]


THRESHOLDS: Final = (50, 80, 100)


def quota_of(rule: Rule, tenant: str, *, ends: bool = False) -> Quota:
    """The product's definition of a rule."""
    limit = Decimal(rule.limit.numerator) / Decimal(rule.limit.denominator)
    document = {"period": rule.period, "metric": rule.metric, "limit": str(limit), "hard": rule.hard}
    document |= {"model": rule.model, "adapter": rule.adapter}
    document |= {"tier": rule.told_tier} if rule.told_tier else {"tenant_id": tenant}
    if not rule.hard:
        document["thresholds"] = list(THRESHOLDS)
    document["from"] = moment(rule.ends if ends else max(rule.begins, BEGIN - SECOND))
    return replace(quota_from(document, now=moment(BEGIN - SECOND)), ends=ends)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and what would become of it."""

    at: int
    tenant: str
    request_id: str
    no: int
    model: str
    adapter: str
    input: int
    cached: int
    max_tokens: int | None
    copies: int
    wants: int
    runs_us: int
    gpu_us: int
    bills: bool
    settle_after: int | None
    settled_twice: bool
    event_after: int
    asked: bool
    again: bool
    """Whether another attempt follows."""


def arrivals(rng: Random, tenants: Sequence[str]) -> Iterator[Arrival]:
    """All requests."""
    for tenant in tenants:
        kind = tenant.partition("-")[0]
        bursts = (1, 2, 6, 12) if kind == "slices" else (1, 1, 1, 3)
        for number in range(REQUESTS_EACH * BUSY.get(kind, 1)):
            at = BEGIN + int(rng.random() * (END - BEGIN))
            for burst in range(rng.choice(bursts)):
                adapter = "fr" if rng.random() < 0.15 else ""
                yield arrival(rng, at + burst * 50_000, tenant, f"{tenant}.r{number}.{burst}", adapter)


def arrival(rng: Random, at: int, tenant: str, request_id: str, adapter: str, no: int = 1) -> Arrival:
    """A request, or another attempt of one."""
    tokens = rng.randrange(1, 400)
    lost, late, vanishes = rng.random() < 0.05, rng.random() < 0.03, rng.random() < 0.02
    after = rng.randrange(140, 240) * SECOND if vanishes else int(rng.random() * (60 if late else 2) * SECOND)
    return Arrival(
        at=at,
        tenant=tenant,
        request_id=request_id,
        no=no,
        model=rng.choice(("m-1", "m-1", "m-1", "m-2")),
        adapter=adapter,
        input=tokens,
        cached=rng.randrange(0, tokens + 1),
        max_tokens=None if rng.random() < 0.15 else rng.randrange(16, 1200),
        copies=rng.choice((1, 1, 1, 1, 2)),
        wants=int(rng.expovariate(1 / 250)) + 1,
        runs_us=int(min(rng.expovariate(1 / 8), 58) * SECOND),
        gpu_us=rng.randrange(0, 3 * SECOND),
        bills=rng.random() > 0.1,
        settle_after=None if lost or vanishes else int(rng.random() * 0.2 * SECOND),
        settled_twice=rng.random() < 0.05,
        event_after=after,
        asked=rng.random() > 0.01,
        again=no == 1 and rng.random() < 0.05,
    )


class World:
    """What happens, and what is found wrong."""

    def __init__(self, seed: int, each: int) -> None:
        self._rng = rng = Random(seed)
        self._names = [f"{kind}-{number}" for kind in KINDS for number in range(each)]
        self._versions: dict[tuple[str, Rule, bool], int] = {}
        self._late_prices = {name for name in self._names if int(name.partition("-")[2]) % 2}
        prices = Prices(PRICE_ROWS)
        self.tenants = {
            name: Tenant(rules_of(name.partition("-")[0], number), prices, LIMITS.held_us)
            for number, name in enumerate(self._names)
        }
        self._pending_changes = sorted(
            {at for tenant in self.tenants.values() for rule in tenant.rules for at in (rule.begins, rule.ends)}
            - {0, FOR_EVER}
        )  # fmt: skip
        known = {name: price_list(DEARER if name in self._late_prices else FOR_EVER) for name in self._names}
        self.service = PlayedService(LIMITS, self._definitions(BEGIN), self._names, BEGIN, known)
        self._holders = Holders(self.service, rng, SLICE, self._note_lease)
        self._future: list[tuple[int, int, Callable[[int], None]]] = []
        self._count = 0
        self._rows: list[tuple[Row, Attempt]] = []
        self._in_feed: list[Attempt] = []
        """Ingested, and not looked at yet."""
        self._untold: list[Settled] = []
        """Settlements that wait for the service."""
        self._stands_still_until = self._down_until = 0
        self._crash_at = BEGIN + 10 * SECOND
        self._told_tiers: dict[str, tuple[str, int]] = {}
        """By tenant: the tier that the service was told last, and since when."""
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    # Definitions

    def _definitions(self, now: int) -> Definitions:
        """As they are written down by then: every other tenant's changes are known from the beginning, the others' are
        made when they begin."""
        of_tenants: dict[str, list[Quota]] = {}
        of_tiers: dict[str, list[Quota]] = {}
        tiered = {rule: name for name, tenant in self.tenants.items() for rule in tenant.rules if rule.told_tier}
        for rule, name in tiered.items():
            of_tiers.setdefault(rule.told_tier, []).append(self._defined(name, rule))
        for number, (name, tenant) in enumerate(self.tenants.items()):
            made = of_tenants[name] = []
            for rule in tenant.rules:
                if rule.told_tier or (number % 2 and rule.begins > now):
                    continue
                made.append(self._defined(name, rule))
                follows = any(each.quota_id == rule.quota_id and each.begins == rule.ends for each in tenant.rules)
                if rule.ends != FOR_EVER and not follows and (rule.ends <= now or not number % 2):
                    made.append(self._defined(name, rule, ends=True))
        return Definitions(NOTHING._replace(version=len(self._versions)), of_tenants, of_tiers)

    def _defined(self, name: str, rule: Rule, *, ends: bool = False) -> Quota:
        version = self._versions.setdefault((name, rule, ends), len(self._versions) + 1)
        return replace(quota_of(rule, name, ends=ends), version=version)

    def _in_force(self, name: str, now: int, tier: str, *, surely: bool) -> list[Rule]:
        """The rules that hold; of those that changed lately, `surely` none, else all."""
        margin = GRACE_US if surely else -GRACE_US
        found = [each for each in self.tenants[name].rules if each.begins + margin <= now < each.ends - margin]
        if self._switches(name, now):
            return [] if surely else found
        return [each for each in found if each.told_tier in ("", tier)]

    def _switches(self, name: str, now: int) -> bool:
        """Whether its tier is another one since lately."""
        return now < self._told_tiers.get(name, ("", -GRACE_US))[1] + GRACE_US

    # Time

    def run(self) -> None:
        """Let everything happen."""
        for each in arrivals(self._rng, self._names):
            self._later(each.at, self._arrives(each))
        self._later(BEGIN, self._turn)
        while self._future:
            now, _, what = heapq.heappop(self._future)
            what(now)

    def _later(self, at: int, what: Callable[[int], None]) -> None:
        self._count += 1
        heapq.heappush(self._future, (at, self._count, what))

    def _turn(self, now: int) -> None:
        if now < OVER:
            self._later(now + LOOK_US, self._turn)
        if now >= self._stands_still_until:
            due, self._rows = self._rows, []
            self.service.ingest([row for row, _ in due])
            self._in_feed += [attempt for _, attempt in due]
            if self._rng.random() < 0.002 and now < END:
                self._stands_still_until = now + self._rng.randrange(5, 30) * SECOND
        if self._pending_changes and now >= self._pending_changes[0]:
            self._pending_changes.pop(0)
            self.service.definitions = self._definitions(now)
        if now >= TOLD and self._late_prices:
            for name in self._late_prices:
                self.service.reprice(name, price_list())
            self._late_prices = set()
        if now < self._down_until:
            return
        if not self.service.is_up:
            self.service.restart(now)
            for name, lease_id, lease in self.service.lost_escrows():
                counts = [lease.requests, lease.input_tokens, lease.output_tokens, lease.slots]
                self.tenants[name].leases[lease_id] = Leasing("", lease.at, lease.held_until, counts)
            self._hear(now)
            self._told_tiers.clear()
            for tenant in self.tenants.values():
                tenant.restarted_at = now
        if now >= self._crash_at and now < END:
            self._crash(now)
            return
        self.service.tick(now)
        self._hear(now)
        untold, self._untold = self._untold, []
        for entry in untold:
            self._settle(entry, now)
        self._holders.turn(now)
        if self._rng.random() < 0.004:
            self._compare_with_a_restart(now)

    def _crash(self, now: int) -> None:
        self.counts["crashes"] += 1
        if self._rng.random() < 0.5:
            self.service.look(now)  # and what it found is never written
        for entry in self.service.crash():
            self.tenants[entry.tenant_id].attempts[entry.request_id, entry.attempt].forgotten = True
            self.counts["forgotten"] += 1
        self._down_until = now + self._rng.randrange(1, 4) * SECOND
        self._crash_at = self._down_until + int((5 + self._rng.expovariate(1 / 25)) * SECOND)

    def _hear(self, now: int) -> None:
        """The service has read the feed."""
        for attempt in self._in_feed:
            attempt.heard_at = attempt.heard_at if attempt.heard else now
            attempt.heard = "confirmed"
        self._in_feed.clear()

    # Requests

    def _arrives(self, arrival: Arrival) -> Callable[[int], None]:
        return lambda now: self._ask(arrival, now)

    def _ask(self, arrival: Arrival, now: int) -> None:
        name = arrival.tenant
        tenant = self.tenants[name]
        kind = name.partition("-")[0]
        tier = ("one" if now // SWITCH_US % 2 else "two") if kind == "tiers" else ""
        wanted = arrival.max_tokens or LIMITS.default_max_tokens
        key = Key(name, arrival.model)
        via: Via = "nobody"
        granted, deadline, kills = wanted, FOR_EVER, False
        may_lease = kind == "slices" and not arrival.adapter and arrival.asked
        cap = wanted * arrival.copies
        if may_lease and self._holders.admit(key, arrival.request_id, arrival.no, arrival.input, cap, now):
            via, deadline = "slice", now + LIMITS.held_us
        elif arrival.asked and self.service.is_up:
            ask = Ask(
                name, arrival.request_id, arrival.model, arrival.input, arrival.no, arrival.adapter,
                arrival.max_tokens, arrival.copies, tier=tier,
            )  # fmt: skip
            if tier and self._told_tiers.get(name, ("", 0))[0] != tier:
                self._told_tiers[name] = (tier, now)
            at_once = self.service.answered_at_once
            answer = self.service.ask(ask, now)
            kills = self.service.answered_at_once > at_once and self._rng.random() < KILLS and now < END
            if isinstance(answer, Refused):
                self._check_refusal(arrival, answer, tier, now)
                return
            via, granted, deadline = "service", answer.max_tokens, answer.deadline
            self._check_soft(tenant, answer, now)
        elif arrival.asked and self._rng.random() < 0.5:
            return  # its caller's fail mode denies it; the other half allow it, and tell it later
        self.counts[f"by {via}"] += 1
        output = min(arrival.wants * arrival.copies, granted * arrival.copies)
        attempt = tenant.attempts[arrival.request_id, arrival.no] = Attempt(
            arrival.request_id, arrival.no, now, arrival.model, arrival.adapter, arrival.input,
            granted * arrival.copies, via, "?" if self._switches(name, now) else tier, now + arrival.runs_us, output,
            arrival.cached, arrival.gpu_us, arrival.bills, deadline=deadline, held_until=deadline,
        )  # fmt: skip
        for each in tenant.attempts.values():
            if each.request_id == arrival.request_id:
                each.held_until = max(each.held_until, deadline)
        if via != "nobody":
            self._check_limits(name, attempt, tier, now)
        self._later(attempt.ends, lambda at: self._ends(arrival, attempt, at))
        if kills:
            self._crash(now)

    def _ends(self, asked: Arrival, attempt: Attempt, now: int) -> None:
        again = asked.again and now < END
        if asked.settle_after is not None and (attempt.via != "nobody" or asked.asked):
            lease_id, lease_no = self._holders.settle(asked.request_id, asked.no, asked.input, attempt.output)
            entry = Settled(
                asked.tenant, asked.request_id, asked.no, now, not again, True, attempt.model, attempt.adapter,
                attempt.input, attempt.cached, attempt.output, attempt.gpu_us, lease_id, lease_no,
            )  # fmt: skip
            if lease_id:
                self._untold.append(entry)  # in the order of their numbers
            else:
                self._later(now + asked.settle_after, lambda at: self._settle(entry, at))
            if asked.settled_twice:
                self._later(now + 5 * SECOND, lambda at: self._settle(entry, at))
        counts = Counts(1, attempt.input, attempt.cached, attempt.output, attempt.gpu_us)
        row = Row(
            asked.tenant, asked.request_id, asked.no, now, attempt.model, attempt.adapter, attempt.bills, True,
            counts,
        )  # fmt: skip
        self._later(now + asked.event_after, lambda at: self._rows.append((row, attempt)))
        if again:
            at = now + self._rng.randrange(SECOND)
            follows = arrival(self._rng, at, asked.tenant, asked.request_id, asked.adapter, asked.no + 1)
            self._later(at, self._arrives(follows))

    def _settle(self, entry: Settled, now: int) -> None:
        tenant = self.tenants[entry.tenant_id]
        attempt = tenant.attempts[entry.request_id, entry.attempt]
        if not self.service.is_up:
            if entry.lease_id or self._rng.random() < 0.7:
                self._untold.append(entry)
            return
        self.service.settle(structs.replace(entry, at=now))
        attempt.told_at, attempt.told_last_at = attempt.told_at or now, now
        if not attempt.heard:
            attempt.heard, attempt.heard_at, attempt.settled_at = "settled", now, now
        if entry.lease_id:
            self._draw(tenant, entry)
        if entry.final:
            for each in tenant.attempts.values():
                if each.request_id == entry.request_id:
                    each.let_go_at = min(each.let_go_at, now)

    # Slices, as they were granted and told

    def _note_lease(self, entry: Leased | Returned) -> None:
        leases = self.tenants[entry.tenant_id].leases
        moved = (entry.requests, entry.input_tokens, entry.output_tokens, entry.slots)
        if isinstance(entry, Returned):
            leases.pop(entry.lease_id, None)
            return
        self.counts["slices granted"] += 1
        lease = leases.setdefault(entry.lease_id, Leasing(entry.model, entry.at, entry.held_until))
        lease.at, lease.held_until = entry.at, entry.held_until
        lease.counts = [a + b for a, b in zip(lease.counts, moved, strict=True)]

    def _draw(self, tenant: Tenant, entry: Settled) -> None:
        """What a request out of a slice has used leaves it, once."""
        lease = tenant.leases.get(entry.lease_id)
        drawn = (entry.request_id, entry.attempt)
        if lease is not None and drawn not in lease.drawn:
            lease.drawn.add(drawn)
            used = (1, entry.input_tokens, entry.output_tokens, 0)
            lease.counts = [max(a - b, 0) for a, b in zip(lease.counts, used, strict=True)]

    # What must hold

    def _check_limits(self, name: str, attempt: Attempt, tier: str, now: int) -> None:
        """With this request, no hard limit can be passed by what was reserved."""
        tenant = self.tenants[name]
        for rule in self._in_force(name, now, tier, surely=True):
            if not rule.hard or not rule.covers(attempt.model, attempt.adapter):
                continue
            if rule.metric == "gpu_seconds":
                wrong = (there := tenant.known(rule, now)) >= rule.limit
            elif rule.metric == "concurrency":
                wrong = (there := Fraction(tenant.running(rule, now))) > rule.limit
            elif rule.period == "day":
                wrong = (there := tenant.promised(rule, now)) > rule.limit
            else:
                there = tenant.level(rule, now) + tenant.used(rule, attempt)
                wrong = attempt.via == "service" and there > rule.limit
            if wrong:
                self._note(OVERSHOOT, f"{name} {rule.quota_id} at {_at(now)}: {float(there)}, by {attempt}")

    def _check_refusal(self, arrival: Arrival, refused: Refused, tier: str, now: int) -> None:
        """Some quota has no room for the least of it, by what the service was told."""
        name = arrival.tenant
        tenant = self.tenants[name]
        self.counts["refused"] += 1
        self.counts[f"{name.partition('-')[0]} refused"] += 1
        least = min(16, arrival.max_tokens or 16) * arrival.copies
        for rule in self._in_force(name, now, tier, surely=False):
            if not rule.hard or not rule.covers(arrival.model, arrival.adapter):
                continue
            needed = tenant.most(rule, arrival.model, (1, arrival.input, least), now)
            if rule.metric == "gpu_seconds":
                fits = tenant.known(rule, now) < rule.limit
            elif rule.metric == "concurrency":
                fits = tenant.in_slots(rule, now) < rule.limit
            elif rule.period == "day":
                fits = tenant.held(rule, now) + needed <= rule.limit
            else:
                fits = tenant.level_as_told(rule, now) + needed + rule.limit * SLOT + 1 <= rule.limit
            if not fits:
                return
        walls = [(wall.quota.quota_id, wall.because, wall.needed, wall.room) for wall in refused.walls]
        self._note(WRONGLY_REFUSED, f"{name} at {_at(now)}: by {walls}, though all of {arrival} fits")

    def _check_soft(self, tenant: Tenant, entry: Reserved, now: int) -> None:
        """What has passed thresholds of a soft quota is put back by each of them."""
        start = now - now % (86_400 * SECOND)
        for rule in tenant.rules:
            if not rule.hard:
                confirmed = [a for a in tenant.attempts.values() if a.heard == "confirmed" and a.ends >= start]
                used = sum(tenant.used(rule, each) for each in confirmed)
                passed = sum(used * 100 >= each * rule.limit for each in THRESHOLDS)
                if entry.priority < policy_of("").priority + 10 * passed:
                    text = f"{entry.tenant_id} at {_at(now)}: priority {entry.priority} at {float(used)}"
                    self._note(WRONG_END, text)

    def _compare_with_a_restart(self, now: int) -> None:
        """A process that began now would know what this one does."""
        for _ in range(2):
            self.service.look(now)
        self._hear(now)
        self.service.write()
        again = self.service.rebuilt(now)
        self.counts["restarts compared"] += 1
        here, there = numbers(self.service.shard, now), numbers(again, now)
        for key, number in here.items():
            if key in there and number != there[key]:
                self._note(WRONG_RESTART, f"{key} at {_at(now)}: {number}, and after a restart {there[key]}")
        for name, held in self.service.shard.books.items():
            rates = {each.quota.quota_id: each.rate for each in again.books[name].book.meters.covering("", "").rates}
            for meter in held.book.meters.covering("", "").rates:
                quota, other = meter.quota, rates.get(meter.quota.quota_id)
                if other is not None:
                    rule = next(each for each in self.tenants[name].rules if each.quota_id == quota.quota_id)
                    room, restarted = (rate.room(now, quota.limit) for rate in (meter.rate, other))
                    slack = quota.limit * SLOT + 1
                    if not room - slack - self.tenants[name].unsettled(rule, now) <= restarted <= room + slack:
                        self._note(WRONG_RESTART, f"{name} {quota.quota_id} at {_at(now)}: {room}, then {restarted}")

    def check_the_end(self) -> None:
        """Everything has ended: what is used is what happened, and all thresholds were told."""
        for name, held in self.service.shard.books.items():
            held.book.roll(OVER)
            tenant = self.tenants[name]
            for meter in held.book.meters.all:
                if isinstance(meter, SlotMeter) and (meter.in_use, meter.leased) != (0, 0):
                    self._note_end(name, meter.quota.quota_id, (meter.in_use, meter.leased), 0)
                if not isinstance(meter, BudgetMeter) or not meter.loaded:
                    continue
                rule = next(each for each in tenant.rules if each.quota_id == meter.quota.quota_id)
                done = [each for each in tenant.covered(rule) if each.ends >= meter.start]
                used = sum((tenant.used(rule, each) for each in done), Fraction(0)) * UNITS.get(rule.metric, 1)
                standing = (meter.confirmed, meter.unconfirmed, meter.reserved, meter.leased)
                if standing != (used, 0, 0, 0):
                    self._note_end(name, meter.quota.quota_id, standing, used)
                nobody = [each for each in done if each.via == "nobody"]
                maybe = [each for each in done if each.via != "service" or each.forgotten]
                least, most = (
                    sum((tenant.used(rule, each) for each in some), Fraction(0)) * UNITS.get(rule.metric, 1)
                    for some in (nobody, maybe)
                )
                if name.partition("-")[0] not in ("changing", "tiers") and not least <= meter.unreserved <= most:
                    self._note_end(name, meter.quota.quota_id, meter.unreserved, (least, most))
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        told = {
            (alert.key, alert.subject["period"], alert.subject["percent"])
            for alert in self.service.alerts.values() if alert.kind == "quota_threshold"
        }  # fmt: skip
        reached = set()
        for name, tenant in self.tenants.items():
            for rule in tenant.rules:
                for start in (MIDNIGHT - 86_400 * SECOND, MIDNIGHT):
                    inside = [a for a in tenant.attempts.values() if start <= a.ends < start + 86_400 * SECOND]
                    used = sum(tenant.used(rule, each) for each in inside)
                    reached |= {
                        (name, moment(start).isoformat(), each)
                        for each in THRESHOLDS if not rule.hard and used * 100 >= each * rule.limit
                    }  # fmt: skip
        self.counts["thresholds"] = len(reached)
        for each in told ^ reached:
            self._note_end(each[0], "threshold", each in told, each)

    def _note_end(self, name: str, what: str, found: object, wanted: object) -> None:
        self._note(WRONG_END, f"{name} {what}: {found} in the end; {wanted} is right")

    def _note(self, kind: str, text: str) -> None:
        self.counts[kind] += 1
        self.wrong.append(f"{kind}: {text}")


def price_list(known_before: int = FOR_EVER) -> PriceList:
    """The product's price list, of prices that begin before a time."""
    return PriceList(
        DatedPrice(row.model, row.metric, Decimal(row.price.numerator) / Decimal(row.price.denominator), row.since)
        for row in PRICE_ROWS
        if row.since < known_before
    )


def _at(now: int) -> str:
    return f"{(now - MIDNIGHT) / SECOND:+.3f} s"


def simulate(seed: int, *, each: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Let it happen, with so many tenants of each kind; figures by their key."""
    world = World(seed, each)
    world.run()
    world.check_the_end()
    counts = world.counts
    say(f"  quotas of {len(KINDS)} kinds: {len(world.tenants):,} tenants over a midnight, {counts['crashes']} crashes")
    say(
        f"    admitted: {counts['by service']:,} by the service, {counts['by slice']:,} out of slices"
        f" ({counts['slices granted']:,} grants), {counts['by nobody']:,} unasked; {counts['refused']:,} refused;"
        f" {world.service.answered_at_once:,} answered before they were written, {counts['forgotten']:,} of them never;"
        f" {counts['thresholds']} thresholds, {counts['restarts compared']} restarts compared"
    )
    for text in world.wrong[:10]:
        say(f"    WRONG {text}")
    names = {
        "kinds_crashes": "crashes", "kinds_refused": "refused", "kinds_out_of_slices": "by slice",
        "kinds_by_service": "by service", "kinds_unasked": "by nobody", "kinds_thresholds": "thresholds",
        "kinds_forgotten": "forgotten",
    }  # fmt: skip
    refusals = {f"kinds_refused_{kind}": counts[f"{kind} refused"] for kind in KINDS}
    return {key: counts[name] for key, name in (names | {key: key for key in ZERO}).items()} | refusals
