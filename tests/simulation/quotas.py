"""Random traffic against quotas, in virtual time: the product's shard beside two naive limiters, from one seed.

Requests of thousands of tenants overlap; streams are cut short, settles get lost or come twice, events come late or in
a rush after the workers stood still, some usage was never asked for, and the service crashes and is rebuilt from its
journal. A third of the tenants is admitted out of slices, whose holders go on while the service is away, renew and give
back, and crash too. All of it happens over a midnight. What really happened is known to the simulation alone; every
limiter sees only what it would be told.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Final, Protocol

from streams.quotas.amounts import Counts
from streams.quotas.calendar import bounds, microseconds, moment
from streams.quotas.decisions import Ask, Limits, Refused, Row
from streams.quotas.definition_store import NOTHING, Definitions, Tier
from streams.quotas.definitions import quota_from
from streams.quotas.entries import Settled
from streams.quotas.granting import Slice
from tests.simulation.played_holders import Holders, Key
from tests.simulation.played_service import PlayedService

SECOND: Final = 1_000_000
MIDNIGHT: Final = microseconds(datetime(2026, 11, 22, tzinfo=UTC))
BEFORE_S: Final = 150
"""The run begins so long before midnight, so that requests span the periods' end."""
LIMIT: Final = 8_000
LIMITS: Final = Limits(longest_request_us=60 * SECOND, lag_us=70 * SECOND)
LATEST_US: Final = 60 * SECOND
LOOK_US: Final = 200_000
SLICE: Final = Slice(5, 2000, 2000, 5)
ASSUMED_OUTPUT: Final = 4096
"""What the second naive limiter reserves where a request does not say."""

ZERO: Final = ("overshoot_beyond_bound", "refused_below_bound", "quota_wrong_in_the_end")
"""Figures that must be 0."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request, and what would become of it."""

    at: int
    tenant: str
    name: str
    input_tokens: int
    max_tokens: int | None
    wants: int
    """How long its answer would be if nobody cut it."""
    runs_us: int
    settle_after: int | None
    settled_twice: bool
    event_after: int
    asked: bool
    """False: usage of somebody who does not ask."""


class Limiter(Protocol):
    """What is compared."""

    def admit(self, arrival: Arrival, now: int) -> int | None:
        """Granted output tokens, or None."""

    def settle(self, arrival: Arrival, output: int, now: int) -> None:
        """A request's end is told."""

    def ingest(self, events: list[Row], now: int) -> None:
        """Usage events were counted."""

    def tick(self, now: int) -> None:
        """Time passes."""

    def is_down(self, now: int) -> bool:
        """Whether it does not answer: callers go by their fail mode."""


@dataclass(slots=True)
class Outcome:
    """What a limiter came to."""

    admitted: int = 0
    refused: int = 0
    denied_without_service: int = 0
    wrongly_refused: int = 0
    """Although it would have fitted, with all that was in flight."""
    used: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    """Output tokens by tenant and period, of everything that happened."""
    unasked: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))
    """Of these, what no reservation stood behind."""
    demanded: dict[tuple[str, int], int] = field(default_factory=lambda: defaultdict(int))

    @property
    def beyond_bound(self) -> int:
        """Tokens beyond limit and unreserved use."""
        return sum(max(used - LIMIT - self.unasked[key], 0) for key, used in self.used.items())

    @property
    def utilisation(self) -> float:
        """Of the limits of those who wanted more than theirs the share that was used."""
        wanting = [key for key, wanted in self.demanded.items() if wanted > 1.5 * LIMIT]
        return sum(min(self.used[key], LIMIT) for key in wanting) / max(len(wanting) * LIMIT, 1)


def arrivals(seed: int, tenants: int, requests: int) -> list[Arrival]:
    """The traffic, the same for every limiter."""
    rng = Random(seed)
    start, seconds = MIDNIGHT - BEFORE_S * SECOND, 2 * BEFORE_S
    found = []
    for number in range(requests):
        hot = rng.random() < 0.6
        tenant = f"t{rng.randrange(tenants // 20) if hot else rng.randrange(tenants)}"
        runs = min(rng.expovariate(1 / 8), 58)
        lost, late = rng.random() < 0.05, rng.random() < 0.02
        found.append(
            Arrival(
                at=start + int(rng.random() * seconds * SECOND),
                tenant=tenant,
                name=f"r{number}",
                input_tokens=rng.randrange(1, 500),
                max_tokens=None if rng.random() < 0.2 else rng.randrange(16, 2000),
                wants=int(rng.expovariate(1 / 300)) + 1,
                runs_us=int(runs * SECOND),
                settle_after=None if lost else int(rng.random() * 0.2 * SECOND),
                settled_twice=rng.random() < 0.05,
                event_after=int(rng.random() * (LATEST_US if late else 2 * SECOND)),
                asked=rng.random() > 0.005,
            )
        )
    return sorted(found, key=lambda each: each.at)


