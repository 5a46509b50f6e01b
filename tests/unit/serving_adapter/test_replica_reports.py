"""What a replica says about itself: refused by field, and the published schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from serving_adapter.errors import DETAIL_CHARS, RefusedEvent
from serving_adapter.replica_reports import (
    BootReport,
    EngineCounters,
    EngineModel,
    Farewell,
    Heartbeat,
    Report,
    Total,
    decode,
    encode,
    json_schema,
)

PUBLISHED = Path(__file__).parents[3] / "schemas" / "replica.v1.json"
AT = "2026-11-01T12:00:00Z"
HEARTBEAT: dict[str, Any] = {
    "type": "heartbeat", "replica_id": "r1", "boot_id": "b1", "at": AT, "last_seq": 3, "started": 5, "ended": 3,
    "open": 2, "clock_offset_ms": -20,
    "totals": [{"tenant_id": "t", "model": "m", "events": 3, "input_tokens": 30, "output_tokens": 9}],
}  # fmt: skip
TOTAL = HEARTBEAT["totals"][0]


def message(**changed: Any) -> bytes:
    return json.dumps(HEARTBEAT | changed).encode()


def refusal(raw: bytes) -> RefusedEvent:
    with pytest.raises(RefusedEvent) as caught:
        decode(raw)
    return caught.value


@pytest.mark.parametrize(
    "report",
    [
        BootReport(replica_id="r1", boot_id="b1", at=AT),
        Heartbeat(replica_id="r1", boot_id="b1", at=AT, last_seq=3, started=5, ended=3, open=2, clock_offset_ms=-20,
                  totals=[Total(tenant_id="t", model="m", events=3, input_tokens=30, output_tokens=9)]),
        Farewell(replica_id="r1", boot_id="b1", at=1793534400000, last_seq=3),
        EngineCounters(replica_id="r1", boot_id="b1", at=AT, since=AT, from_zero=False,
                       models=[EngineModel(model="m", prompt_tokens=30, generation_tokens=9)]),
        EngineCounters(replica_id="r1", boot_id="b1", at=AT, since=AT,
                       models=[EngineModel(model="m", prompt_tokens=30, generation_tokens=9, cached_tokens=0,
                                           finished={"stop": 2})]),
    ],
)  # fmt: skip
def test_what_was_encoded_decodes_to_the_same_report(report: Report) -> None:
    assert decode(encode(report)) == report
    jsonschema.validate(json.loads(encode(report)), json_schema())


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"type": "party"}, "unsupported", "type"),
        ({"type": 7}, "invalid", "type"),
        ({"replica_id": ""}, "invalid", "replica_id"),
        ({"boot_id": None}, "invalid", "boot_id"),
        ({"boot_id": "a\0b"}, "invalid", "boot_id"),
        ({"last_seq": -1}, "invalid", "last_seq"),
        ({"last_seq": 2**53}, "invalid", "last_seq"),
        ({"open": 1.5}, "invalid", "open"),
        ({"clock_offset_ms": "off"}, "invalid", "clock_offset_ms"),
        ({"at": "noon"}, "invalid", "at"),
        ({"at": "2026-11-01T12:00:00"}, "invalid", "at"),
        ({"at": 5}, "bad_time", "at"),
        ({"totals": [TOTAL | {"tenant_id": "two words"}]}, "invalid", "totals"),
        ({"totals": [TOTAL | {"model": "a\0b"}]}, "invalid", "totals"),
        ({"totals": [TOTAL] * 4001}, "invalid", "totals"),
    ],
)
def test_a_bad_field_is_refused_by_name(changed: dict[str, Any], reason: str, field: str) -> None:
    refused = refusal(message(**changed))
    assert (refused.reason, refused.field) == (reason, field)


@pytest.mark.parametrize("field", ["type", "replica_id", "boot_id", "at", "last_seq", "started", "ended", "open"])
def test_a_missing_field_is_refused_by_name(field: str) -> None:
    refused = refusal(json.dumps({name: value for name, value in HEARTBEAT.items() if name != field}).encode())
    assert (refused.reason, refused.field) == ("invalid", field)


@pytest.mark.parametrize(
    ("raw", "reason"), [(b"{", "torn"), (b"", "torn"), (b"[]", "invalid"), (message(x="y" * 1_000_001), "too_large")]
)
def test_what_is_no_report_is_refused(raw: bytes, reason: str) -> None:
    assert refusal(raw).reason == reason


COUNTERS: dict[str, Any] = {
    "type": "engine_counters", "replica_id": "r1", "boot_id": "b1", "at": AT, "since": AT,
    "models": [{"model": "m", "prompt_tokens": 3, "generation_tokens": 1}],
}  # fmt: skip
MODEL = COUNTERS["models"][0]


@pytest.mark.parametrize(
    ("changed", "reason", "field"),
    [
        ({"schema_version": 2}, "unsupported", "schema_version"),
        ({"schema_version": 0}, "invalid", "schema_version"),
        ({"since": "noon"}, "invalid", "since"),
        ({"models": [MODEL, MODEL]}, "invalid", "models"),
        ({"models": [MODEL | {"prompt_tokens": 1.5}]}, "invalid", "models"),
        ({"models": [MODEL | {"finished": {"a\0b": 1}}]}, "invalid", "models"),
        ({"models": [MODEL | {"finished": {str(i): 1 for i in range(33)}}]}, "invalid", "models"),
    ],
)
def test_engine_counters_that_cannot_be_right_are_refused_by_name(
    changed: dict[str, Any], reason: str, field: str
) -> None:
    decode(json.dumps(COUNTERS).encode())
    refused = refusal(json.dumps(COUNTERS | changed).encode())
    assert (refused.reason, refused.field) == (reason, field)


def test_a_number_beyond_any_that_is_read_is_an_invalid_field() -> None:
    refused = refusal(message(last_seq=0).replace(b'"last_seq": 0', b'"last_seq": ' + b"1" * 400))
    assert (refused.reason, refused.field) == ("invalid", "last_seq")


def test_why_a_large_report_is_refused_is_told_shortly() -> None:
    refused = refusal(message(type="x" * 900_000))
    assert (refused.reason, refused.field, len(refused.detail)) == ("unsupported", "type", DETAIL_CHARS)


def test_unknown_fields_are_ignored() -> None:
    assert decode(message(colour="blue")) == decode(message())


def test_the_published_schema_is_the_one_the_code_uses() -> None:
    text = PUBLISHED.read_text()
    assert json.loads(text) == json_schema()
    assert '"pattern"' in text
    assert "(?" not in text, "RE2 and others look neither ahead nor behind"
