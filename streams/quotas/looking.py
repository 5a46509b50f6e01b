"""What a look at the database means for a shard: confirmed usage, definitions, prices, who is registered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from streams.quotas.calendar import moment
from streams.quotas.decisions import Row
from streams.quotas.feed import Look, Span, Wanted
from streams.quotas.held import Held
from streams.quotas.loading import fill, threshold_alerts
from streams.quotas.meters import BudgetMeter
from streams.quotas.shard import Shard, Unready

ROWS_A_SLICE: Final = 250
BOOKS_A_SLICE: Final = 50
SPANS_A_LOOK: Final = 200
"""Tenants whose windows are read in one look."""
_UNREADY: Final[Mapping[str, Unready]] = {"suspended": "suspended", "closed": "closed"}


def wanted(shard: Shard, at_most: int = SPANS_A_LOOK, tenants_since: int = 0) -> Wanted:
    """What the next look should find out; of tenants' windows so many at most. `tenants_since`: the
    `tenants_through` of the look before."""
    spans = {}
    for tenant_id in list(shard.waited_for | shard.to_load)[:at_most]:
        held = shard.books.get(tenant_id)
        if held is not None:
            budgets = held.book.meters.budgets if held.awaits is None else held.awaits.budgets
            found = {Span(meter.start, meter.end) for meter in budgets}
            found |= {Span(*meter.period_before()) for meter in _held_before(shard, held, budgets)}
            spans[tenant_id] = sorted(found, key=lambda span: (span.start, span.end))
    return Wanted(spans, list(shard.doubtful), list(shard.to_look_up), tenants_since)


def _held_before(shard: Shard, held: Held, budgets: Sequence[BudgetMeter]) -> list[BudgetMeter]:
    """Budgets with thresholds that held as they are at the end of the period before too: usage of it that came late, or
    while no service ran, may have reached one."""
    found = []
    for meter in budgets:
        if meter.quota.thresholds and not meter.loaded:
            tenant_id, then = held.book.tenant_id, moment(meter.start - 1)
            tier = shard.definitions.tier_of(tenant_id, then, held.told_tier)
            if shard.definitions.anchor_of(tenant_id, then) == meter.anchor and meter.quota in (
                shard.definitions.quotas_of(tenant_id, tier, then)
            ):
                found.append(meter)
    return found


def take_look(shard: Shard, look: Look, wanted: Wanted) -> Iterator[None]:
    """Take what a look has found, in slices; the next look must not begin before the last."""
    if look.definitions is not None:
        shard.definitions = look.definitions
        for number, held in enumerate(list(shard.books.values())):
            shard.define(held, look.at, _told_tier(held))
            if number % BOOKS_A_SLICE == BOOKS_A_SLICE - 1:
                yield
        known = list(shard.registered)
        for start in range(0, len(known), BOOKS_A_SLICE):
            shard.expect(known[start : start + BOOKS_A_SLICE], look.at)
            yield
    shard.expect(register(shard, look.states, wanted.tenants), look.at)
    unreserved: Counter[tuple[str, str, int]] = Counter()
    for start in range(0, len(look.rows), ROWS_A_SLICE):
        confirm(shard, look.rows[start : start + ROWS_A_SLICE], look.at, unreserved)
        yield
    shard.note_unreserved(unreserved, look.at, look.positions)
    for number, (tenant_id, prices) in enumerate(look.prices.items(), 1):
        priced = shard.books.get(tenant_id)
        if priced is not None and prices != priced.book.meters.prices:
            shard.define(priced, look.at, _told_tier(priced), prices)
        if number % BOOKS_A_SLICE == 0:
            yield
    for number, (tenant_id, spans) in enumerate(look.loaded.items(), 1):
        held = shard.books[tenant_id]
        held.book.roll(look.at)
        if held.awaits is not None:
            shard.define(held, look.at, held.awaits.told_tier, look.prices.get(tenant_id), spans)
        fill(held.book, spans, _held_before(shard, held, held.book.meters.budgets))
        shard.alerts += threshold_alerts(held.book, look.at)
        held.is_loading = held.book.needs_loading
        if not held.is_loading and held.awaits is None:
            shard.to_load.pop(tenant_id, None)
            shard.waited_for.pop(tenant_id, None)
        if number % BOOKS_A_SLICE == 0:
            yield
    if not look.caught_up:
        return  # an attempt whose row is yet to come would count neither as settled nor as confirmed
    found = set(look.counted)
    for each in wanted.attempts:
        shard.asked_about(*each, look.at, counted=each in found)


def _told_tier(held: Held) -> str:
    return held.told_tier if held.awaits is None else held.awaits.told_tier


def register(shard: Shard, states: Mapping[str, str], asked: Sequence[str] = ()) -> list[str]:
    """Take tenants that are new or changed, and which of those asked for there are not. Returns those that are new."""
    new = [tenant_id for tenant_id in states if tenant_id not in shard.registered]
    for tenant_id in [each for each, why in shard.barred.items() if why == "unknown" or each in states]:
        del shard.barred[tenant_id]
    shard.barred |= {tenant_id: _UNREADY[state] for tenant_id, state in states.items() if state != "active"}
    shard.registered.update(states)
    for tenant_id in asked:
        shard.to_look_up.pop(tenant_id, None)
        if tenant_id not in states:
            shard.barred[tenant_id] = "unknown"
    return new


def confirm(shard: Shard, rows: Sequence[Row], now: int, unreserved: Counter[tuple[str, str, int]]) -> None:
    """Take confirmed usage. What of it nobody had reserved is added to `unreserved`, by tenant, quota and period."""
    touched: dict[str, Held] = {}
    for row in rows:
        held = shard.books.get(row.tenant_id)
        if held is None:
            tier = shard.definitions.tier_of(row.tenant_id, moment(now))
            if not shard.definitions.versions_of(row.tenant_id, tier):
                continue
            held = shard.open(row.tenant_id, now)
        held.book.roll(now)
        progress = held.book.confirm(row)
        shard.counters.confirmed += row.first
        shard.counters.unreserved += row.first and not progress.known
        shard.counters.over += progress.over
        for quota_id, start, units in progress.unreserved:
            unreserved[row.tenant_id, quota_id, start] += units
        touched[row.tenant_id] = held
    for held in touched.values():
        shard.deadlines.watch(held)
        shard.alerts += threshold_alerts(held.book, now)
