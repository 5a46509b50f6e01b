"""Calls about slices of quotas that are decided upon elsewhere."""

from __future__ import annotations

from typing import Final

import msgspec

from serving_adapter.quota.groups import LEASE_MARK
from streams.http.access_keys import AccessKey
from streams.quotas import answers
from streams.quotas.callers import Callers, Rejected
from streams.quotas.entries import Leased, Returned
from streams.quotas.granting import Slice, grant
from streams.quotas.http_protocol import Call
from streams.quotas.service import QuotaService

PARTS: Final = 2
"""A holder gets at most this part of what is left, divided among the holders: slices shrink as a limit comes near."""


class LeaseCalls:
    """Granting, renewing, taking back."""

    def __init__(self, service: QuotaService, callers: Callers) -> None:
        self._service = service
        self._shard = service.shard
        self._callers = callers
        self._lease_no = 0

    def lease(self, call: Call) -> None:
        """A new slice; one that was asked for by the same name before is told again."""
        key = self._callers.key_of(call)
        self._grant(call, key, answers.read_lease(call.body), None)

    def renew(self, call: Call, lease_id: str) -> None:
        """More of a slice, and longer."""
        key = self._callers.key_of(call)
        self._grant(call, key, answers.read_lease(call.body), lease_id)

    def _grant(self, call: Call, key: AccessKey, ask: answers.LeaseAsk, lease_id: str | None) -> None:
        self._callers.own(key, ask.tenant_id)
        if self._callers.is_away(call):
            return
        held = self._callers.ready(call, ask.tenant_id, "", lambda: self._grant(call, key, ask, lease_id))
        if held is None:
            return
        now, limits = self._service.now(), self._shard.limits
        holder = ask.holder or key.key_id
        leases = held.book.leases
        if lease_id is not None:
            known = leases.get(lease_id)
            if known is None or lease_id.partition(LEASE_MARK)[0] != ask.tenant_id:
                raise Rejected(404, "not_found", f"there is no lease {lease_id}")
            if ask.model and (ask.model, ask.adapter) != (known.model, known.adapter):
                raise Rejected(409, "conflict", f"{lease_id} is a slice for {known.model or 'any model'}")
            holder, ask = known.holder, msgspec.structs.replace(ask, model=known.model, adapter=known.adapter)
        repeated = None
        if lease_id is None and ask.name:
            lease_id = f"{ask.tenant_id}{LEASE_MARK}{ask.name}"
            repeated = leases.get(lease_id)
            if repeated is not None and (ask.model, ask.adapter) != (repeated.model, repeated.adapter):
                raise Rejected(409, "conflict", f"{lease_id} is a slice for {repeated.model or 'any model'}")
        holders = leases.holders() + (not any(lease.holder == holder for lease in leases.all().values()))
        want = Slice(ask.want.requests, ask.want.input_tokens, ask.want.output_tokens, ask.want.concurrency)
        learning = now < self._shard.learning_until
        if held.is_shed:
            self._shard.count(held, 0, now)
        alone = learning or repeated is not None or (held.is_shed and held.book.volume.is_shed)
        got = Slice() if alone else grant(held.book, ask.model, ask.adapter, want, now, PARTS * holders)
        if held.is_shed and got.requests:
            self._shard.count(held, got.requests, now)
        if lease_id is None:
            self._lease_no += 1
            lease_id = f"{ask.tenant_id}{LEASE_MARK}{self._service.mine.epoch}.{self._lease_no}"
        held_until = now + ask.ttl_ms * 1000 + limits.held_us
        if any(got) or leases.get(lease_id) is not None:
            self._shard.lease(Leased(ask.tenant_id, lease_id, holder, now, ask.model, ask.adapter, *got, held_until))
        if repeated is not None:
            got = Slice(repeated.requests, repeated.input_tokens, repeated.output_tokens, repeated.slots)
        granted = {"requests": got.requests, "input_tokens": got.input_tokens, "output_tokens": got.output_tokens,
                   "concurrency": got.slots}  # fmt: skip
        body = {"lease_id": lease_id, "granted": granted, "ttl_ms": ask.ttl_ms, "epoch": self._service.mine.epoch,
                "max_tokens": limits.default_max_tokens, "priority": held.book.priority,
                "on_unavailable": held.on_unavailable,
                "longest_request_s": limits.longest_request_us // 1_000_000}  # fmt: skip
        self._service.when_durable(call, 200, answers.plain(body))

    def give_back(self, call: Call, lease_id: str) -> None:
        """What of a slice will not be used."""
        key = self._callers.key_of(call)
        tenant_id = lease_id.partition(LEASE_MARK)[0]
        self._callers.own(key, tenant_id)
        told = answers.read_returned(call.body) if call.body else None
        if self._callers.is_away(call):
            return
        held = self._shard.books.get(tenant_id)
        if held is not None and held.book.leases.get(lease_id) is not None and told is not None:
            unused = told.unused
            self._shard.lease(
                Returned(tenant_id, lease_id, self._service.now(), unused.requests, unused.input_tokens,
                         unused.output_tokens, unused.concurrency, told.in_flight == 0)
            )  # fmt: skip
        self._service.when_durable(call, 204)
