"""Decoding a message: what is refused, by which field, and for which reason."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from serving_adapter.errors import DETAIL_CHARS, RefusedEvent
from serving_adapter.events import UsageEvent, completed_at, decode, encode, json_schema

SCHEMAS = Path(__file__).parents[3] / "schemas"
PUBLISHED: dict[str, Any] = {
    "event_id": "evt-1", "tenant_id": "tenant_123", "model": "llama", "input_tokens": 10, "output_tokens": 5,
    "cache_hit_tokens": 4, "region": "us-east", "duration_ms": 20, "timestamp": "2026-10-31T23:59:59.5Z",
    "request_id": "req-1",
}  # fmt: skip


def message(**changed: Any) -> bytes:
    return json.dumps(PUBLISHED | changed).encode()


def refusal(raw: bytes) -> RefusedEvent:
    with pytest.raises(RefusedEvent) as caught:
        decode(raw)
    return caught.value


def test_the_platforms_published_event_is_valid_as_it_is() -> None:
    event = decode(message())
    assert (event.attempt, event.kind, event.status, event.usage_source) == (1, "usage", "ok", "engine")
    assert completed_at(event) == datetime(2026, 10, 31, 23, 59, 59, 500_000, UTC)


def test_what_was_encoded_decodes_to_the_same_event() -> None:
    event = decode(message(labels={"team": "a"}, gpu_us=7, seq=3))
    assert decode(encode(event)) == event


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [
        ("2026-10-31T23:59:59.9999999Z", datetime(2026, 10, 31, 23, 59, 59, 999_999, UTC)),
        ("2026-11-01T01:59:59.999999999+02:00", datetime(2026, 10, 31, 23, 59, 59, 999_999, UTC)),
        ("2026-11-01t00:00:00z", datetime(2026, 11, 1, tzinfo=UTC)),
        (1793491199999, datetime(2026, 10, 31, 23, 59, 59, 999_000, UTC)),
    ],
)
def test_times_are_cut_off_at_the_microsecond_and_never_rounded_up(timestamp: Any, expected: datetime) -> None:
    assert completed_at(decode(message(timestamp=timestamp))) == expected


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"output_tokens": -1}, "invalid", "output_tokens"),
        ({"output_tokens": 1.5}, "invalid", "output_tokens"),
        ({"output_tokens": 2**31}, "invalid", "output_tokens"),
        ({"output_tokens": True}, "invalid", "output_tokens"),
        ({"output_tokens": None}, "invalid", "output_tokens"),
        ({"cache_hit_tokens": 11}, "invalid", "cache_hit_tokens"),
        ({"tenant_id": "two words"}, "invalid", "tenant_id"),
        ({"tenant_id": "tenant_1\n"}, "invalid", "tenant_id"),
        ({"request_id": "_x"}, "invalid", "request_id"),
        ({"model": ""}, "invalid", "model"),
        ({"model": "a\0b"}, "invalid", "model"),
        ({"labels": {"k": "a\0b"}}, "invalid", "labels"),
        ({"labels": {"k": 1}}, "invalid", "labels"),
        ({"timestamp": "2026-10-31T23:59:59"}, "invalid", "timestamp"),
        ({"timestamp": "2026-02-30T00:00:00Z"}, "invalid", "timestamp"),
        ({"timestamp": "2026-W44-6T00:00:00Z"}, "invalid", "timestamp"),
        ({"timestamp": "20261031T235959.000Z"}, "invalid", "timestamp"),
        ({"timestamp": "0001-01-01T00:00:00+10:00"}, "invalid", "timestamp"),
        ({"timestamp": "2019-12-31T23:59:59.999Z"}, "bad_time", "timestamp"),
        ({"timestamp": 5}, "bad_time", "timestamp"),
        ({"started_at": "noon"}, "invalid", "started_at"),
        ({"attempt": 0}, "invalid", "attempt"),
        ({"correction_no": 1}, "invalid", "correction_no"),
        ({"corrects": "05a57c93-2f15-5a80-ac63-8048b38e1de1"}, "invalid", "corrects"),
        ({"kind": "correction"}, "invalid", "correction_no"),
        ({"kind": "correction", "correction_no": 1}, "invalid", "corrects"),
        ({"status": "lost"}, "invalid", "usage_source"),
        ({"status": "lost", "usage_source": "gateway"}, "invalid", "usage_source"),
        ({"status": "excellent"}, "unsupported", "status"),
        ({"schema_version": 2}, "unsupported", "schema_version"),
        ({"schema_version": 2, "status": 7}, "unsupported", "schema_version"),
    ],
)
def test_a_bad_field_is_refused_by_name(changed: dict[str, Any], reason: str, field: str) -> None:
    refused = refusal(message(**changed))
    assert (refused.reason, refused.field) == (reason, field)


@pytest.mark.parametrize("field", ["tenant_id", "request_id", "model", "input_tokens", "output_tokens", "timestamp"])
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    event = {name: value for name, value in PUBLISHED.items() if name != field}
    refused = refusal(json.dumps(event).encode())
    assert (refused.reason, refused.field) == ("invalid", field)


@pytest.mark.parametrize("raw", [b"", b"{", b'{"model": 1', b"\xff\xfe", b'{"a": 1} x', b'{"a": "\\ud800"}'])
def test_what_is_not_json_is_torn(raw: bytes) -> None:
    assert refusal(raw).reason == "torn"


@pytest.mark.parametrize("raw", [b"[]", b"7", b"null", b'"text"'])
def test_json_that_is_no_object_is_invalid(raw: bytes) -> None:
    assert refusal(raw).reason == "invalid"


def test_a_message_of_a_megabyte_is_too_large() -> None:
    assert refusal(message(finish_reason="x" * 1_000_001)).reason == "too_large"


@pytest.mark.parametrize("number", ["1" * 400, "1e400"])
def test_a_number_beyond_any_that_is_read_is_an_invalid_field(number: str) -> None:
    refused = refusal(message(input_tokens=0).replace(b'"input_tokens": 0', f'"input_tokens": {number}'.encode()))
    assert (refused.reason, refused.field) == ("invalid", "input_tokens")


def test_why_a_large_message_is_refused_is_told_shortly() -> None:
    refused = refusal(message(kind="\x7f" * 100_000))
    assert (refused.reason, refused.field) == ("unsupported", "kind")
    assert refused.detail.startswith("unknown value '\\x7f")
    assert len(refused.detail) == DETAIL_CHARS


def test_unknown_fields_are_ignored() -> None:
    assert decode(message(colour="blue")) == decode(message())


def test_the_published_schema_is_the_one_the_code_uses() -> None:
    text = (SCHEMAS / "usage_event.v1.json").read_text()
    assert json.loads(text) == json_schema()
    assert '"pattern"' in text
    assert "(?" not in text, "RE2 and others look neither ahead nor behind"


@pytest.mark.parametrize(
    ("changed", "valid"),
    [
        ({}, True),
        ({"timestamp": 1793491199999}, True),
        ({"colour": "blue"}, True),
        ({"tenant_id": "two words"}, False),
        ({"input_tokens": "10"}, False),
        ({"timestamp": "yesterday"}, False),
        ({"status": "excellent"}, False),
    ],
)
def test_the_published_schema_agrees_with_the_decoder(changed: dict[str, Any], valid: bool) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(PUBLISHED | changed) is valid
    if valid:
        decode(message(**changed))
    else:
        refusal(message(**changed))


def test_every_field_of_the_interface_is_there() -> None:
    names = {field.name for field in msgspec.structs.fields(UsageEvent)}
    listed = """
        schema_version event_id source_event_id tenant_id request_id attempt kind correction_no corrects model
        model_revision adapter adapter_revision input_tokens output_tokens cache_hit_tokens engine_input_tokens
        engine_output_tokens engine_cached_tokens region tier pool started_at timestamp duration_ms ttft_ms queue_ms
        gpu_us status fault finish_reason purpose usage_source replica_id boot_id seq parent_request_id
        client_request_id api_key_id labels"""
    assert names == set(listed.split())
