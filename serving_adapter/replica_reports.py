"""What a replica says about itself, on the topic `tollbook.replicas.v1` (docs/spec/metering.md 6).

A boot announces itself, sends a heartbeat each second straight to Kafka, and says farewell when it ends. A heartbeat's
`at` must be read before its `last_seq`: it promises that whatever was completed up to `at` is numbered 1…`last_seq`,
but for `lost` events that a kill would leave to recovery, and GPU time that follows as a correction: those are dated
from `lost_from` on.
Its `totals` are cumulative since the boot, for each tenant and model that changed since the last heartbeat that Kafka
acknowledged; what does not fit comes with the next. Another process sends the engine's own counters.

`decode` is the only way from bytes to a report; it refuses with the field and the reason. Unknown fields are ignored.
"""

from __future__ import annotations

import inspect
from datetime import datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import (
    EARLIEST,
    INT31,
    INT53,
    MAX_MESSAGE_BYTES,
    UNREADABLE,
    EpochMs,
    Name,
    Rfc3339,
    TenantId,
    field_at_fault,
    instant,
    not_json,
    with_plain_patterns,
)  # fmt: skip
from serving_adapter.producer import EventProducer

MOST_TOTALS: Final = 4000
"""Totals in one message: below a megabyte with the longest names in use."""

ENGINE_COUNTERS_VERSION: Final = 1
"""The version of `engine_counters` that this one reads; it follows the engine's counters, not the other reports."""

Whole = Annotated[int, Meta(ge=0, le=INT53)]
Totals = Annotated[list["Total"], Meta(max_length=MOST_TOTALS)]