def run(limiter: Limiter, traffic: list[Arrival], seed: int) -> Outcome:
    """Let the traffic happen to a limiter."""
    rng = Random(seed + 1)
    outcome = Outcome()
    future: list[tuple[int, int, Callable[[int], None]]] = []
    count = 0
    waiting: list[Row] = []
    stands_still_until = 0
    in_flight: dict[tuple[str, int], int] = defaultdict(int)
    """What the requests in flight and those that completed will have used, by tenant and period of admission."""

    def later(at: int, what: Callable[[int], None]) -> None:
        nonlocal count
        count += 1
        heapq.heappush(future, (at, count, what))

    def ingest(now: int) -> None:
        nonlocal stands_still_until, waiting
        if now >= stands_still_until:
            due, waiting = waiting, []
            limiter.ingest(due, now)
            if rng.random() < 0.002:
                stands_still_until = now + rng.randrange(5, 40) * SECOND  # the workers crash
        limiter.tick(now)
        if now < MIDNIGHT + (BEFORE_S + 300) * SECOND:
            later(now + LOOK_US, ingest)

    def ends(arrival: Arrival, output: int, *, reserved: bool) -> Callable[[int], None]:
        def happens(now: int) -> None:
            key = (arrival.tenant, bounds("day", now)[0])
            outcome.used[key] += output
            if not reserved:
                outcome.unasked[key] += output
            if arrival.settle_after is not None and arrival.asked:
                for extra in range(1 + arrival.settled_twice):
                    later(
                        now + arrival.settle_after + extra * 5 * SECOND, lambda at: limiter.settle(arrival, output, at)
                    )
            row = Row(
                arrival.tenant, arrival.name, 1, now, "m", "", True, True, Counts(1, arrival.input_tokens, 0, output, 0)
            )
            later(now + arrival.event_after, lambda at: waiting.append(row))

        return happens

    def arrives(arrival: Arrival) -> Callable[[int], None]:
        def happens(now: int) -> None:
            key = (arrival.tenant, bounds("day", now)[0])
            outcome.demanded[key] += arrival.wants
            granted = limiter.admit(arrival, now) if arrival.asked else -1
            if granted is None and limiter.is_down(now):
                outcome.denied_without_service += 1
                return
            if granted is None:
                outcome.refused += 1
                likely = min(arrival.wants, arrival.max_tokens or LIMITS.default_max_tokens)
                outcome.wrongly_refused += in_flight[key] + likely <= LIMIT
                return
            outcome.admitted += 1
            output = arrival.wants if granted < 0 else min(arrival.wants, granted)
            in_flight[key] += output
            later(now + arrival.runs_us, ends(arrival, output, reserved=granted >= 0))

        return happens

    for arrival in traffic:
        later(arrival.at, arrives(arrival))
    later(traffic[0].at, ingest)
    while future:
        now, _, what = heapq.heappop(future)
        what(now)
    return outcome


class CheckThenCharge:
    """Admits while what is counted is below the limit."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, int], int] = defaultdict(int)

    def admit(self, arrival: Arrival, now: int) -> int | None:
        """Knows nothing of what is in flight."""
        asked = arrival.max_tokens if arrival.max_tokens is not None else ASSUMED_OUTPUT
        return asked if self._counted[arrival.tenant, bounds("day", now)[0]] < LIMIT else None

    def settle(self, arrival: Arrival, output: int, now: int) -> None:
        """Is not listened to."""

    def ingest(self, events: list[Row], now: int) -> None:
        """Charges."""
        for row in events:
            self._counted[row.tenant_id, bounds("day", row.completed_at)[0]] += row.counts.output_tokens

    def tick(self, now: int) -> None:
        """Nothing ends by itself."""

    def is_down(self, now: int) -> bool:
        """Never: it is part of the gateway."""
        return False


class ReserveAll(CheckThenCharge):
    """Reserves `max_tokens`, the model's where there is none, until the event comes or the deadline passes."""

    def __init__(self) -> None:
        super().__init__()
        self._reserved: dict[str, int] = defaultdict(int)
        self._held: dict[str, tuple[str, int, int]] = {}

    def admit(self, arrival: Arrival, now: int) -> int | None:
        """All or nothing."""
        asked = arrival.max_tokens if arrival.max_tokens is not None else ASSUMED_OUTPUT
        key = (arrival.tenant, bounds("day", now)[0])
        if self._counted[key] + self._reserved[arrival.tenant] + asked > LIMIT:
            return None
        self._reserved[arrival.tenant] += asked
        self._held[arrival.name] = (arrival.tenant, asked, now + LIMITS.held_us)
        return asked

    def ingest(self, events: list[Row], now: int) -> None:
        """Charges, and ends what was reserved."""
        super().ingest(events, now)
        for row in events:
            self._release(row.request_id)

    def tick(self, now: int) -> None:
        """Reservations end at their deadline."""
        while self._held and (first := next(iter(self._held.items())))[1][2] <= now:
            self._release(first[0])

    def _release(self, name: str) -> None:
        tenant, asked, _ = self._held.pop(name, ("", 0, 0))
        self._reserved[tenant] -= asked


