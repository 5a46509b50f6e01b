"""Make a plan: read the material, judge each message as if it were applied now, keep what would change anything.

Nothing is counted. The records, what is left out and why, and the effects are written in one transaction, so that a
plan that is killed on its way has never been. What it depends on and what it changes in money is told by `trial`.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from reconciliation.errors import ReplayRefused
from reconciliation.replay import behind
from reconciliation.replay.effects import Effects, quota_effects
from reconciliation.replay.material import Found, NotMappable
from serving_adapter.events import UNREADABLE, UsageEvent, key_of
from streams import audit
from streams.ingest import stored_versions
from streams.ingest.apply import adapt
from streams.ingest.dry_run import DryRun, Expected, Fate
from streams.ingest.moved_corrections import impossible
from streams.quotas import definition_store, feed
from streams.quotas.amounts import PriceList
from streams.quotas.calendar import CALENDAR_MONTHS
from streams.quotas.definitions import shown
from streams.rules import estimates
from streams.rules.chunks import Accepted, Record

PARTS: Final = 8
"""Sources of a plan, by tenant: so many may be applied side by side."""
BATCH: Final = 2000
MOST_RECORDS: Final = 10_000_000
"""Of one plan: a gigabyte of identities in memory. Whoever has more plans it by --from and --to."""
LEFT_OUT_KEPT: Final = 100_000
"""So many that are left out are kept with their message; beyond that they are counted."""

_COPY_RECORDS: Final = (
    "copy usage.replay_records (plan_id, part, position, key, message_key, message) from stdin (format binary)"
)
_RECORD_TYPES: Final = ("text", "int4", "int8", "uuid", "bytea", "bytea")
_LEFT_OUT: Final = (
    "insert into usage.replay_left_out (plan_id, no, fate, reason, detail, tenant_id, origin, message)"
    " values (%s, %s, %s, %s, %s, %s, %s, %s)"
)
Progress = Callable[[int], None]
Told = tuple[Expected, str]
"""What would become of a message, and where it was found."""


class Planner:
    """Makes one plan over a connection."""

    def __init__(self, connection: psycopg.Connection, now: datetime, open_archive: behind.OpenArchive) -> None:
        """`open_archive` is called where something lies behind the horizon, and all of some days is only there."""
        adapt(connection)
        self.plan_id = f"rp-{secrets.token_hex(6)}"
        self._connection = connection
        self._now = now
        self._dry_run = DryRun(connection)
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._positions: Counter[int] = Counter()
        self._effects = Effects()
        self._digest = hashlib.sha256()
        self._left_out = 0
        self._open_archive = open_archive
        self._behind: list[Told] = []

    def plan(
        self, material: Iterable[Found | NotMappable], origin: Mapping[str, Any], actor: str, progress: Progress
    ) -> str:
        """Write the plan and return its id.

        Raises ReplayRefused where there is too much for one, or the archive is needed and cannot be read.
        """
        with self._connection.transaction():
            self._connection.execute("set local idle_in_transaction_session_timeout = 0")  # reading may take its time
            read = 0
            batches = iter(material)
            while batch := list(islice(batches, BATCH)):
                self._take(batch)
                read += len(batch)
                progress(read)
                if sum(self._positions.values()) > MOST_RECORDS:
                    raise ReplayRefused(f"more than {MOST_RECORDS:,} events: plan them in parts, by --from and --to")
            self._take_behind()
            counts = {"read": read} | dict(self._counts) | {"reasons": dict(self._reasons)}
            counts["parts"] = {str(part): count for part, count in sorted(self._positions.items())}
            self._connection.execute(
                "insert into usage.replay_plans (plan_id, made_at, actor, origin, counts, effects, content_digest)"
                " values (%s, %s, %s, %s, %s, %s, %s)",
                (self.plan_id, self._now, actor, Jsonb(dict(origin)), Jsonb(counts), Jsonb(self._told()),
                 self._digest.digest()),
            )  # fmt: skip
            audit.record(self._connection, actor, "replay.plan", self.plan_id, {"origin": dict(origin)} | counts)
        return self.plan_id

    def _take(self, batch: list[Found | NotMappable]) -> None:
        found = [each for each in batch if isinstance(each, Found)]
        for each in batch:
            if isinstance(each, NotMappable):
                self._leave_out("not_mappable", "not_mappable", each.reason, None, each.origin, each.raw)
        records = [Record(at, _key(f.message), f.message, self._now) for at, f in enumerate(found)]
        expected = self._dry_run.expect(records) if records else []
        self._behind += self._sort([(each, found[each.record.position].origin) for each in expected])
        if len(self._behind) >= behind.MOST_COMPARED:
            self._take_behind()

    def _take_behind(self) -> None:
        """Compare what lies behind the horizon, and judge it beside what is held."""
        tries = 0
        while self._behind:
            behind.require_progress(tries)
            waiting, self._behind = self._behind, []
            messages = [each.message for each, _ in waiting if each.message is not None]
            compared = behind.compare(self._connection, self._open_archive, messages)
            for begin in range(0, len(waiting), BATCH):
                part = waiting[begin : begin + BATCH]
                records = [each.record._replace(position=at) for at, (each, _) in enumerate(part)]
                expected = self._dry_run.expect(records, compared)
                self._behind += self._sort([(each, part[each.record.position][1]) for each in expected])
            tries = 0 if len(self._behind) < len(waiting) else tries + 1

    def _sort(self, told: Sequence[Told]) -> list[Told]:
        """Keep or leave out messages, told with their origins, by their fates; return what is to be compared yet."""
        kept: list[tuple[Expected, list[Any]]] = []
        beside = self._beside([expected for expected, _ in told])
        for (expected, origin), there in zip(told, beside, strict=True):
            if expected.fate is Fate.BEHIND:
                continue
            if expected.message is not None and (why := _impossible(expected.message.event, there)):
                message = expected.message.record.value
                self._leave_out(Fate.REFUSED.value, "invalid", why, expected.tenant_id, origin, message)
                continue
            if expected.fate.changes:
                kept.append((expected, there))
            elif expected.fate is not Fate.THERE:
                fate, detail = expected.fate.value, expected.detail
                self._leave_out(fate, expected.reason, detail, expected.tenant_id, origin, expected.record.value)
            if expected.fate not in (Fate.CONFLICT, Fate.REFUSED):
                self._counts[expected.fate.value] += 1
            if expected.is_behind and expected.fate.changes:
                self._counts["behind"] += 1
        self._keep(kept)
        return [each for each in told if each[0].fate is Fate.BEHIND]

    def _keep(self, kept: Sequence[tuple[Expected, Sequence[Any]]]) -> None:
        """Add what would change anything to the plan's records, and to its effects; each with what counts beside it."""
        with self._connection.cursor() as cursor, cursor.copy(_COPY_RECORDS) as copy:
            copy.set_types(_RECORD_TYPES)
            for each, there in kept:
                part = part_of(each.tenant_id or "")
                position = self._positions[part]
                self._positions[part] += 1
                record = each.record
                copy.write_row((self.plan_id, part, position, each.key, record.key, record.value))
                self._counts["counted"] += each.is_counted
                self._digest.update(b"%d:%d:%d:" % (part, position, len(record.value)) + record.value)
                if each.message is not None and each.fate is not Fate.FILL:
                    self._enter(each.message, each.enters_at, there)

    def _beside(self, told: Sequence[Expected]) -> list[list[Any]]:
        """Of each that would count, what counts of its request's attempt: what it takes the place of, or corrects."""
        asked = {}
        for at, each in enumerate(told):
            moment = each.enters_at or (each.beside.completed_at if each.beside is not None else None)
            if each.message is not None and moment is not None and each.fate in (Fate.ADD, Fate.SUPERSEDE):
                asked[at] = (each.message.event, moment)
        rows = dict(zip(asked, stored_versions.counting(self._connection, list(asked.values())), strict=True))
        return [rows.get(at, []) for at in range(len(told))]

    def _enter(self, message: Accepted, enters_at: datetime | None, beside: Sequence[Any]) -> None:
        """Add a message to the effects, and take out of them what it takes the place of; `beside`: what counts now."""
        event = message.event
        told = (event.kind, event.correction_no)
        for row in beside:
            # With an event its corrections leave, but never the other way round
            if event.kind == "usage" or (row.kind, row.correction_no) == told:
                self._effects.leave(row)
        corrected = next((row for row in beside if row.kind == "usage"), None) if event.kind != "usage" else None
        self._effects.add(message, enters_at, corrected)

    def _leave_out(
        self, fate: str, reason: str, detail: str, tenant_id: str | None, origin: str, message: bytes
    ) -> None:  # fmt: skip
        self._counts[fate] += 1
        self._reasons[reason] += 1
        self._left_out += 1
        if self._left_out <= LEFT_OUT_KEPT:
            row = (self.plan_id, self._left_out, fate, reason, detail, tenant_id, origin, message)
            self._connection.execute(_LEFT_OUT, row)

    def _told(self) -> dict[str, Any]:
        effects = self._effects
        return {
            "first": effects.first.isoformat() if effects.first else None,
            "last": effects.last.isoformat() if effects.last else None,
            "windows_1m": len(effects.minutes),
            "windows_1h": len(effects.by_hour),
            "usage": effects.by_tenant_and_month(),
            "quotas": list(_quotas(self._connection, effects)),
        }


