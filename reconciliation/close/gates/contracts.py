"""What tenants are rated by and what they used, as plain data for the second rating: read as it is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import ARRAY, BigInteger, CollectionAggregate, Connection, String, any_, cast, select

from billing import tables
from billing.commands.digest_usage import cut_by_account, passed_over_in
from billing.database import raw
from billing.ledger.journal_chain import written_time
from billing.plans import account_store
from billing.plans.subscriptions import Piece
from billing.usage import unbillable_store
from billing.usage.billed_events import Attempt, Billed, billed_events
from reconciliation.close.freezing import Cut
from reconciliation.close.gates import agreements
from reconciliation.close.gates.second_rating import Used
from reconciliation.comparison import Difference, Value
from serving_adapter.errors import RefusedEvent
from serving_adapter.events import UsageEvent, decode_completed
from streams.errors import EventsArchived
from streams.retention.archive_files import Archive
from streams.rules.rating_bands import parse_band, started_at
from streams.usage.event_reader import StoredEvent, as_of, events_of
from streams.usage.usage_store import retried_usage

SAID: Final = (
    "request_id", "attempt", "kind", "correction_no", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us",
)  # fmt: skip
"""What of each event its message says."""
SAID_OF_USAGE: Final = ("model", "adapter", "region", "tier", "status", "fault", "purpose", "usage_source")
_SAID: Final = attrgetter(*SAID)
_OF_USAGE: Final = attrgetter(*SAID_OF_USAGE)


def contracts(connection: Connection, cut: Cut) -> dict[str, dict[str, Any]]:
    """By tenant its subscriptions of a cut's period, since when its contract runs, and its plans' versions as stored.

    Of a period that goes on as they were known when it was cut: they may have changed since.
    """
    table, period = tables.subscriptions, cut.period
    query = select(table).where(table.c.tenant_id == any_(cast(list(cut.tenants), ARRAY(String))))
    if cut.accrued_to is None:
        query = query.where(table.c.superseded_at.is_(None), table.c.starts_at < period.end)
    else:
        query = query.where(table.c.subscription_row == _known(cut, "subscriptions"))
    query = query.order_by(table.c.tenant_id, table.c.starts_at)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in connection.execute(query):
        rows[row.tenant_id].append(
            {
                "plan": row.plan,
                "starts_at": written_time(row.starts_at),
                "bills_from": written_time(max(row.starts_at, row.trial_ends_at or row.starts_at)),
                "ends_at": None if row.ends_at is None else written_time(row.ends_at),
                "begins_plan": row.begins_plan,
                "anchored_at": None if row.anchored_at is None else written_time(row.anchored_at),
                "seats": row.seats,
                "terms": row.terms | {"bill_statuses": sorted(row.bill_statuses)},
            }
        )
    start, end = f"{period.start:%Y-%m-%d}", f"{period.end:%Y-%m-%d}"
    held = {tenant_id: agreements.held_in(listed, start, end) for tenant_id, listed in rows.items()}
    names = {each["plan"] for listed in held.values() for each in listed}
    plans = _plans(connection, cut, names)
    return {
        tenant_id: {
            "start": start,
            "end": end,
            "subscriptions": held[tenant_id],
            "agreed": agreements.agreed(listed),
            "plans": {name: plans[name] for name in sorted({each["plan"] for each in held[tenant_id]})},
        }
        for tenant_id, listed in rows.items()
    }


def _known(cut: Cut, what: str) -> CollectionAggregate[Any]:
    """The numbers of the rows that were known when a period that goes on was cut."""
    return any_(cast(cut.coordinates[what], ARRAY(BigInteger)))


def _plans(connection: Connection, cut: Cut, names: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Versions by plan, the earliest first; of those for one moment the one that was recorded last."""
    table = tables.plan_versions
    query = select(table).where(table.c.plan == any_(cast(list(names), ARRAY(String))))
    if cut.accrued_to is not None:
        query = query.where(table.c.plan_version_no == _known(cut, "plan_versions"))
    known: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in connection.execute(query.order_by(table.c.plan_version_no)):
        since = written_time(row.valid_from)
        known[row.plan][since] = {"version": row.version, "from": since, **row.content}
    return {plan: [versions[since] for since in sorted(versions)] for plan, versions in known.items()}


@dataclass(frozen=True, slots=True)
class RawUsage:
    """What a tenant used below a cut: each event for the second rating, and those that bill in their pieces.

    `altered`: what stored events say otherwise than the messages that they came as.
    """

    used: list[Used]
    billed: list[Billed]
    altered: list[Difference]


