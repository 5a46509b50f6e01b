"""What an invoice says about the events it bills, so that an outsider can count them again (docs/usage-digest.md).

Each billed event is a leaf of its tenant's Merkle tree; the tenants' roots with their sums are the leaves of the
invoice's. Values in, values out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import msgspec

from billing.errors import EventsRefused
from billing.periods import rfc3339
from serving_adapter.events import Kind
from streams.merkle import MerkleTree, merkle_root

EVENT_FORMAT: Final = "tollbook.billed_event.v1"
TENANT_FORMAT: Final = "tollbook.tenant_usage.v1"

_to_json: Final = msgspec.json.Encoder().encode


class BilledEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One event that bills: one line of an export. Tokens in tokens, `gpu_us` microseconds; input includes cached.

    A correction has signed counts, and status, names and completion of the event that it corrects.
    """

    completed_at: datetime
    tenant_id: str
    request_id: str
    attempt: int
    kind: Kind
    correction_no: int
    model: str
    adapter: str
    region: str
    tier: str
    status: str
    fault: str
    usage_source: str
    input_tokens: int
    cache_hit_tokens: int
    output_tokens: int
    gpu_us: int

    @property
    def order(self) -> tuple[datetime, bytes, int, bool, int]:
        """Where it stands among its tenant's events: no two have the same place."""
        return self.completed_at, self.request_id.encode(), self.attempt, self.kind != "usage", self.correction_no

    @property
    def leaf(self) -> bytes:
        """The canonical bytes of what it is, when it completed, and what it counts."""
        content = (
            self.model, self.adapter, self.region, self.tier, self.status, self.fault, self.usage_source,
            self.input_tokens, self.cache_hit_tokens, self.output_tokens, self.gpu_us,
        )  # fmt: skip
        completed = rfc3339(self.completed_at, timespec="microseconds")
        return _to_json(
            (EVENT_FORMAT, self.tenant_id, self.request_id, self.attempt, self.kind, self.correction_no, completed,
             hashlib.sha256(_to_json(content)).hexdigest())
        )  # fmt: skip

    @property
    def line(self) -> bytes:
        """Its line of an export, with the line feed."""
        return _to_json(self) + b"\n"


_decode: Final = msgspec.json.Decoder(BilledEvent).decode


def event_of_line(line: bytes, number: int) -> BilledEvent:
    """The event of one line of an export. Raises EventsRefused, with the line's number."""
    try:
        event = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventsRefused(f"line {number}: {error}") from None
    if event.completed_at.utcoffset() is None:
        raise EventsRefused(f"line {number}: completed_at has no offset")
    return event


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """A tenant's billed events: how many, what they sum up to, and the root of the tree over them."""

    tenant_id: str
    events: int
    requests: int
    input_tokens: int
    cache_hit_tokens: int
    output_tokens: int
    gpu_us: int
    root: bytes

    def document(self) -> dict[str, Any]:
        """As it stands in the invoice's document."""
        return {name: getattr(self, name) for name in self.__slots__[:-1]} | {"root": self.root.hex()}


class TenantCount:
    """Counts a tenant's billed events as they pass, in their order. Keeps no event."""

    def __init__(self, tenant_id: str) -> None:
        self._tenant_id = tenant_id
        self._tree = MerkleTree()
        self._sums = [0, 0, 0, 0, 0]
        self._last: BilledEvent | None = None

    def add(self, event: BilledEvent) -> None:
        """Count one. Raises EventsRefused for one of another tenant, out of order, or counted already."""
        if event.tenant_id != self._tenant_id:
            raise EventsRefused(f"an event of {event.tenant_id} among those of {self._tenant_id}")
        if self._last is not None and event.order <= self._last.order:
            said = "is there twice" if event.order == self._last.order else "is out of order"
            raise EventsRefused(f"request {event.request_id} of {event.tenant_id} {said}")
        self._last = event
        self._tree.add(event.leaf)
        counts = (event.kind == "usage", event.input_tokens, event.cache_hit_tokens, event.output_tokens, event.gpu_us)
        self._sums = [old + more for old, more in zip(self._sums, counts, strict=True)]

    @property
    def usage(self) -> TenantUsage:
        """What it has come to."""
        requests, inputs, cached, outputs, gpu_us = self._sums
        return TenantUsage(
            self._tenant_id, self._tree.leaves, requests, inputs, cached, outputs, gpu_us, self._tree.root
        )


def usage_digest(tenants: Iterable[TenantUsage]) -> str:
    """The digest of an invoice: the root, in hex, of the tree over its tenants, in the order of their ids' bytes."""
    return merkle_root(
        _to_json(
            (TENANT_FORMAT, t.tenant_id, t.events, t.requests, t.input_tokens, t.cache_hit_tokens, t.output_tokens,
             t.gpu_us, t.root.hex())
        )
        for t in sorted(tenants, key=lambda t: t.tenant_id.encode())
    ).hex()  # fmt: skip
