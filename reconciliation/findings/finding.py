"""What a finding is: a kind, what it is about, its size and likely cause (docs/spec/metering.md 6). Values only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

import msgspec

NAMESPACE: Final = UUID("3a5d2c1e-8c1b-5f0e-9d52-6a0f4b1e7c90")


class Kind(StrEnum):
    """What is wrong."""

    LOST_EVENTS = "lost_events"
    """A replica made events that never came."""
    DUPLICATE_EMITTER = "duplicate_emitter"
    """The same usage came again under other ids."""
    CLOCK_SKEW = "clock_skew"
    """A replica's events carry times that are off."""
    UNMETERED_REQUESTS = "unmetered_requests"
    """An engine or a gateway knows of requests that no event was made for."""
    WRONG_TENANT = "wrong_tenant"
    """Usage is counted under another tenant's name."""
    DOUBLE_ATTEMPT = "double_attempt"
    """One attempt number was given to two dispatches of a request."""
    GAP_IN_NUMBERING = "gap_in_numbering"
    """Numbers were left out, and no event was."""
    OVERCOUNTED = "overcounted"
    """More is counted of a boot than it, or its engine, made."""
    UNREGISTERED_REPLICA = "unregistered_replica"
    """A replica serves that never reported itself."""


class Interval(NamedTuple):
    """From least to most; both are the same where it is known and not estimated."""

    low: int
    high: int

    @staticmethod
    def exactly(value: int) -> Interval:
        """A size that is known."""
        return Interval(value, value)

    def plus(self, other: Interval) -> Interval:
        """Both together."""
        return Interval(self.low + other.low, self.high + other.high)


NOTHING: Final = Interval(0, 0)
HOURS_KEPT: Final = 500
"""Of a finding, by tenant and model: some 60 kB."""


@dataclass(frozen=True, slots=True)
class Share:
    """A tenant's and model's part of a finding. Tokens in tokens, `input_tokens` with the cached ones."""

    tenant_id: str
    model: str
    events: Interval = NOTHING
    input_tokens: Interval = NOTHING
    output_tokens: Interval = NOTHING
    cache_hit_tokens: Interval = NOTHING

    @property
    def sizes(self) -> tuple[Interval, Interval, Interval, Interval]:
        """Events, input, output and cached tokens."""
        return self.events, self.input_tokens, self.output_tokens, self.cache_hit_tokens

    @property
    def tokens(self) -> Interval:
        """Input and output."""
        return self.input_tokens.plus(self.output_tokens)


class HourShare(NamedTuple):
    """A tenant's and model's part of a finding in one hour, where requests are known one by one."""

    tenant_id: str
    model: str
    hour: datetime
    events: int
    tokens: int