class Product:
    """The product's shard, and holders of slices in processes of their own."""

    def __init__(self, seed: int, tenants: int, crash_every_s: float) -> None:
        self._rng = Random(seed + 2)
        self._crash_every_s = crash_every_s
        begin = MIDNIGHT - BEFORE_S * SECOND
        start = moment(MIDNIGHT - 3600 * SECOND)
        quotas = [
            quota_from({"tier": "sim", "period": "day", "metric": "output_tokens", "limit": LIMIT}, now=start),
            quota_from({"tier": "sim", "period": "none", "metric": "concurrency", "limit": 200}, now=start),
        ]
        names = [f"t{number}" for number in range(tenants)]
        definitions = Definitions(NOTHING, {}, {"sim": quotas}, {name: [Tier("sim", start)] for name in names}, {})
        self._service = PlayedService(LIMITS, definitions, names, begin)
        self._holders = Holders(self._service, self._rng, SLICE)
        self._new: list[Row] = []
        """In the feed, and not read yet."""
        self._down_until = 0
        self.crashes = 0
        self.refused_below_bound = 0
        """Refusals though what is known to be used, the bounds of what is in flight and this request's least fit."""
        self._bounds: dict[str, dict[str, int]] = defaultdict(dict)
        self._told: dict[str, dict[str, int]] = defaultdict(dict)
        self._seen: dict[tuple[str, int], int] = defaultdict(int)
        self._counted: set[tuple[str, str]] = set()
        self._to_settle: list[tuple[Arrival, int]] = []
        """Requests of slices that ended while the service was away: their holders tell it later."""
        self._never_told: Counter[str] = Counter()
        """Tokens at most of requests that the service never heard of, by its holders or from its journal: they look
        unreserved."""
        self.out_of_slices = self.forgotten = 0
        self._sliced: set[str] = set()
        self._crash_at = begin + int(self._rng.expovariate(1 / crash_every_s) * SECOND)

    def admit(self, arrival: Arrival, now: int) -> int | None:
        """Out of a slice, or ask; without the service half of the callers allow, half deny."""
        tenant, asked = arrival.tenant, arrival.max_tokens
        may_lease = asked is not None and ord(tenant[-1]) % 3 == 0
        if may_lease and self._holders.admit(Key(tenant, "m"), arrival.name, 1, arrival.input_tokens, asked or 0, now):
            self._sliced.add(arrival.name)
            self.out_of_slices += 1
            self._never_told[tenant] += (asked or 0) if arrival.settle_after is None else 0
            return asked
        if self.is_down(now):
            return -1 if ord(tenant[-1]) % 2 else None
        ask = Ask(tenant, arrival.name, "m", arrival.input_tokens, max_tokens=asked)
        answer = self._service.ask(ask, now)
        if isinstance(answer, Refused):
            least = min(16, asked or 16)
            apart = abs(now - MIDNIGHT - LATEST_US) > LATEST_US + 10 * SECOND  # which period a settle was of is sure
            self.refused_below_bound += apart and self._taken(tenant, now) + least <= LIMIT
            return None
        self._bounds[tenant][arrival.name] = answer.output_cap
        return answer.max_tokens

    def settle(self, arrival: Arrival, output: int, now: int) -> None:
        """Tell it; while it is down nobody listens, but holders of slices tell it later."""
        tenant = arrival.tenant
        if self.is_down(now):
            if arrival.name in self._sliced:
                self._to_settle.append((arrival, output))
            return
        lease_id, lease_no = self._holders.settle(arrival.name, 1, arrival.input_tokens, output)
        entry = Settled(
            tenant, arrival.name, 1, now, True, True, "m", "", arrival.input_tokens, 0, output, 0, lease_id, lease_no
        )  # fmt: skip
        self._service.settle(entry)
        self._bounds[tenant].pop(arrival.name, None)
        if (tenant, arrival.name) not in self._counted:
            self._told[tenant][arrival.name] = output

    def ingest(self, events: list[Row], now: int) -> None:
        """The windows have them at once; the shard hears of them with the next look."""
        self._service.ingest(events)
        self._counted.update((row.tenant_id, row.request_id) for row in events)
        self._new += events

    def tick(self, now: int) -> None:
        """Looks, deadlines, crashes."""
        if now >= self._crash_at:
            self._crash_at = now + int(self._rng.expovariate(1 / self._crash_every_s) * SECOND) + 5 * SECOND
            self._down_until = now + self._rng.randrange(1, 4) * SECOND
            self.crashes += 1
            for entry in self._service.crash():  # answered, and never written: they look unreserved
                self._never_told[entry.tenant_id] += entry.output_cap
                self.forgotten += 1
        elif now >= self._down_until:
            if not self._service.is_up:
                self._service.restart(now)
            self._service.tick(now)
            self._note_read()
            waiting, self._to_settle = self._to_settle, []
            for arrival, output in waiting:
                self.settle(arrival, output, now)
            self._holders.turn(now)

    def is_down(self, now: int) -> bool:
        """Between a crash and the restart."""
        return now < self._down_until

    def in_the_end(self, outcome: Outcome) -> list[str]:
        """What does not hold when everything is over."""
        wrong = []
        for name, held in self._service.shard.books.items():
            for meter in held.book.meters.budgets:
                true, unasked = outcome.used[name, meter.start], outcome.unasked[name, meter.start]
                is_now = (meter.confirmed, meter.unconfirmed, meter.reserved, meter.leased, meter.unreserved)
                told = unasked <= meter.unreserved <= unasked + self._never_told[name]
                if meter.loaded and (is_now[:4] != (true, 0, 0, 0) or not told):
                    wrong.append(f"{name}: {is_now}; used {true}, of it {unasked} without asking")
        return wrong

    def _note_read(self) -> None:
        for row in self._new:
            self._seen[row.tenant_id, bounds("day", row.completed_at)[0]] += row.counts.output_tokens
            self._bounds[row.tenant_id].pop(row.request_id, None)
            self._told[row.tenant_id].pop(row.request_id, None)
        self._new.clear()

    def _taken(self, tenant: str, now: int) -> int:
        """The same as the book has it, added up from what the shard was told."""
        known = self._seen[tenant, bounds("day", now)[0]] + sum(self._told[tenant].values())
        leased = sum(meter.leased for meter in self._service.shard.books[tenant].book.meters.budgets)
        return known + sum(self._bounds[tenant].values()) + leased


