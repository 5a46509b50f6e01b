"""What the journal holds: everything that happened to a tenant's reservations and is not in the windows. Pure.

A tenant's state follows from its entries in their order, and from nothing else but definitions and confirmed usage; the
running service and the one that rebuilds itself apply them by the same code (`book.py`).
"""

from __future__ import annotations

from typing import Final

import msgspec


class Reserved(msgspec.Struct, frozen=True, gc=False, tag="r", array_like=True):
    """An attempt was admitted: at most `output_cap` output tokens (all answers together) beside its input."""

    tenant_id: str
    request_id: str
    attempt: int
    at: int
    model: str
    adapter: str
    tier: str
    input_tokens: int
    output_cap: int
    expected_output: int
    """How many output tokens it will probably have: reserved where an overshoot is allowed, and by soft budgets."""
    max_tokens: int
    """Per answer, as granted."""
    asked: int
    """Per answer, as asked for; -1 if the request did not say."""
    copies: int
    """n × prompts."""
    deadline: int
    limited_by: tuple[str, ...] = ()
    priority: int = 0
    nonce: str = ""
    """Of the question that it answers: the last one, where the same was asked again."""


class Settled(msgspec.Struct, frozen=True, gc=False, tag="s", array_like=True):
    """An attempt has ended and is known to have used this; with `final`, so has its request."""

    tenant_id: str
    request_id: str
    attempt: int
    at: int
    final: bool
    dispatched: bool
    """False: no engine ever saw it, no usage event will come."""
    model: str
    adapter: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    gpu_us: int
    lease_id: str = ""
    lease_no: int = 0
    """Which settlement out of its slice it is, from 1 on; 0: not told."""
    nonce: str = ""
    """Of what was never dispatched: the question that is withdrawn by it; '': whichever it was."""


class Charged(msgspec.Struct, frozen=True, gc=False, tag="c", array_like=True):
    """The event of an attempt was not counted before the attempt was told to have ended, and nobody had admitted it:
    rates are charged for it."""

    tenant_id: str
    request_id: str
    attempt: int
    at: int


class Leased(msgspec.Struct, frozen=True, gc=False, tag="l", array_like=True):
    """A slice was handed out for decisions elsewhere; again with the same id: it was renewed, and so much was added."""

    tenant_id: str
    lease_id: str
    holder: str
    at: int
    model: str
    adapter: str
    requests: int
    input_tokens: int
    output_tokens: int
    slots: int
    """Concurrent requests."""
    held_until: int
    """When what is left of it is free again if nobody gives it back."""
    drawn: int = 0
    """The last settlement (`lease_no`) that left it: of slices in stored states."""
    is_returned: bool = False
    """Whether its holder gave back what was left: of slices in stored states."""


class Returned(msgspec.Struct, frozen=True, gc=False, tag="b", array_like=True):
    """A holder gives back what it will not use any more."""

    tenant_id: str
    lease_id: str
    at: int
    requests: int
    input_tokens: int
    output_tokens: int
    slots: int
    closed: bool
    """Nothing of it is in use any more."""


class Unasked(msgspec.Struct, frozen=True, gc=False, tag="u", array_like=True):
    """A caller that could not reach the service decided by its fail mode."""

    tenant_id: str
    request_id: str
    attempt: int
    at: int
    mode: str
    admitted: bool


class Unreserved(msgspec.Struct, frozen=True, gc=False, tag="n", array_like=True):
    """Usage was confirmed that nobody had reserved: so many units of each of these quotas in their period."""

    tenant_id: str
    at: int
    quota_id: str
    start: int
    """Of the period."""
    units: int


class Read(msgspec.Struct, frozen=True, tag="p", array_like=True):
    """The feed was read up to here (`ingest_no` by source): what was unreserved in it is in this batch, or before."""

    shard: int
    at: int
    positions: dict[str, int]


Entry = Reserved | Settled | Charged | Leased | Returned | Unasked | Unreserved | Read

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(list[Entry])


def encode(entries: list[Entry]) -> bytes:
    """A batch of entries as it is stored."""
    return _encoder.encode(entries)


def decode(stored: bytes) -> list[Entry]:
    """The entries of a stored batch. Raises msgspec.DecodeError, ValidationError."""
    return _decoder.decode(stored)
