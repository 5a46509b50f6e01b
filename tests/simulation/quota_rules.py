"""What quotas mean, said a second time: by sums over requests, in fractions, without anything of what decides.

The oracle of `quota_kinds.py`. A `Rule` is one quota of one tenant for a time; an `Attempt` what really happened to one
attempt of a request, and what the service was told of it so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final, Literal

SECOND: Final = 1_000_000
DAY: Final = 86_400 * SECOND
WINDOW_US: Final = {"second": SECOND, "minute": 60 * SECOND, "hour": 3600 * SECOND}
SKEW_US: Final = 2 * SECOND
"""What was settled so shortly before midnight may have completed after it."""
SLOT: Final = Fraction(1, 32)
"""Of a window: corrections of a rate may lie so much too late."""
FOR_EVER: Final = 2**62

Via = Literal["service", "slice", "nobody"]
"""Who reserved it."""
Heard = Literal["", "settled", "confirmed"]
LOST: Final = "~lost."
"""Slices that stand for answers of a process that is gone."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A quota that holds in [begins, ends). Limits in requests, tokens, seconds, units of money."""

    period: str
    metric: str
    limit: Fraction
    begins: int = 0
    ends: int = FOR_EVER
    model: str = ""
    adapter: str = ""
    told_tier: str = ""
    """Only while callers tell this tier."""
    hard: bool = True

    @property
    def quota_id(self) -> str:
        """As the product calls it."""
        scope = "".join(f":{key}={value}" for key, value in (("model", self.model), ("adapter", self.adapter)) if value)
        return f"{self.period}-{self.metric}{scope}"

    def covers(self, model: str, adapter: str) -> bool:
        """Whether such a request counts."""
        return self.model in ("", model) and self.adapter in ("", adapter)


@dataclass(frozen=True, slots=True)
class PriceRow:
    """A price of a token class from a time on; model '' for any."""

    model: str
    metric: str
    price: Fraction
    since: int


@dataclass(slots=True)
class Attempt:
    """One attempt of a request."""

    request_id: str
    no: int
    at: int
    model: str
    adapter: str
    input: int
    cap: int
    """Output tokens at most, all answers together."""
    via: Via
    tier: str
    ends: int
    output: int
    cached: int = 0
    gpu_us: int = 0
    bills: bool = True
    heard: Heard = ""
    heard_at: int = 0
    """When the service knew first what it has used."""
    settled_at: int = 0
    told_at: int = 0
    """When it was settled first, also where its event had been counted before."""
    told_last_at: int = -SECOND
    """When it was settled last: until the next look a service that does not know it counts it twice."""
    deadline: int = FOR_EVER
    held_until: int = FOR_EVER
    """The latest deadline of its request's attempts."""
    let_go_at: int = FOR_EVER
    """When its request was told to be over, by another attempt."""
    forgotten: bool = False
    """The service answered, and was killed before that was written: something is held in its place."""
    sums: dict[tuple[str, bool], Fraction] = field(default_factory=dict)
    """What it has used, and what it might have, by metric."""

    def is_held(self, now: int) -> bool:
        """Whether a reservation may stand for it, as nothing has been heard."""
        reserved = self.via == "service" and not self.forgotten
        return reserved and not self.heard and now < min(self.held_until, self.let_go_at)

    def is_accounted_for(self, now: int) -> bool:
        """Whether the service has to count on it: it has heard what was used, or still expects to."""
        return bool(self.heard) or (self.via != "nobody" and now < min(self.deadline, self.let_go_at))


@dataclass(slots=True)
class Leasing:
    """What a slice may hold at most by what was granted and told."""

    model: str
    at: int
    held_until: int
    counts: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Requests, input, output, slots."""
    drawn: set[tuple[str, int]] = field(default_factory=set)
    """The attempts that were told to be out of it."""


class Prices:
    """A price list, dated."""

    def __init__(self, rows: Iterable[PriceRow] = ()) -> None:
        self._rows = sorted(rows, key=lambda row: (row.since, row.model))

    def at(self, model: str, metric: str, at: int) -> Fraction:
        """The price in force: the newest, of two from the same time the model's own."""
        found = [
            row.price for row in self._rows if row.metric == metric and row.model in ("", model) and row.since <= at
        ]
        return found[-1] if found else Fraction(0)

    def highest(self, model: str, metric: str, since: int, until: int) -> Fraction:
        """The highest in a time; of model '' any model's."""
        times = [since, *(row.since for row in self._rows if since < row.since <= until)]
        models = [model] if model else ["", *{row.model for row in self._rows}]
        return max(self.at(each, metric, at) for each in models for at in times)


