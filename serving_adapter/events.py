"""The usage event, version 1: one record of one request attempt that has ended (docs/spec/interfaces.md 4).

`decode` is the only way from bytes to a `UsageEvent`; it refuses with the field and the reason. Fields that are
not listed are ignored here and survive in the raw message.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta

from serving_adapter.errors import RefusedEvent

SCHEMA_VERSION: Final = 1
MAX_MESSAGE_BYTES: Final = 1_000_000
"""Kafka's own default bound for a message; an event is about 300 bytes."""
EARLIEST: Final = datetime(2020, 1, 1, tzinfo=UTC)
"""An event from before this day is a broken clock (rule 2: `bad_time`)."""

KEY_BYTES: Final = {
    "model": 256, "adapter": 256, "region": 128, "tier": 128, "pool": 128, "replica_id": 128, "boot_id": 128
}  # fmt: skip
"""Names that are keys of windows and boots, in bytes: together they must fit into a row of an index (2,704 bytes)."""

INT31: Final = 2**31 - 1
INT53: Final = 2**53 - 1
"""Bound of sizes and durations: what a JSON number holds exactly in every language."""

NO_LINE_FEED: Final = r"(?!\n)"
"""After `$`: Python would let a trailing line feed pass. JSON Schema does not, and many engines cannot look ahead."""
TENANT_ID_PATTERN: Final = r"^_?[A-Za-z0-9][A-Za-z0-9._:-]{0,126}$(?!\n)"
TenantId = Annotated[str, Meta(pattern=TENANT_ID_PATTERN)]
RequestId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$(?!\n)")]
Name = Annotated[str, Meta(min_length=1, max_length=256)]
Label = Annotated[str, Meta(max_length=256)]
KeyName = Annotated[str, Meta(max_length=128)]
LabelKey = Annotated[str, Meta(max_length=64)]
Seq = Annotated[int, Meta(ge=1, le=INT53)]
"""A boot's events are numbered 1…n (rule 6.1)."""
EventIdText = Annotated[str, Meta(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$(?!\n)")]
# A correction's counts are signed deltas: the sign is checked against `kind` after decoding.
Count = Annotated[int, Meta(ge=-INT31, le=INT31)]
Positive = Annotated[int, Meta(ge=1, le=INT31)]
Amount = Annotated[int, Meta(ge=0, le=INT53)]
# Eleven days of one GPU: a window may add up nine million of these before its bigint is full.
GpuMicroseconds = Annotated[int, Meta(ge=-(10**12), le=10**12)]
RFC3339_PATTERN: Final = r"^\d{4}-\d{2}-\d{2}[Tt ]\d{2}:\d{2}:\d{2}(\.\d+)?([Zz]|[+-]\d{2}:\d{2})$"
# The pattern is for the published schema; here `instant` checks the same at a tenth of the price.
Rfc3339 = Annotated[
    str,
    Meta(
        max_length=48,
        description="RFC 3339 with offset; digits beyond the microsecond are cut off",
        extra_json_schema={"pattern": RFC3339_PATTERN},
    ),
]
EpochMs = Annotated[int, Meta(ge=0, le=253_402_300_799_999, description="milliseconds since 1970-01-01T00:00:00Z")]

Kind = Literal["usage", "correction"]
Status = Literal["ok", "aborted", "error", "rejected", "lost"]
Fault = Literal["none", "client", "platform"]
Purpose = Literal["tenant", "probe", "warmup", "smoke", "shadow", "eval"]
UsageSource = Literal["engine", "stream", "gateway", "settled", "estimate"]

SOURCE_STRENGTH: Final[dict[str, int]] = {name: -i for i, name in enumerate(get_args(UsageSource))}
"""Greater is stronger: engine > stream > gateway > settled > estimate (rule 1.5)."""
_ENUMS: Final = ("kind", "status", "fault", "purpose", "usage_source")


class UsageEvent(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, kw_only=True):
    """One usage event as it is on the wire. Token counts are tokens, `*_ms` milliseconds, `gpu_us` microseconds.

    `cache_hit_tokens` is a subset of `input_tokens`. `timestamp` is the completion; use `completed_at`.
    """

    tenant_id: TenantId
    request_id: RequestId
    model: Name
    input_tokens: Count
    output_tokens: Count
    timestamp: Rfc3339 | EpochMs
    schema_version: Positive = 1
    event_id: Label | None = None
    source_event_id: Label | None = None
    attempt: Positive = 1
    kind: Kind = "usage"
    correction_no: Annotated[int, Meta(ge=0, le=INT31)] = 0
    corrects: EventIdText | None = None
    model_revision: Label | None = None
    adapter: Label | None = None
    adapter_revision: Label | None = None
    cache_hit_tokens: Count = 0
    engine_input_tokens: Count | None = None
    engine_output_tokens: Count | None = None
    engine_cached_tokens: Count | None = None
    region: KeyName = ""
    tier: KeyName = ""
    pool: KeyName = ""
    started_at: Rfc3339 | EpochMs | None = None
    duration_ms: Amount = 0
    ttft_ms: Amount | None = None
    queue_ms: Amount | None = None
    gpu_us: GpuMicroseconds = 0
    status: Status = "ok"
    fault: Fault = "none"
    finish_reason: Label = ""
    purpose: Purpose = "tenant"
    usage_source: UsageSource = "engine"
    replica_id: KeyName | None = None
    boot_id: KeyName | None = None
    seq: Seq | None = None
    parent_request_id: Label | None = None
    client_request_id: Label | None = None
    api_key_id: Label | None = None
    labels: Annotated[dict[LabelKey, Label], Meta(max_length=16)] | None = None


_decode = msgspec.json.Decoder(UsageEvent).decode
_decode_any = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises on bytes that are no JSON: also invalid UTF-8 within a string, and thousands of brackets."""
_TENANT_ID = re.compile(TENANT_ID_PATTERN)
_AT = re.compile(r" - at (?:`key` in )?`\$\.?([^`\[.]*)[^`]*`$")
_MISSING = re.compile(r"required field `([^`]+)`")


def encode(event: UsageEvent) -> bytes:
    """The event as compact JSON; fields that have their default are left out."""
    return _encode(event)


def decode(message: bytes) -> UsageEvent:
    """A checked event from the bytes of one message. Raises what `decode_completed` raises."""
    return decode_completed(message)[0]


def decode_completed(message: bytes) -> tuple[UsageEvent, datetime]:
    """A checked event with its completion, from the bytes of one message.

    Raises RefusedEvent: `torn` (not JSON), `unsupported` (a later schema_version or an unknown enum value),
    `invalid` (not an object, or a field, which is named), `bad_time` (before 2020), `too_large`.
    """
    if len(message) > MAX_MESSAGE_BYTES:
        raise RefusedEvent("too_large", "", f"{len(message)} bytes, at most {MAX_MESSAGE_BYTES}")
    try:
        event = _decode(message)
    except msgspec.ValidationError as error:
        raise _refusal(message, str(error)) from None
    except UNREADABLE as error:
        raise RefusedEvent("torn", "", not_json(error)) from None
    if event.schema_version != SCHEMA_VERSION:
        raise _later_version(event.schema_version)
    # Only a message with escapes or other scripts can hold a NUL, or a name that is longer in bytes than it looks.
    if b"\\u" in message or not message.isascii():
        _check_text(event)
    return event, _check(event)


def decode_known_fields(message: bytes) -> UsageEvent | None:
    """What this version knows of a later version's event, to estimate what it is worth; None if it is not as here."""
    try:
        event = _decode(message)
        _check_text(event)
        _check(event)
    except (*UNREADABLE, RefusedEvent):  # a ValidationError is a DecodeError
        return None
    return event


class _TenantOnly(msgspec.Struct, gc=False):
    tenant_id: str


_decode_tenant = msgspec.json.Decoder(_TenantOnly).decode


def key_of(message: bytes) -> bytes | None:
    """The Kafka key of a message that may be anything: its tenant, or none."""
    try:
        tenant_id = _decode_tenant(message).tenant_id
    except UNREADABLE:
        return None
    return tenant_id.encode() if _TENANT_ID.match(tenant_id) else None


def completed_at(event: UsageEvent) -> datetime:
    """The instant of completion in UTC, to the microsecond; it decides window and billing period."""
    return instant(event.timestamp, "timestamp")


def instant(value: str | int, field: str) -> datetime:
    """An aware UTC time from RFC 3339 text or epoch milliseconds.

    Further digits are cut off, never rounded up: a period's end must not be reached early (rule 3).
    """
    if isinstance(value, int):
        return datetime.fromtimestamp(value // 1000, UTC) + timedelta(milliseconds=value % 1000)
    try:
        if len(value) < 20 or value[4] + value[7] + value[13] + value[16] != "--::" or value[19] not in ".Zz+-":
            raise ValueError
        if value[-1] not in "Zz" and value[-6] not in "+-":
            raise ValueError
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise RefusedEvent("invalid", field, f"{value!r} is not RFC 3339 with an offset") from None


def json_schema() -> dict[str, object]:
    """The event's JSON Schema (2020-12), for emitters in other languages: `schemas/usage_event.v1.json`."""
    definition = msgspec.json.schema(UsageEvent)["$defs"]["UsageEvent"]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "usage_event.v1.json",
        **with_plain_patterns(definition),
        "title": "Tollbook usage event, version 1",
        "description": "One request attempt that has ended. Unknown fields are kept and ignored.",
        "additionalProperties": True,
    }


def with_plain_patterns(schema: Any) -> Any:
    """A schema as other languages read it: no pattern looks ahead."""
    if isinstance(schema, dict):
        return {
            name: value.removesuffix(NO_LINE_FEED) if name == "pattern" and isinstance(value, str)
            else with_plain_patterns(value) for name, value in schema.items()
        }  # fmt: skip
    return [with_plain_patterns(item) for item in schema] if isinstance(schema, list) else schema


def field_at_fault(text: str) -> tuple[str, str]:
    """The field that a msgspec error is about, or "", and what it says of it."""
    found = _AT.search(text) or _MISSING.search(text)
    return found.group(1) if found else "", _AT.sub("", text)


def not_json(error: Exception) -> str:
    """In words, why bytes are no JSON."""
    if isinstance(error, RecursionError):
        return "not JSON that can be read: nested too deeply"
    return f"not JSON: {error}" if isinstance(error, msgspec.DecodeError) else "not JSON: not UTF-8"


def _check(event: UsageEvent) -> datetime:
    """The rules between fields, which types alone do not say; returns the completion."""
    if event.kind == "usage":
        if (
            event.correction_no
            or event.corrects is not None
            or event.cache_hit_tokens > event.input_tokens
            or event.cache_hit_tokens < 0
            or event.output_tokens < 0
            or event.gpu_us < 0
            or (event.engine_input_tokens or 0) < 0
            or (event.engine_output_tokens or 0) < 0
            or (event.engine_cached_tokens or 0) < 0
            or (event.status == "lost" and event.usage_source != "estimate")
        ):
            raise _usage_refusal(event)
    elif event.correction_no < 1:
        raise RefusedEvent("invalid", "correction_no", "must be at least 1 for a correction")
    elif event.corrects is None:
        raise RefusedEvent("invalid", "corrects", "a correction names the event_id it corrects")
    completed = completed_at(event)
    if completed < EARLIEST:
        raise RefusedEvent("bad_time", "timestamp", f"{event.timestamp} is before {EARLIEST:%Y-%m-%d}")
    if event.started_at is not None:
        instant(event.started_at, "started_at")
    return completed


def _usage_refusal(event: UsageEvent) -> RefusedEvent:
    """Which field of a usage event is at fault."""
    if event.correction_no:
        return RefusedEvent("invalid", "correction_no", "must be 0 for kind usage")
    if event.corrects is not None:
        return RefusedEvent("invalid", "corrects", "only a correction names what it corrects")
    for field in ("input_tokens", "output_tokens", "cache_hit_tokens", "engine_input_tokens",
                  "engine_output_tokens", "engine_cached_tokens", "gpu_us"):  # fmt: skip
        value = getattr(event, field)
        if value is not None and value < 0:
            return RefusedEvent("invalid", field, f"{value} is negative")
    if event.cache_hit_tokens <= event.input_tokens:
        return RefusedEvent(
            "invalid", "usage_source", "must be estimate for status lost: whoever finds the truth replaces it"
        )
    return RefusedEvent("invalid", "cache_hit_tokens", "must not exceed input_tokens, whose part it is")


def _later_version(version: int) -> RefusedEvent:
    return RefusedEvent("unsupported", "schema_version", f"{version}, this version reads {SCHEMA_VERSION}")


def _check_text(event: UsageEvent) -> None:
    """What only text beyond plain ASCII can break: PostgreSQL stores no NUL, and an index row has a size."""
    for field in event.__struct_fields__:
        value = getattr(event, field)
        text = "".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else value
        if isinstance(text, str) and "\0" in text:
            raise RefusedEvent("invalid", field, "holds a NUL character")
    for field, bound in KEY_BYTES.items():
        if len((getattr(event, field) or "").encode()) > bound:
            raise RefusedEvent("invalid", field, f"more than {bound} bytes of UTF-8")


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
    version = value.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        return _later_version(version)
    field, detail = field_at_fault(text)
    if field in _ENUMS and isinstance(value.get(field), str):
        return RefusedEvent("unsupported", field, f"unknown value {value[field]!r}")
    return RefusedEvent("invalid", field, detail)


if __name__ == "__main__":
    import json

    print(json.dumps(json_schema(), indent=2))