class RawUsageReader:
    """Reads tenants' raw events below a cut, as far as it goes. What belongs to all is read once, with the first."""

    def __init__(self, connection: Connection, cut: Cut) -> None:
        self._connection = connection
        self._period = period = cut.period
        self._until = cut.until
        self._below = cut.below
        self._payers = account_store.subscriptions_in(connection, period)
        self._cuts: dict[str, list[Piece]] = defaultdict(list)
        for of_account in cut_by_account(connection, period, self._payers).values():
            for tenant_id, pieces in of_account.items():
                self._cuts[tenant_id] += pieces
        self._too_old = {
            tenant_id: {each.key for each in listed}
            for tenant_id, listed in unbillable_store.of_period(connection, period).items()
        }

    def of(self, tenant_id: str) -> RawUsage:
        """A tenant's usage. Raises EventsArchived."""
        opened, period = raw(self._connection), self._period
        passed_over: Collection[Attempt] = self._passed_over.get(tenant_id, ())
        found = events_of(opened, _not_opened, tenant_id, period.start, self._until)
        too_old = self._too_old.get(tenant_id, set())
        events = [
            each
            for each in as_of(opened, found, self._below)
            if (each.request_id, each.attempt, each.kind, each.correction_no) not in too_old
        ]
        pieces = sorted(self._cuts[tenant_id], key=lambda piece: piece.start)
        billed = list(billed_events(events, tenant_id, pieces, passed_over))
        altered: list[Difference] = []
        used = [*_used(events, tenant_id, altered), *self._elsewhere.get(tenant_id, ())]
        return RawUsage(used, billed, altered)

    @cached_property
    def _passed_over(self) -> Mapping[str, Collection[Attempt]]:
        return passed_over_in(self._connection, self._period, self._payers, self._below)

    @cached_property
    def _elsewhere(self) -> dict[str, list[Used]]:
        """Attempts of the period's requests that completed outside of what is cut: which one bills is decided over
        all."""
        period = self._period
        found: dict[str, list[Used]] = defaultdict(list)
        for each in retried_usage(raw(self._connection), period.start, period.end, self._below):
            q = each.quantity
            if not period.start <= each.completed_at < self._until and q.requests:
                found[q.tenant_id].append(
                    Used(
                        f"{each.request_id}#{each.attempt}", written_time(each.completed_at), q.model, q.adapter,
                        q.region, q.tier, q.status, q.fault, q.usage_source, q.requests, q.input_tokens,
                        q.cache_hit_tokens, q.output_tokens, q.gpu_us, request_id=each.request_id,
                        attempt=each.attempt,
                    )
                )  # fmt: skip
        return found


def _used(events: Iterable[StoredEvent], tenant_id: str, altered: list[Difference]) -> Iterator[Used]:
    if tenant_id.startswith("_"):
        return
    context: dict[Attempt, int] = {}
    there: set[tuple[str, int]] = set()
    for event in events:
        attempt = event.request_id, event.attempt
        usage = event.kind == "usage"
        identity = f"{event.request_id}#{event.attempt}"
        try:
            said, completed_at = decode_completed(event.raw)
        except RefusedEvent as error:
            altered.append(Difference(f"{tenant_id}/event {identity}", "a usage event", str(error)))
            continue
        altered += _altered(event, tenant_id, said, completed_at)
        if (event.source, event.position) in there:
            altered.append(Difference(f"{tenant_id}/event {identity}", "once", "twice"))
        there.add((event.source, event.position))
        if event.purpose != "tenant":
            continue
        if usage and (event.counts or attempt not in context):
            context[attempt] = event.input_tokens
        yield Used(
            identity if usage else f"{identity}/{event.correction_no}", written_time(event.completed_at), event.model,
            event.adapter, event.region, event.tier, event.status, event.fault, event.usage_source, int(usage),
            event.input_tokens, event.cache_hit_tokens, event.output_tokens, event.gpu_us,
            context=context.get(attempt, event.input_tokens),
            started=written_time(started_at(said, event.completed_at)),
            request_id=event.request_id, attempt=event.attempt, corrects=None if usage else identity,
            labels=said.labels or {},
        )  # fmt: skip


def _altered(event: StoredEvent, tenant_id: str, said: UsageEvent, completed_at: datetime) -> Iterator[Difference]:
    """What of an event is not as its message says it. Keys and time of a correction are those of what it corrects."""
    same = said.tenant_id == tenant_id and _SAID(said) == _SAID(event)
    if same and event.kind == "usage":
        same = completed_at == event.completed_at and tuple(v or "" for v in _OF_USAGE(said)) == _OF_USAGE(event)
    if same:
        return  # as it is with millions: nothing is named
    pairs: dict[str, tuple[Value, Value]] = {name: (getattr(said, name), getattr(event, name)) for name in SAID}
    pairs["tenant_id"] = said.tenant_id, tenant_id
    if event.kind == "usage":
        pairs |= {name: (getattr(said, name) or "", getattr(event, name)) for name in SAID_OF_USAGE}
        pairs["completed_at"] = written_time(completed_at), written_time(event.completed_at)
    for name, (left, right) in pairs.items():
        if left != right:
            yield Difference(f"{tenant_id}/event {event.request_id}#{event.attempt}/{name}", left, right)


def frozen_as_used(row: Mapping[str, Any], number: int) -> Used:
    """A row of frozen usage for the second rating: by its band what depends on a single request."""
    band = parse_band(row["rating_band"])
    return Used(
        f"row-{number}", row["service_start"], row["model"], row["adapter"], row["region"], row["tier"], row["status"],
        row["fault"], row["usage_source"], row["requests"], row["input_tokens"], row["cache_hit_tokens"],
        row["output_tokens"], row["gpu_us"], context=band.context, started=band.price_version,
    )  # fmt: skip


def _not_opened() -> Archive:
    raise EventsArchived("a month is closed while its raw events are in the database")