class Tenant:
    """One tenant's requests, and what its quotas come to."""

    def __init__(self, rules: Sequence[Rule], prices: Prices, held_us: int) -> None:
        self.rules = rules
        self.prices = prices
        self.held_us = held_us
        self.attempts: dict[tuple[str, int], Attempt] = {}
        self.leases: dict[str, Leasing] = {}
        self.restarted_at = 0
        """When the service was, last."""

    def used(self, rule: Rule, attempt: Attempt) -> Fraction:
        """What an attempt has used."""
        key = (rule.metric, False)
        if key not in attempt.sums:
            is_counted = rule.metric != "spend" or attempt.bills
            attempt.sums[key] = self.used_at(rule, attempt, attempt.ends) * is_counted
        return attempt.sums[key]

    def used_at(self, rule: Rule, attempt: Attempt, at: int) -> Fraction:
        """The same at the prices of another time, whether it bills or not."""
        a = attempt
        if rule.metric == "spend":
            classes = (("request", 1), ("input", a.input - a.cached), ("cached_input", a.cached), ("output", a.output))
            return sum((self.prices.at(a.model, name, at) * units for name, units in classes), Fraction(0))
        return Fraction({
            "requests": 1, "input_tokens": a.input, "cached_input_tokens": a.cached, "output_tokens": a.output,
            "total_tokens": a.input + a.output, "gpu_seconds": Fraction(a.gpu_us, SECOND), "concurrency": 1,
        }[rule.metric])  # fmt: skip

    def most(self, rule: Rule, model: str, counts: Sequence[int], since: int, times: int = 1) -> Fraction:
        """What requests that begin at a time may come to: how many, with so much input and output in all. `times`: they
        may begin so many times as late as one may run."""
        requests, input_tokens, output = counts
        if rule.metric == "spend":
            until = since + times * self.held_us
            request, uncached, cached, each = (
                self.prices.highest(model, name, since, until)
                for name in ("request", "input", "cached_input", "output")
            )
            return request * requests + max(uncached, cached) * input_tokens + each * output
        return Fraction({
            "requests": requests, "input_tokens": input_tokens, "cached_input_tokens": input_tokens,
            "output_tokens": output, "total_tokens": input_tokens + output, "gpu_seconds": 0, "concurrency": requests,
        }[rule.metric])  # fmt: skip

    def most_of(self, rule: Rule, attempt: Attempt) -> Fraction:
        """What an attempt might have come to."""
        key = (rule.metric, True)
        if key not in attempt.sums:
            attempt.sums[key] = self.most(rule, attempt.model, (1, attempt.input, attempt.cap), attempt.at)
        return attempt.sums[key]

    def covered(self, rule: Rule) -> list[Attempt]:
        """The attempts that count."""
        return [each for each in self.attempts.values() if rule.covers(each.model, each.adapter)]

    def promised(self, rule: Rule, now: int) -> Fraction:
        """Of a budget: what was used in its period and what reserved requests that run may still use, as far as the
        service has to count on it."""
        start = now - now % DAY
        total = Fraction(0)
        for each in self.covered(rule):
            if not each.is_accounted_for(now):
                continue
            if each.ends > now:
                total += self.most_of(rule, each)
            elif each.ends >= start:
                total += self.used(rule, each)
        return total

    def known(self, rule: Rule, now: int) -> Fraction:
        """Of a budget: what the service has heard to be used in its period."""
        start = now - now % DAY
        heard = [each for each in self.covered(rule) if each.heard and start <= each.ends <= now]
        return sum((self.used(rule, each) for each in heard), Fraction(0))

    def held(self, rule: Rule, now: int) -> Fraction:
        """Of a budget: the most that the service may hold, by what it was told."""
        start = now - now % DAY
        total = Fraction(0)
        for each in self.covered(rule):
            if each.heard == "confirmed":
                unknown = each.via == "nobody" or each.forgotten or each.heard_at <= self.restarted_at
                twice = unknown and now < each.told_last_at + SECOND
                total += self.used(rule, each) * ((each.ends >= start) + twice)
            elif each.heard == "settled":
                is_known = each.via == "service" and not each.forgotten
                since = each.at if is_known else each.settled_at - self.held_us
                dearest = max(self.used_at(rule, each, at) for at in (since, each.ends, each.settled_at))
                total += dearest * (each.settled_at >= start - SKEW_US)
            elif each.is_held(now - SECOND):
                total += self.most_of(rule, each)
        for lease in self._open(rule, now):
            total += self.most(rule, lease.model, lease.counts[:3], lease.at - self.held_us, times=3)
        return total

    def running(self, rule: Rule, now: int) -> int:
        """Reserved requests that are at work."""
        reserved = (each for each in self.covered(rule) if each.via != "nobody")
        return len({each.request_id for each in reserved if each.at <= now < min(each.ends, each.deadline)})

    def in_slots(self, rule: Rule, now: int) -> int:
        """The most that the service may take for running, slices among them."""
        requests = {each.request_id for each in self.covered(rule) if each.is_held(now - SECOND)}
        return len(requests) + sum(lease.counts[3] for lease in self._open(rule, now))

    def _open(self, rule: Rule, now: int) -> list[Leasing]:
        """Slices that may hold something of a quota."""
        return [
            lease for lease in self.leases.values()
            if now < lease.held_until + SECOND and (not lease.model or rule.covers(lease.model, ""))
        ]  # fmt: skip

    def level(self, rule: Rule, now: int) -> Fraction:
        """Of a rate: GCRA's bucket before `now`, of what admitted requests have really used."""
        mine = (each for each in self.covered(rule) if each.via == "service" and each.tier == rule.told_tier)
        charges = [(each.at, self.used(rule, each), True) for each in mine if each.is_accounted_for(now)]
        return self._bucket(rule, charges, now)

    def level_as_told(self, rule: Rule, now: int) -> Fraction:
        """The same with the bounds of those of which nothing was heard within two windows, and what requests used that
        never asked and were settled, as far as there was room; of those that nobody settled, a restart does not know
        how much they used. Of tiers: with all bounds, whichever tier was told."""
        window = WINDOW_US[rule.period]
        lost = [lease for name, lease in self.leases.items() if name.startswith(LOST)]
        charges = [(lease.at, self.most(rule, "", lease.counts[:3], lease.at), True) for lease in lost]
        for each in self.covered(rule):
            if each.via == "service" and not each.forgotten:
                late = not each.heard or each.heard_at > each.at + 2 * window
                late |= not each.settled_at and each.heard_at <= self.restarted_at
                units = self.most_of(rule, each) if late or rule.told_tier else self.used(rule, each)
                charges.append((each.at, units, True))
            elif each.told_at:
                charges.append((each.told_at, self.used(rule, each), False))
        return self._bucket(rule, charges, now)

    def unsettled(self, rule: Rule, now: int) -> Fraction:
        """By how much a process that begins now takes a rate for fuller, as it knows of requests that nobody settled
        only that they were counted."""
        lately = now - 3 * WINDOW_US[rule.period]
        unsure = (each for each in self.covered(rule) if each.via == "service" and not each.settled_at)
        return sum(
            (self.most_of(rule, each) - self.used(rule, each) for each in unsure if each.at > lately), Fraction(0)
        )

    @staticmethod
    def _bucket(rule: Rule, charges: Iterable[tuple[int, Fraction, bool]], now: int) -> Fraction:
        """Of charges at a time; of those that nobody admitted (False) what there was room for."""
        level, last, window = Fraction(0), 0, WINDOW_US[rule.period]
        for at, units, is_admitted in sorted(charges):
            if rule.begins <= at < now:
                level = max(Fraction(0), level - rule.limit * (at - last) / window)
                level += units if is_admitted else min(units, max(rule.limit - level, Fraction(0)))
                last = at
        return max(Fraction(0), level - rule.limit * (now - last) / window)
