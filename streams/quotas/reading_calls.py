"""Calls that change nothing: where quotas stand, why a request was answered so, health, metrics."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psycopg

from streams.database import connect
from streams.errors import DatabaseUnavailable
from streams.http.access_keys import AccessKey
from streams.quotas import answers, openapi
from streams.quotas.calendar import moment
from streams.quotas.callers import Callers
from streams.quotas.http_protocol import Call
from streams.quotas.service import UNAVAILABLE, QuotaService
from streams.quotas.standing_of import live_decisions, meter_view, stored_decisions
from streams.settings import DatabaseSettings


class ReadingCalls:
    """Answers from the shard's books and the database."""

    def __init__(self, service: QuotaService, callers: Callers, database: DatabaseSettings) -> None:
        self._service = service
        self._shard = service.shard
        self._callers = callers
        self._database = database
        self._tasks: set[asyncio.Task[None]] = set()

    def show(self, call: Call, tenant_id: str) -> None:
        """Where a tenant's quotas stand."""
        self._show(call, tenant_id, self._callers.key_of(call))

    def _show(self, call: Call, tenant_id: str, key: AccessKey) -> None:
        self._callers.own(key, tenant_id)
        held = self._callers.ready(call, tenant_id, "", lambda: self._show(call, tenant_id, key))
        if held is None:
            return
        now = self._service.now()
        held.book.roll(now)
        quotas = [meter_view(meter, now) for meter in held.book.meters.all]
        body = {"tenant_id": tenant_id, "tier": held.book.tier, "as_of": moment(now), "quotas": quotas,
                "requests_in_flight": sum(r.ended_at is None for r in held.book.requests.values())}  # fmt: skip
        call.answer(200, answers.plain(body)).flush()

    def explain(self, call: Call, tenant_id: str, request_id: str) -> None:
        """Why a request was answered so."""
        key = self._callers.key_of(call)
        self._callers.own(key, tenant_id)
        task = asyncio.get_running_loop().create_task(self._explained(call, tenant_id, request_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _explained(self, call: Call, tenant_id: str, request_id: str) -> None:
        try:
            stored = await asyncio.to_thread(self._stored_decisions, tenant_id, request_id)
        except (psycopg.Error, DatabaseUnavailable):
            call.answer(503, UNAVAILABLE, (("retry-after", "1"),)).flush()
            return
        held = self._shard.books.get(tenant_id)
        found = [*stored, *(live_decisions(held.book, request_id) if held else ())]
        if not found:
            text = f"nothing is known of {request_id}: it was never asked for, or admitted and over for a while"
            call.answer(404, answers.error("not_found", text)).flush()
        else:
            body = {"tenant_id": tenant_id, "request_id": request_id, "decisions": found}
            call.answer(200, answers.plain(body)).flush()

    def _stored_decisions(self, tenant_id: str, request_id: str) -> list[dict[str, Any]]:
        with connect(self._database.url, application="tollbook quota why") as connection:
            return stored_decisions(connection, tenant_id, request_id)

    def healthz(self, call: Call) -> None:
        """The process lives."""
        call.answer(200, answers.plain({"healthy": True}))

    def readyz(self, call: Call) -> None:
        """It can answer."""
        service = self._service
        parts = {
            "journal": not service.away,
            "database": time.monotonic() - service.looked_at < 10,
            "keys": not service.keys_are_stale,
        }
        ready = all(parts.values())
        learning = service.now() < self._shard.learning_until
        call.answer(200 if ready else 503, answers.plain({"ready": ready, **parts, "learning": learning}))

    def metrics(self, call: Call) -> None:
        """For Prometheus."""
        call.answer(200, self._metric_text().encode(), content_type=b"text/plain; version=0.0.4")

    def _metric_text(self) -> str:
        service, shard = self._service, self._shard
        lines = []
        counters = {name: getattr(shard.counters, name) for name in shard.counters.__slots__}
        for name, value in (counters | {"journal_batches": service.batches}).items():
            lines += [f"# TYPE tollbook_quota_{name}_total counter", f"tollbook_quota_{name}_total {value}"]
        gauges = {
            "tenants": len(shard.books),
            "requests_remembered": sum(len(held.book.requests) for held in shard.books.values()),
            "epoch": service.mine.epoch,
            "shard": service.mine.shard,
            "journal_away": int(service.away),
            "learning": int(service.now() < shard.learning_until),
            "look_age_seconds": time.monotonic() - service.looked_at,
        }
        for name, value in gauges.items():
            lines += [f"# TYPE tollbook_quota_{name} gauge", f"tollbook_quota_{name} {value}"]
        return "\n".join(lines) + "\n"

    def openapi(self, call: Call) -> None:
        """The interface, for programs."""
        call.answer(200, answers.plain(openapi.document()))