def simulate(seed: int, *, tenants: int, requests: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all three; figures by their key."""
    traffic = arrivals(seed, tenants, requests)
    product = Product(seed, tenants, crash_every_s=30)
    limiters: dict[str, Limiter] = {
        "product": product,
        "check then charge": CheckThenCharge(),
        "reserve all": ReserveAll(),
    }
    figures: dict[str, Any] = {}
    say(f"  quotas: {requests:,} requests of {tenants:,} tenants, {LIMIT:,} output tokens a day, over a midnight")
    for name, limiter in limiters.items():
        outcome = run(limiter, traffic, seed)
        wrong = outcome.wrongly_refused / max(outcome.admitted + outcome.refused, 1)
        say(
            f"    {name:<18} admitted {outcome.admitted:>7,}, refused {outcome.refused:>7,}, wrongly {wrong:7.2%},"
            f" beyond the limit {outcome.beyond_bound:>9,} tokens, used at the limit {outcome.utilisation:6.1%}"
        )
        if limiter is product:
            left = product.in_the_end(outcome)
            figures = {
                "overshoot_beyond_bound": outcome.beyond_bound, "wrongly_refused_share": wrong,
                "quota_crashes": product.crashes, "refused_below_bound": product.refused_below_bound,
                "quota_unreserved": sum(outcome.unasked.values()), "quota_utilisation": outcome.utilisation,
                "quota_wrong_in_the_end": len(left), "quota_out_of_slices": product.out_of_slices,
                "quota_forgotten": product.forgotten,
            }  # fmt: skip
            for line in left[:5]:
                say(f"    WRONG {line}")
        else:
            short = name.replace(" ", "_")
            figures |= {f"{short}_overshoot": outcome.beyond_bound, f"{short}_wrongly_refused_share": wrong,
                        f"{short}_utilisation": outcome.utilisation}  # fmt: skip
    return figures
