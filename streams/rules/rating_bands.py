"""What of a single request its price depends on, as a key of its window (docs/spec/metering.md 4.3).

Two things cannot be told from sums of an hour: how long a request's context was, and under which price version it
started. Where a tenant's prices depend on them, billing writes dated rules (`usage.rating_bands`) and each event is
marked with its band when it is ingested: `context=128000`, `price=2026-11`, or both with a semicolon between. Values
in, values out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from functools import cache
from typing import Final

from serving_adapter.events import UsageEvent, instant
from streams.rules.chunks import Accepted

ANY_MODEL: Final = ""


class BandKind(Enum):
    """What a rule looks at."""

    CONTEXT = "context"
    """`input_tokens`; in force by completion."""
    STARTED = "started"
    """When the request started; in force by that."""


@dataclass(frozen=True, slots=True)
class BandRule:
    """From `valid_from` on, until the next rule of the same tenant, model and kind.

    `steps` (context): input tokens from which each step begins, ascending. `price_version` (started). A rule that has
    neither ends the one before it.
    """

    tenant_id: str
    model: str
    kind: BandKind
    valid_from: datetime
    steps: tuple[int, ...] = ()
    price_version: str = ""


@dataclass(frozen=True, slots=True)
class RatingBand:
    """A band, read: the step of context length that was reached (input tokens), and the price version; None: no rule
    applied."""

    context: int | None = None
    price_version: str | None = None


@cache
def parse_band(text: str) -> RatingBand:
    """The band that a window or an event is marked with."""
    parts = {name: value for name, _, value in (part.partition("=") for part in text.split(";"))}
    context = parts.get("context")
    return RatingBand(None if context is None else int(context), parts.get("price"))


def differ_from(before: Iterable[BandRule], after: Iterable[BandRule]) -> datetime | None:
    """The first moment from which two sets of a tenant's rules say something else; None if never."""
    old, new = _by_what(before), _by_what(after)
    moments = sorted({rule.valid_from for rules in (*old.values(), *new.values()) for rule in rules})
    for moment in moments:
        for what in old.keys() | new.keys():
            if _said(old.get(what, ()), moment) != _said(new.get(what, ()), moment):
                return moment
    return None


def _by_what(rules: Iterable[BandRule]) -> dict[tuple[str, BandKind], list[BandRule]]:
    found: dict[tuple[str, BandKind], list[BandRule]] = {}
    for rule in sorted(rules, key=lambda each: each.valid_from):
        found.setdefault((rule.model, rule.kind), []).append(rule)
    return found


def _said(rules: Sequence[BandRule], at: datetime) -> tuple[tuple[int, ...], str] | None:
    """What holds at a moment. A rule for a model that says nothing still hides the one for any; without one, None."""
    reached = bisect_right(rules, at, key=lambda rule: rule.valid_from)
    return (rules[reached - 1].steps, rules[reached - 1].price_version) if reached else None


class RatingBands:
    """The rules of all tenants, ready to be asked."""

    def __init__(self, rules: Iterable[BandRule] = ()) -> None:
        self._rules: dict[tuple[str, str, BandKind], list[BandRule]] = {}
        for rule in sorted(rules, key=lambda each: each.valid_from):
            self._rules.setdefault((rule.tenant_id, rule.model, rule.kind), []).append(rule)
        self.tenants: frozenset[str] = frozenset(tenant for tenant, _, _ in self._rules)
        """Tenants that have a rule; the events of all others have no band."""

    def of(self, tenant_id: str, model: str, input_tokens: int, completed_at: datetime, started_at: datetime) -> str:
        """The band of a request: `''` where no rule applies. A rule for the model goes before one for any."""
        parts = []
        context = self._in_force(tenant_id, model, BandKind.CONTEXT, completed_at)
        if context is not None and context.steps:
            reached = bisect_right(context.steps, input_tokens)
            parts.append(f"context={context.steps[reached - 1] if reached else 0}")
        started = self._in_force(tenant_id, model, BandKind.STARTED, started_at)
        if started is not None and started.price_version:
            parts.append(f"price={started.price_version}")
        return ";".join(parts)

    def of_event(self, event: UsageEvent, completed_at: datetime) -> str:
        """The band of an event of kind `usage`; a correction has that of what it corrects."""
        if event.tenant_id not in self.tenants:
            return ""
        return self.of(event.tenant_id, event.model, event.input_tokens, completed_at, started_at(event, completed_at))

    def mark(self, messages: list[Accepted]) -> list[Accepted]:
        """The messages with their bands. Costs nothing where no tenant has rules."""
        if not self.tenants:
            return messages
        return [
            message._replace(rating_band=self.of_event(message.event, message.completed_at))
            if message.event.tenant_id in self.tenants
            else message
            for message in messages
        ]

    def _in_force(self, tenant_id: str, model: str, kind: BandKind, at: datetime) -> BandRule | None:
        for named in (model, ANY_MODEL):
            rules = self._rules.get((tenant_id, named, kind), ())
            reached = bisect_right(rules, at, key=lambda rule: rule.valid_from)
            if reached:
                return rules[reached - 1]
        return None


def started_at(event: UsageEvent, completed_at: datetime) -> datetime:
    """When a request started: as it says, else its completion less its duration."""
    if event.started_at is not None:
        return instant(event.started_at, "started_at")
    try:
        return completed_at - timedelta(milliseconds=event.duration_ms)
    except OverflowError:  # a duration of more than two thousand years
        return datetime.min.replace(tzinfo=completed_at.tzinfo)
