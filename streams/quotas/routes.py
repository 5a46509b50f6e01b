"""The calls of the quota service (docs/spec/interfaces.md 5): who may make them, and what the shard is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import unquote

import msgspec

from streams.http.access_keys import AccessKey
from streams.quotas import answers
from streams.quotas.callers import Callers, Rejected, bar
from streams.quotas.decisions import Ask, Refused
from streams.quotas.entries import Reserved, Unasked
from streams.quotas.errors import OtherContent
from streams.quotas.http_protocol import Call
from streams.quotas.lease_calls import LeaseCalls
from streams.quotas.reading_calls import ReadingCalls
from streams.quotas.service import QuotaService
from streams.settings import DatabaseSettings

SETTLED_A_TURN: Final = 16
"""Of those that are told together, in one turn of the loop: a quarter of a millisecond."""


class Routes:
    """Takes calls from connections and answers each, at once or once it is durable."""

    def __init__(self, service: QuotaService, database: DatabaseSettings) -> None:
        self._service = service
        self._shard = service.shard
        self._callers = Callers(service)
        leases = self._leases = LeaseCalls(service, self._callers)
        reading = self._reading = ReadingCalls(service, self._callers, database)
        self._fixed: dict[str, tuple[bytes, Callable[[Call], None]]] = {
            "/v1/settlements": (b"POST", self._settle_many),
            "/v1/decisions": (b"POST", self._take_unasked),
            "/v1/leases": (b"POST", leases.lease),
            "/healthz": (b"GET", reading.healthz),
            "/readyz": (b"GET", reading.readyz),
            "/metrics": (b"GET", reading.metrics),
            "/openapi.json": (b"GET", reading.openapi),
        }

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
            key = self._callers.key_of(call)
            self._reserve(call, answers.read_ask(call.body), key)
            return
        path = target.partition(b"?")[0].decode("ascii", "replace")
        found = self._fixed.get(path)
        if found is not None:
            method, handle = found
            _allow(call, method)
            handle(call)
            return
        parts = [unquote(part) for part in path.split("/")[1:]]
        match parts:
            case ["v1", "reservations", tenant_id, request_id, "settle"]:
                _allow(call, b"POST")
                self._settle(call, tenant_id, request_id)
            case ["v1", "leases", lease_id, "renew"]:
                _allow(call, b"POST")
                self._leases.renew(call, lease_id)
            case ["v1", "leases", lease_id]:
                _allow(call, b"DELETE")
                self._leases.give_back(call, lease_id)
            case ["v1", "tenants", tenant_id, "quota"]:
                _allow(call, b"GET")
                self._reading.show(call, tenant_id)
            case ["v1", "decisions", tenant_id, request_id]:
                _allow(call, b"GET")
                self._reading.explain(call, tenant_id, request_id)
            case _:
                raise Rejected(404, "not_found", "there is no such path: /openapi.json lists them")

    # Reservations

    def _reserve(self, call: Call, ask: Ask, key: AccessKey) -> None:
        self._callers.own(key, ask.tenant_id)
        service = self._service
        if self._callers.is_away(call):
            return
        now = service.now()
        try:
            answer = self._shard.ask(ask, now)
        except OtherContent as error:
            raise Rejected(409, "conflict", str(error)) from None
        if isinstance(answer, Reserved):
            held = self._shard.books[ask.tenant_id]
            longest_s = self._shard.limits.longest_request_us // 1_000_000
            quotas = held.book.meters.standings_text(ask.model, ask.adapter, now)
            headers, body = answers.allowed(answer, quotas, service.mine.epoch, held.on_unavailable, longest_s)
            service.when_covered(call, answer, now, body, headers)
        elif isinstance(answer, Refused):
            mode = self._shard.books[ask.tenant_id].on_unavailable
            headers, body = answers.refusal(answer, service.rng.random(), mode)
            service.when_durable(call, 429, body, headers)
        elif answer == "loading":
            self._callers.wait(call, ask.tenant_id, lambda: self._reserve(call, ask, key))
        else:
            bar(answer, ask.tenant_id)

    def _settle(self, call: Call, tenant_id: str, request_id: str) -> None:
        key = self._callers.key_of(call)
        told = answers.read_settlement(call.body)
        ask = msgspec.convert({"tenant_id": tenant_id, "request_id": request_id}, answers.Named)
        self._settle_all(call, key, [(ask.tenant_id, ask.request_id, told)])

    def _settle_many(self, call: Call) -> None:
        key = self._callers.key_of(call)
        many = answers.read_settlements(call.body).settlements
        self._settle_all(call, key, [(each.tenant_id, each.request_id, each) for each in many])

    def _settle_all(self, call: Call, key: AccessKey, many: list[tuple[str, str, answers.Settlement]]) -> None:
        shard = self._shard
        if self._callers.is_away(call):
            return
        for tenant_id in {tenant_id for tenant_id, _, _ in many}:
            self._callers.own(key, tenant_id)
            if shard.barred.get(tenant_id) == "unknown":
                bar("unknown", tenant_id)
            if tenant_id not in shard.registered and tenant_id not in shard.barred:
                shard.to_look_up[tenant_id] = None
                self._callers.wait(call, tenant_id, lambda: self._settle_all(call, key, many))
                return
        self._settle_in_turns(call, many, 0)

    def _settle_in_turns(self, call: Call, many: list[tuple[str, str, answers.Settlement]], first: int) -> None:
        """Take them from the `first` on, some in each turn of the loop; answer after the last."""
        now = self._service.now()
        for tenant_id, request_id, told in many[first : first + SETTLED_A_TURN]:
            self._shard.settle(answers.settled_of(tenant_id, request_id, told, now))
        if first + SETTLED_A_TURN < len(many):
            self._service.next_turn(lambda: self._settle_in_turns(call, many, first + SETTLED_A_TURN))
        else:
            self._service.when_durable(call, 204)

    def _take_unasked(self, call: Call) -> None:
        key = self._callers.key_of(call)
        many = answers.read_unasked(call.body).decisions
        if self._callers.is_away(call):
            return
        for each in many:
            self._callers.own(key, each.tenant_id)
        for each in many:
            at = self._service.now()
            entry = Unasked(each.tenant_id, each.request_id, each.attempt, at, each.mode, each.admitted)
            self._shard.unasked(entry, answers.unasked_detail(each))
        self._service.when_durable(call, 204)


def _allow(call: Call, method: bytes) -> None:
    if call.method != method:
        raise Rejected(405, "method_not_allowed", f"{method.decode()} only", (("allow", method.decode()),))
