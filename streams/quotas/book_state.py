"""A tenant's book as it is stored, so that a rebuild need not read the journal from its beginning. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from streams.quotas.amounts import Counts
from streams.quotas.book import TenantBook
from streams.quotas.entries import Leased, Reserved
from streams.quotas.lease_book import Lease
from streams.quotas.parts import Part, Request, State
from streams.quotas.volume import Volume


class PartState(msgspec.Struct, frozen=True, array_like=True):
    """An attempt."""

    attempt: int
    model: str
    adapter: str
    state: str
    reserved: Reserved | None
    settled: Counts
    settled_at: int
    lease_id: str
    withdrawn: str = ""
    bills: bool = True
    is_charged_whole: bool = False
    is_uncharged: bool = False


class RequestState(msgspec.Struct, frozen=True, array_like=True):
    """A request."""

    request_id: str
    deadline: int
    in_slot: bool
    ended_at: int | None
    parts: list[PartState]


class BookState(msgspec.Struct, frozen=True, array_like=True):
    """A tenant: what cannot be had from definitions and windows. It may be followed by others with more requests."""

    tenant_id: str
    tier: str
    requests: list[RequestState]
    leases: list[Leased]
    rates: dict[str, list[int]]
    unreserved: dict[str, list[int]]
    """By quota, a period's start and what was used in it that nobody had reserved, by turns."""
    volume: list[int] = []


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[BookState])


def state_of(book: TenantBook, *, with_requests: bool = True) -> BookState:
    """What is to be stored of a book."""
    return BookState(
        book.tenant_id,
        book.tier,
        _request_states(book.requests) if with_requests else [],
        [_lease_state(book.tenant_id, lease_id, lease) for lease_id, lease in book.leases.all().items()],
        book.meters.rate_state(),
        {
            quota_id: [each for period in units.items() for each in period]
            for quota_id, units in book.meters.unreserved_state().items()
        },
        book.volume.stored(),
    )


def more_of(tenant_id: str, requests: Mapping[str, Request]) -> BookState:
    """Requests that belong to a state of the same tenant before."""
    return BookState(tenant_id, "", _request_states(requests), [], {}, {})


def restore(book: TenantBook, state: BookState) -> int:
    """Fill a book from its state and those with more requests, before its definitions are taken. Returns the time of
    the newest that is in it."""
    newest = 0
    book.tier = state.tier or book.tier
    book.meters.rate_states |= state.rates
    for quota_id, flat in state.unreserved.items():
        book.meters.unreserved[quota_id] = dict(zip(flat[::2], flat[1::2], strict=True))
    if state.volume:
        book.volume = Volume(state.volume)
    for stored in state.requests:
        request = book.requests[stored.request_id] = Request()
        request.deadline, request.in_slot, request.ended_at = stored.deadline, stored.in_slot, stored.ended_at
        for each in stored.parts:
            part = request.parts[each.attempt] = Part(each.model, each.adapter)
            part.state, part.reserved = State(each.state), each.reserved
            part.settled, part.settled_at, part.lease_id = each.settled, each.settled_at, each.lease_id
            part.withdrawn, part.bills = each.withdrawn, each.bills
            part.is_charged_whole, part.is_uncharged = each.is_charged_whole, each.is_uncharged
            newest = max(newest, each.reserved.at if each.reserved else 0)
        book.new_requests.append(stored.request_id)
    for leased in state.leases:
        list(book.leases.apply(leased, book.meters))
        newest = max(newest, leased.at)
    return newest


def encoded(state: BookState) -> bytes:
    """One of several states as they are stored (`joined`)."""
    return _encoder.encode(state)


def joined(states: Sequence[bytes]) -> bytes:
    """Encoded states as they are stored."""
    return _encoder.encode([msgspec.Raw(state) for state in states])


def decode(stored: bytes) -> list[BookState]:
    """Stored states. Raises msgspec.DecodeError, ValidationError."""
    return _decoder.decode(stored)


def _request_states(requests: Mapping[str, Request]) -> list[RequestState]:
    return [
        RequestState(
            request_id, request.deadline, request.in_slot, request.ended_at,
            [
                PartState(attempt, p.model, p.adapter, p.state.value, p.reserved, p.settled, p.settled_at, p.lease_id,
                          p.withdrawn, p.bills, p.is_charged_whole, p.is_uncharged)
                for attempt, p in request.parts.items()
            ],
        )
        for request_id, request in requests.items()
    ]  # fmt: skip


def _lease_state(tenant_id: str, lease_id: str, lease: Lease) -> Leased:
    return Leased(
        tenant_id, lease_id, lease.holder, lease.at, lease.model, lease.adapter, lease.requests, lease.input_tokens,
        lease.output_tokens, lease.slots, lease.held_until, lease.drawn, lease.is_returned,
    )  # fmt: skip