class Money(NamedTuple):
    """What it may come to at the highest price that may apply, in major units."""

    currency: str
    low: Decimal
    high: Decimal


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that does not agree. `subject` makes it this finding and no other: found again, it is the same one."""

    kind: Kind
    subject: Mapping[str, str]
    cause: str
    shares: tuple[Share, ...] = ()
    begins: datetime | None = None
    ends: datetime | None = None
    estimated_from: str = ""
    """What the size was estimated from; '' where it is exact."""
    money: tuple[Money, ...] = ()
    hours: tuple[HourShare, ...] = ()
    """What it is of, hour by hour, where that is known."""

    @property
    def key(self) -> str:
        """Kind and subject as text."""
        return msgspec.json.encode([self.kind, dict(self.subject)], order="sorted").decode()

    def finding_id(self, occurrence: int) -> UUID:
        """UUIDv5 of kind, subject and occurrence."""
        about = msgspec.json.encode([self.kind, dict(self.subject), occurrence], order="sorted")
        return uuid5(NAMESPACE, about.decode())

    @property
    def events(self) -> Interval:
        """Of all shares."""
        return _sum(share.events for share in self.shares)

    @property
    def tokens(self) -> Interval:
        """Of all shares."""
        return _sum(share.tokens for share in self.shares)

    @property
    def tenants(self) -> list[str]:
        """Whose it is."""
        return sorted({share.tenant_id for share in self.shares})

    def size(self) -> dict[str, Any]:
        """The size as it is stored and shown; intervals as `[least, most]`."""
        return {
            "events": list(self.events),
            "tokens": list(self.tokens),
            "money": [{"currency": m.currency, "low": format(m.low, "f"), "high": format(m.high, "f")}
                      for m in self.money],
            "estimated_from": self.estimated_from,
            "shares": [
                {"tenant_id": s.tenant_id, "model": s.model, "events": list(s.events),
                 "input_tokens": list(s.input_tokens), "output_tokens": list(s.output_tokens),
                 "cache_hit_tokens": list(s.cache_hit_tokens)}
                for s in sorted(self.shares, key=lambda share: (share.tenant_id, share.model))
            ],
        } | self._hours()  # fmt: skip

    def _hours(self) -> dict[str, Any]:
        """The first of them: `reconcile run` shows all that differ."""
        if not self.hours:
            return {}
        kept = [each._asdict() | {"hour": each.hour.isoformat()} for each in self.hours[:HOURS_KEPT]]
        return {"hours": kept, "more_hours": len(self.hours) - len(kept)}

    def told(self) -> str:
        """In a line, for an alert."""
        about = ", ".join(f"{name} {value}" for name, value in self.subject.items())
        size = f"{_between(self.events)} events, {_between(self.tokens)} tokens"
        worth = "".join(f", {_money(m)}" for m in self.money)
        whose = f" of {_few(self.tenants)}" if self.shares else ""
        return f"{self.kind.replace('_', ' ')} ({about}): {size}{whose}{worth}; {self.cause}"


def is_news(known: Mapping[str, Any], now: Mapping[str, Any], *, settled: bool = False) -> bool:
    """Whether a size (as `Finding.size` says it) tells anything that the one that is known does not.

    Sizes of a boot that works are taken while events are under way, and are intervals then. One that may be of what is
    known is no news; what is known at last is, but of what a person has settled.
    """
    if all(known[name] == now[name] for name in ("events", "tokens", "money", "estimated_from", "shares")):
        return False
    if _is_exact(known) and _is_exact(now):
        return True
    return not _may_be_one(known, now) or (_is_exact(now) and not settled)


_TOKENS: Final = ("input_tokens", "output_tokens", "cache_hit_tokens")


def _is_exact(size: Mapping[str, Any]) -> bool:
    events = (share["events"] for share in size["shares"])
    return not size["estimated_from"] and all(low == high for low, high in events) and _tokens_known(size)


def _tokens_known(size: Mapping[str, Any]) -> bool:
    return all(share[name][0] == share[name][1] for share in size["shares"] for name in _TOKENS)


def _may_be_one(known: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether as many events may be meant of each tenant and model (in sum, where one does not say whose they are).

    And as many tokens, where both know them: an interval of tokens is a guess, what is under way may be of any length.
    """
    events, tokens = ([{(s["tenant_id"], s["model"]): of(s) for s in size["shares"]} for size in (known, now)]
                      for of in (lambda s: s["events"], lambda s: [s[name] for name in _TOKENS]))  # fmt: skip
    if _tokens_known(known) and _tokens_known(now) and tokens[0] != tokens[1]:
        return False
    if any(not tenant_id for listed in events for tenant_id, _ in listed):
        return _meet(known["events"], now["events"])
    keys = events[0].keys() | events[1].keys()
    return all(_meet(events[0].get(key, NOTHING), events[1].get(key, NOTHING)) for key in keys)


def _meet(one: Sequence[int], other: Sequence[int]) -> bool:
    return one[0] <= other[1] and other[0] <= one[1]


def _sum(intervals: Iterable[Interval]) -> Interval:
    total = NOTHING
    for each in intervals:
        total = total.plus(each)
    return total


def _between(interval: Interval) -> str:
    return f"{interval.low:,}" if interval.low == interval.high else f"{interval.low:,} to {interval.high:,}"


def _money(money: Money) -> str:
    least, most = f"{money.low:.2f}", f"{money.high:.2f}"
    return f"{most} {money.currency}" if least == most else f"{least} to {most} {money.currency}"


def _few(names: Sequence[str], most: int = 5) -> str:
    told = ", ".join(names[:most])
    return told + (f" and {len(names) - most} more" if len(names) > most else "")