class Total(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Cumulative counts of one tenant and model since the boot; `input_tokens` with the cached ones."""

    tenant_id: TenantId
    model: Name
    events: Whole
    input_tokens: Whole
    output_tokens: Whole
    cache_hit_tokens: Whole = 0


class EngineModel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Cumulative tokens of one model as its engine counts them, and sequences that finished, by reason.

    `cached_tokens` are a part of `prompt_tokens`; none where the engine does not count them exactly.
    """

    model: Name
    prompt_tokens: Whole
    generation_tokens: Whole
    cached_tokens: Whole | None = None
    finished: Annotated[dict[Name, Whole], Meta(max_length=32)] = {}


class _Report(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every report has: whose it is, and the replica's clock."""

    replica_id: Name
    boot_id: Name
    at: Rfc3339 | EpochMs


class BootReport(_Report, tag="boot", frozen=True, kw_only=True):
    """A replica has begun; nothing was completed before `at`."""


class Heartbeat(_Report, tag="heartbeat", frozen=True, kw_only=True, omit_defaults=True):
    """How far a boot is: its last number, requests started, ended and open, its clock's offset, its totals."""

    last_seq: Whole
    started: Whole
    ended: Whole
    open: Whole
    clock_offset_ms: Annotated[int, Meta(ge=-INT53, le=INT53)] = 0
    not_durable: bool = False
    """Requests of this boot were served that no disk had (docs/spec/metering.md 8.3): they may be missing."""
    lost_from: Rfc3339 | EpochMs | None = None
    """No `lost` event of what is under way would be dated before this, nor GPU time that follows; without it, none
    before `at`."""
    totals: Totals = []


class Farewell(_Report, tag="farewell", frozen=True, kw_only=True, omit_defaults=True):
    """A boot has ended, and its last number is final. Recovery says it in the name of a boot that broke off."""

    last_seq: Whole
    started: Whole = 0
    ended: Whole = 0
    totals: Totals = []


class EngineCounters(_Report, tag="engine_counters", frozen=True, kw_only=True):
    """The engine's counters, read from its `/metrics` by a process of their own; `at` is read before they are.

    Within one `since` they only grow. It is when the engine's process started, or when the counters were seen to begin
    again, or first seen; `from_zero` is false where what they had counted before that is not known to be this boot's.
    """

    since: Rfc3339 | EpochMs
    models: Annotated[list[EngineModel], Meta(max_length=1000)]
    from_zero: bool = True
    schema_version: Annotated[int, Meta(ge=1, le=INT31)] = ENGINE_COUNTERS_VERSION


Report = BootReport | Heartbeat | Farewell | EngineCounters

_decode = msgspec.json.Decoder(Report).decode
_encode = msgspec.json.Encoder().encode
_decode_any = msgspec.json.Decoder().decode


def encode(report: Report) -> bytes:
    """The report as compact JSON."""
    return _encode(report)


def send(producer: EventProducer, report: Report) -> None:
    """Queue a report, keyed by its replica, so that one replica's reports keep their order."""
    producer.send(report.replica_id.encode(), encode(report))


def decode(message: bytes) -> Report:
    """A checked report from the bytes of one message.

    Raises RefusedEvent: `torn` (not JSON), `unsupported` (an unknown type), `invalid` (not an object, or a field,
    which is named), `bad_time` (before 2020), `too_large`.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise RefusedEvent("too_large", "", f"{len(message)} bytes, at most {MAX_MESSAGE_BYTES}")
    try:
        report: Report = _decode(message)
    except msgspec.ValidationError as error:
        raise _refusal(message, str(error)) from None
    except UNREADABLE as error:
        raise RefusedEvent("torn", "", not_json(error)) from None
    if b"\\u0000" in message:
        _refuse_nul(report)
    if reported_at(report) < EARLIEST:
        raise RefusedEvent("bad_time", "at", f"{report.at} is before {EARLIEST:%Y-%m-%d}")
    proves_to(report)
    if isinstance(report, EngineCounters):
        _check_counters(report)
    return report


def reported_at(report: Report) -> datetime:
    """When the replica said it, by its own clock, in UTC."""
    return instant(report.at, "at")


def proves_to(report: Report) -> datetime:
    """Up to when all that was completed, or will be told as lost, is numbered at most as the report says."""
    at = reported_at(report)
    if isinstance(report, Heartbeat) and report.lost_from is not None:
        return min(at, instant(report.lost_from, "lost_from"))
    return at


def json_schema() -> dict[str, object]:
    """The reports' JSON Schema (2020-12): `schemas/replica.v1.json`."""
    schema = with_plain_patterns(msgspec.json.schema(Report))
    for definition in schema["$defs"].values():  # from docstrings, which Python 3.13 on stores without their indent
        definition["description"] = inspect.cleandoc(definition["description"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "replica.v1.json",
        "title": "Tollbook replica report, version 1",
        "description": "What a replica says about itself. Unknown fields are ignored.",
        **schema,
    }


def counting_since(report: EngineCounters) -> datetime:
    """Since when an engine's counters only grow, in UTC."""
    return instant(report.since, "since")


def _check_counters(report: EngineCounters) -> None:
    """What the types of an engine's counters do not say."""
    if report.schema_version > ENGINE_COUNTERS_VERSION:
        detail = f"{report.schema_version}, this version reads {ENGINE_COUNTERS_VERSION}"
        raise RefusedEvent("unsupported", "schema_version", detail)
    counting_since(report)
    names = [model.model for model in report.models]
    if len(set(names)) < len(names):
        raise RefusedEvent("invalid", "models", "a model twice")


def _refuse_nul(report: Report) -> None:
    """A NUL cannot be stored in a Postgres text column."""
    for field in ("replica_id", "boot_id"):
        if "\0" in getattr(report, field):
            raise RefusedEvent("invalid", field, "holds a NUL character")
    named: list[Total] | list[EngineModel] = getattr(report, "totals", []) or getattr(report, "models", [])
    if any("\0" in entry.model for entry in named):
        field = "models" if isinstance(report, EngineCounters) else "totals"
        raise RefusedEvent("invalid", field, "a model's name holds a NUL character")
    if isinstance(report, EngineCounters) and any("\0" in reason for m in report.models for reason in m.finished):
        raise RefusedEvent("invalid", "models", "a reason holds a NUL character")


def _refusal(message: bytes, text: str) -> RefusedEvent:
    """Why a message that msgspec could not convert is refused. Slow path: it parses the message again."""
    try:
        value = _decode_any(message)
    except msgspec.ValidationError:  # JSON, with a number beyond any that is read
        return RefusedEvent("invalid", *field_at_fault(text))
    except UNREADABLE as error:
        return RefusedEvent("torn", "", not_json(error))
    if not isinstance(value, dict):
        return RefusedEvent("invalid", "", "not a JSON object")
    field, detail = field_at_fault(text)
    if field == "type" and isinstance(value.get("type"), str):
        return RefusedEvent("unsupported", "type", f"unknown value {value['type']!r}")
    return RefusedEvent("invalid", field, detail)


if __name__ == "__main__":
    import json

    print(json.dumps(json_schema(), indent=2))