def _impossible(event: UsageEvent, beside: Sequence[Any]) -> str:
    """What a correction would leave of what counts, if that cannot be; '' if it can, or nothing counts yet."""
    others = [row for row in beside if (row.kind, row.correction_no) != (event.kind, event.correction_no)]
    return impossible(others, event) if event.kind != "usage" and others else ""


def part_of(tenant_id: str) -> int:
    """The part of a plan that holds a tenant's events."""
    return zlib.crc32(tenant_id.encode()) % PARTS


def _key(message: bytes) -> bytes | None:
    try:
        return key_of(message)
    except UNREADABLE:
        return None


def _quotas(connection: psycopg.Connection, effects: Effects) -> Iterator[dict[str, Any]]:
    """The budgets that are touched: what is used of each period, and what it would be."""
    tenants = sorted({tenant_id for tenant_id, *_ in effects.by_hour})
    if not tenants or effects.last is None:
        return
    definitions, at = definition_store.read(connection), effects.last
    quotas = {t: definitions.quotas_of(t, definitions.tier_of(t, at), at) for t in tenants}
    anchors = {t: definitions.anchor_of(t, at) if quotas[t] else CALENDAR_MONTHS for t in tenants}
    spenders = [t for t in tenants if any(quota.metric == "spend" for quota in quotas[t])]
    prices = definition_store.price_lists(connection, spenders)
    statuses = estimates.bill_statuses_of(connection, spenders)
    for effect in quota_effects(effects, quotas, anchors, prices, statuses):
        used = feed.used_of(connection, effect.tenant_id, effect.quota, effect.start, effect.end,
                            prices.get(effect.tenant_id, PriceList()))  # fmt: skip
        metric = effect.quota.metric
        yield {
            "tenant_id": effect.tenant_id, "quota_id": effect.quota.quota_id, "from": effect.start.isoformat(),
            "to": effect.end.isoformat(), "limit": shown(effect.quota.limit, metric), "used": shown(used, metric),
            "after": shown(used + effect.added, metric), "passes": used + effect.added > effect.quota.limit,
        }  # fmt: skip
