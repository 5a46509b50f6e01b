"""The calls of the quota service (docs/spec/interfaces.md 5): who may make them, and what the shard is asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn
from urllib.parse import unquote

import msgspec
import psycopg

from streams.database import connect
from streams.errors import DatabaseUnavailable
from streams.http import access_keys
from streams.http.access_keys import AccessKey
from streams.quotas import answers, openapi
from streams.quotas.calendar import moment
from streams.quotas.decisions import Ask, Refused
from streams.quotas.entries import Leased, Reserved, Returned, Unasked
from streams.quotas.errors import OtherContent
from streams.quotas.granting import Slice, grant
from streams.quotas.groups import shard_of
from streams.quotas.http_protocol import Call
from streams.quotas.service import KEYS_STALE_S, UNAVAILABLE, QuotaService
from streams.quotas.shard import Held
from streams.quotas.standing_of import live_decisions, meter_view, stored_decisions
from streams.settings import DatabaseSettings

LEASE_MARK: Final = "~"
"""In a lease's id between tenant and number: no tenant's id has it."""
AUTHENTICATE: Final = (("www-authenticate", 'Bearer realm="tollbook"'),)


class Rejected(Exception):
    """A call that is answered without asking the shard."""

    def __init__(self, status: int, code: str, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.headers = headers


class Routes:
    """Takes calls from connections and answers each, at once or once it is durable."""

    def __init__(self, service: QuotaService, database: DatabaseSettings) -> None:
        self._service = service
        self._shard = service.shard
        self._database = database
        self._known: dict[bytes, AccessKey] = {}
        self._known_as_of = 0.0
        self._tasks: set[asyncio.Task[None]] = set()
        self._lease_no = 0

    def __call__(self, call: Call) -> None:
        """One call."""
        try:
            self._route(call)
        except Rejected as rejected:
            call.answer(rejected.status, answers.error(rejected.code, str(rejected)), rejected.headers)
        except msgspec.MsgspecError as error:
            call.answer(400, answers.error("invalid_request", str(error)))

    def _route(self, call: Call) -> None:
        target = call.target
        if target == b"/v1/reservations":
            _allow(call, b"POST")
            key = self._caller(call)
            self._reserve(call, answers.read_ask(call.body), key)
            return
        path = target.partition(b"?")[0].decode("ascii", "replace")
        found = self._fixed.get(path)
        if found is not None:
            method, handle = found
            _allow(call, method)
            handle(self, call)
            return
        parts = [unquote(part) for part in path.split("/")[1:]]
        match parts:
            case ["v1", "reservations", tenant_id, request_id, "settle"]:
                _allow(call, b"POST")
                self._settle(call, tenant_id, request_id)
            case ["v1", "leases", lease_id, "renew"]:
                _allow(call, b"POST")
                self._renew(call, lease_id)
            case ["v1", "leases", lease_id]:
                _allow(call, b"DELETE")
                self._return(call, lease_id)
            case ["v1", "tenants", tenant_id, "quota"]:
                _allow(call, b"GET")
                self._show(call, tenant_id, self._caller(call))
            case ["v1", "decisions", tenant_id, request_id]:
                _allow(call, b"GET")
                self._explain(call, tenant_id, request_id)
            case _:
                raise Rejected(404, "not_found", "there is no such path: /openapi.json lists them")

    # Who calls

    def _caller(self, call: Call) -> AccessKey:
        """The key of a caller, by the header it sent. Raises Rejected."""
        service = self._service
        if self._known_as_of != service.keys_read_at:
            self._known, self._known_as_of = {}, service.keys_read_at
        key = self._known.get(call.authorization)
        if key is None:
            scheme, _, secret = call.authorization.decode("latin-1").partition(" ")
            key = access_keys.find(service.keys, secret.strip()) if scheme.lower() == "bearer" else None
            if key is None:
                raise Rejected(401, "unauthorized", "a quota caller's key is needed", AUTHENTICATE)
            self._known[call.authorization] = key
        if time.monotonic() - service.keys_read_at > KEYS_STALE_S:
            raise Rejected(503, "unavailable", "the access keys could not be read for minutes")
        return key

    def _own(self, key: AccessKey, tenant_id: str) -> None:
        """Refuse tenants that are not the caller's, or not this shard's."""
        if not key.may_speak_for(tenant_id):
            raise Rejected(403, "forbidden", f"this key may not ask for tenant {tenant_id}")
        if not self._shard.owns(tenant_id):
            number = shard_of(tenant_id, self._shard.of)
            raise Rejected(
                421, "other_shard", f"tenant {tenant_id} is of shard {number}", (("x-tollbook-shard", str(number)),)
            )

    def _ready(self, call: Call, tenant_id: str, tier: str, again: Callable[[], None]) -> Held | None:
        """A tenant's book; None if the call has its answer, or waits until the book can be had."""
        held = self._shard.ready(tenant_id, self._service.now(), tier)
        if isinstance(held, Held):
            return held
        if held == "loading":
            self._wait(call, tenant_id, again)
            return None
        _bar(held, tenant_id)

    def _wait(self, call: Call, tenant_id: str, again: Callable[[], None]) -> None:
        """Try a call again when the database was looked at."""
        if self._service.giving_up:
            call.answer(503, UNAVAILABLE, (("retry-after", "1"),)).flush()
            return

        def retry() -> bool:
            try:
                again()
            except Rejected as rejected:
                call.answer(rejected.status, answers.error(rejected.code, str(rejected)), rejected.headers).flush()
            return True

        if not self._service.park(tenant_id, retry):
            raise Rejected(503, "unavailable", "too many requests wait for their tenants' usage")

    # Reservations

    def _reserve(self, call: Call, ask: Ask, key: AccessKey) -> None:
        self._own(key, ask.tenant_id)
        service = self._service
        if service.away:
            call.answer(503, UNAVAILABLE, (("retry-after", "1"),)).flush()
            return
        now = service.now()
        try:
            answer = self._shard.ask(ask, now)
        except OtherContent as error:
            raise Rejected(409, "conflict", str(error)) from None
        if isinstance(answer, Reserved):
            held = self._shard.books[ask.tenant_id]
            standings = held.book.meters.standings(ask.model, ask.adapter, now)
            headers, body = answers.allowed(answer, standings, service.mine.epoch, held.on_unavailable)
            service.when_durable(call, 200, body, headers)
        elif isinstance(answer, Refused):
            headers, body = answers.refusal(answer, service.rng.random())
            service.when_durable(call, 429, body, headers)
        elif answer == "loading":
            self._wait(call, ask.tenant_id, lambda: self._reserve(call, ask, key))
        else:
            _bar(answer, ask.tenant_id)

    def _settle(self, call: Call, tenant_id: str, request_id: str) -> None:
        key = self._caller(call)
        told = answers.read_settlement(call.body)
        ask = msgspec.convert({"tenant_id": tenant_id, "request_id": request_id}, answers.Named)
        self._settle_all(call, key, [(ask.tenant_id, ask.request_id, told)])

    def _settle_many(self, call: Call) -> None:
        key = self._caller(call)
        many = answers.read_settlements(call.body).settlements
        self._settle_all(call, key, [(each.tenant_id, each.request_id, each) for each in many])

    def _settle_all(self, call: Call, key: AccessKey, many: list[tuple[str, str, answers.Settlement]]) -> None:
        service, shard = self._service, self._shard
        if service.away:
            call.answer(503, UNAVAILABLE, (("retry-after", "1"),)).flush()
            return
        for tenant_id in {tenant_id for tenant_id, _, _ in many}:
            self._own(key, tenant_id)
            if shard.barred.get(tenant_id) == "unknown":
                _bar("unknown", tenant_id)
            if tenant_id not in shard.registered and tenant_id not in shard.barred:
                shard.to_look_up[tenant_id] = None
                self._wait(call, tenant_id, lambda: self._settle_all(call, key, many))
                return
        for tenant_id, request_id, told in many:
            shard.settle(answers.settled_of(tenant_id, request_id, told, service.now()))
        service.when_durable(call, 204)

    def _take_unasked(self, call: Call) -> None:
        key = self._caller(call)
        many = answers.read_unasked(call.body).decisions
        for each in many:
            self._own(key, each.tenant_id)
        for each in many:
            at = self._service.now()
            self._shard.unasked(Unasked(each.tenant_id, each.request_id, each.attempt, at, each.mode, each.admitted))
        self._service.when_durable(call, 204)

    # Leases

    def _lease(self, call: Call) -> None:
        key = self._caller(call)
        self._grant(call, key, answers.read_lease(call.body), None)

    def _renew(self, call: Call, lease_id: str) -> None:
        key = self._caller(call)
        self._grant(call, key, answers.read_lease(call.body), lease_id)

    def _grant(self, call: Call, key: AccessKey, ask: answers.LeaseAsk, lease_id: str | None) -> None:
        self._own(key, ask.tenant_id)
        if self._service.away:
            call.answer(503, UNAVAILABLE, (("retry-after", "1"),)).flush()
            return
        held = self._ready(call, ask.tenant_id, "", lambda: self._grant(call, key, ask, lease_id))
        if held is None:
            return
        now, limits = self._service.now(), self._shard.limits
        holder = ask.holder or key.key_id
        leases = held.book.leases
        if lease_id is not None:
            known = leases.get(lease_id)
            if known is None or lease_id.partition(LEASE_MARK)[0] != ask.tenant_id:
                raise Rejected(404, "not_found", f"there is no lease {lease_id}")
            holder = known.holder
        holders = leases.holders() + (not any(lease.holder == holder for lease in leases.all().values()))
        want = Slice(ask.want.requests, ask.want.input_tokens, ask.want.output_tokens, ask.want.concurrency)
        learning = now < self._shard.learning_until
        got = Slice() if learning else grant(held.book, ask.model, ask.adapter, want, now, holders)
        if lease_id is None:
            self._lease_no += 1
            lease_id = f"{ask.tenant_id}{LEASE_MARK}{self._service.mine.epoch}.{self._lease_no}"
        held_until = now + ask.ttl_ms * 1000 + limits.held_us
        if any(got) or leases.get(lease_id) is not None:
            self._shard.lease(Leased(ask.tenant_id, lease_id, holder, now, ask.model, ask.adapter, *got, held_until))
        granted = {"requests": got.requests, "input_tokens": got.input_tokens, "output_tokens": got.output_tokens,
                   "concurrency": got.slots}  # fmt: skip
        body = {"lease_id": lease_id, "granted": granted, "ttl_ms": ask.ttl_ms, "epoch": self._service.mine.epoch,
                "max_tokens": limits.default_max_tokens, "priority": held.book.priority,
                "on_unavailable": held.on_unavailable}  # fmt: skip
        self._service.when_durable(call, 200, answers.plain(body))

    def _return(self, call: Call, lease_id: str) -> None:
        key = self._caller(call)
        tenant_id = lease_id.partition(LEASE_MARK)[0]
        self._own(key, tenant_id)
        told = answers.read_returned(call.body) if call.body else None
        held = self._shard.books.get(tenant_id)
        if held is not None and held.book.leases.get(lease_id) is not None and told is not None:
            unused = told.unused
            self._shard.lease(
                Returned(tenant_id, lease_id, self._service.now(), unused.requests, unused.input_tokens,
                         unused.output_tokens, unused.concurrency, told.in_flight == 0)
            )  # fmt: skip
        self._service.when_durable(call, 204)

    # Reading

    def _show(self, call: Call, tenant_id: str, key: AccessKey) -> None:
        self._own(key, tenant_id)
        held = self._ready(call, tenant_id, "", lambda: self._show(call, tenant_id, key))
        if held is None:
            return
        now = self._service.now()
        held.book.roll(now)
        quotas = [meter_view(meter, now) for meter in held.book.meters.all]
        body = {"tenant_id": tenant_id, "tier": held.book.tier, "as_of": moment(now), "quotas": quotas,
                "requests_in_flight": sum(r.ended_at is None for r in held.book.requests.values())}  # fmt: skip
        call.answer(200, answers.plain(body)).flush()

    def _explain(self, call: Call, tenant_id: str, request_id: str) -> None:
        key = self._caller(call)
        self._own(key, tenant_id)
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

    def _healthz(self, call: Call) -> None:
        call.answer(200, answers.plain({"healthy": True}))

    def _readyz(self, call: Call) -> None:
        service = self._service
        parts = {
            "journal": not service.away,
            "database": time.monotonic() - service.looked_at < 10,
            "keys": time.monotonic() - service.keys_read_at < KEYS_STALE_S,
        }
        ready = all(parts.values())
        learning = service.now() < self._shard.learning_until
        call.answer(200 if ready else 503, answers.plain({"ready": ready, **parts, "learning": learning}))

    def _metrics(self, call: Call) -> None:
        call.answer(200, self._metric_text().encode(), content_type=b"text/plain; version=0.0.4")

    def _metric_text(self) -> str:
        service, shard = self._service, self._shard
        lines = []
        for name in shard.counters.__slots__:
            lines += [f"# TYPE tollbook_quota_{name}_total counter",
                      f"tollbook_quota_{name}_total {getattr(shard.counters, name)}"]  # fmt: skip
        gauges = {
            "tenants": len(shard.books),
            "requests_remembered": sum(len(held.book.requests) for held in shard.books.values()),
            "epoch": service.mine.epoch,
            "shard": service.mine.shard,
            "journal_away": int(service.away),
            "journal_batches": service.batches,
            "learning": int(service.now() < shard.learning_until),
            "look_age_seconds": time.monotonic() - service.looked_at,
        }
        for name, value in gauges.items():
            lines += [f"# TYPE tollbook_quota_{name} gauge", f"tollbook_quota_{name} {value}"]
        return "\n".join(lines) + "\n"

    def _openapi(self, call: Call) -> None:
        call.answer(200, answers.plain(openapi.document()))

    _fixed: Final = {
        "/v1/settlements": (b"POST", _settle_many),
        "/v1/decisions": (b"POST", _take_unasked),
        "/v1/leases": (b"POST", _lease),
        "/healthz": (b"GET", _healthz),
        "/readyz": (b"GET", _readyz),
        "/metrics": (b"GET", _metrics),
        "/openapi.json": (b"GET", _openapi),
    }


def _allow(call: Call, method: bytes) -> None:
    if call.method != method:
        raise Rejected(405, "method_not_allowed", f"{method.decode()} only", (("allow", method.decode()),))


def _bar(unready: str, tenant_id: str) -> NoReturn:
    text = {"unknown": "is not registered", "suspended": "is suspended", "closed": "is closed"}[unready]
    raise Rejected(403, f"tenant_{unready}", f"tenant {tenant_id} {text}")
