"""Quotas and books with defaults, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from streams.quotas import book_state, entries
from streams.quotas.amounts import Counts, PriceList
from streams.quotas.book import TenantBook
from streams.quotas.calendar import microseconds
from streams.quotas.decisions import Ask, Limits, Progress, Row
from streams.quotas.definitions import Quota, quota_from
from streams.quotas.entries import Entry, Reserved, Settled, Unreserved
from streams.quotas.meters import BudgetMeter

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
NOW = microseconds(NOON)
SECOND = 1_000_000
DAY = 86_400 * SECOND
LIMITS = Limits()


def quota(
    period: str = "day", metric: str = "output_tokens", limit: Any = 1000, version: int = 1, **more: Any
) -> Quota:
    """A tenant's quota; hard unless said otherwise."""
    document = {"tenant_id": "t1", "period": period, "metric": metric, "limit": limit} | more
    return replace(quota_from(document, now=NOON), version=version)


def book(*quotas: Quota, limits: Limits = LIMITS, prices: PriceList | None = None, now: int = NOW) -> TenantBook:
    """A tenant's book, its budgets loaded with nothing used."""
    made = TenantBook("t1", limits)
    made.define(quotas, now, prices=prices)
    load(made)
    return made


def load(made: TenantBook, used: int = 0) -> None:
    """As if the windows held so much of everything."""
    for meter in made.meters.budgets:
        meter.load(used, {})


def ask(request_id: str = "r1", input_tokens: int = 10, max_tokens: int | None = 100, **more: Any) -> Ask:
    """A request."""
    return Ask("t1", request_id, more.pop("model", "m-1"), input_tokens, max_tokens=max_tokens, **more)


def settled(request_id: str = "r1", output: int = 50, at: int = NOW, **more: Any) -> Settled:
    """The end of an attempt, final unless said otherwise."""
    return Settled(
        "t1", request_id, more.pop("attempt", 1), at, more.pop("final", True), more.pop("dispatched", True),
        more.pop("model", "m-1"), more.pop("adapter", ""), more.pop("input", 10), more.pop("cached", 0), output, 0,
        more.pop("lease_id", ""), more.pop("lease_no", 0), more.pop("nonce", ""),
    )  # fmt: skip


def row(request_id: str = "r1", output: int = 50, at: int = NOW, **more: Any) -> Row:
    """A usage event's row of the feed."""
    counts = Counts(
        more.pop("requests", 1), more.pop("input", 10), more.pop("cached", 0), output, more.pop("gpu_us", 0)
    )
    return Row(
        "t1", request_id, more.pop("attempt", 1), at, more.pop("model", "m-1"), more.pop("adapter", ""),
        more.pop("bills", True), more.pop("first", True), counts,
    )  # fmt: skip


def confirm(made: TenantBook, usage: Row) -> None:
    """Take confirmed usage, and note what of it nobody had reserved, as a shard does."""
    note(made, made.confirm(usage), usage.completed_at)


def note(made: TenantBook, progress: Progress, at: int = NOW) -> None:
    """Note what was unreserved, or is it no more."""
    for quota_id, start, units in progress.unreserved:
        made.apply(Unreserved("t1", at, quota_id, start, units))


def admit(made: TenantBook, asked: Ask, now: int = NOW) -> Reserved:
    """Admit a request that must fit."""
    entry = made.decide(asked, now)
    assert isinstance(entry, Reserved), entry
    made.apply(entry)
    return entry


def budget(made: TenantBook, quota_id: str = "day-output_tokens") -> BudgetMeter:
    """A budget's meter."""
    meter = made.meters.named(quota_id)
    assert isinstance(meter, BudgetMeter)
    return meter


def rebuilt(
    journal: Sequence[Entry], quotas: Sequence[Quota], limits: Limits, now: int, snapshot: bytes = b""
) -> TenantBook:
    """The book that a new process makes of a stored state and the entries after it; nothing is loaded yet."""
    made = TenantBook("t1", limits)
    if snapshot:
        book_state.restore(made, book_state.decode(snapshot)[0])
    made.define(quotas, now)
    for entry in entries.decode(entries.encode(list(journal))):
        made.apply(entry)  # type: ignore[arg-type]
    return made
