"""The alert's published form."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import jsonschema

from streams.alerts import DETAIL_CHARS, Alert, encode, json_schema

PUBLISHED = Path(__file__).parents[3] / "schemas" / "alert.v1.json"


def test_the_published_schema_is_the_one_the_code_uses() -> None:
    assert json.loads(PUBLISHED.read_text()) == json_schema()


def test_a_message_is_valid_and_its_detail_bounded() -> None:
    alert = Alert("gap", "r1", {"replica_id": "r1"}, "x" * 10_000, datetime(2026, 11, 1, tzinfo=UTC))
    message = json.loads(encode(alert))
    jsonschema.validate(message, json_schema(), format_checker=jsonschema.FormatChecker())
    assert (message["alert_id"], len(message["detail"])) == (str(alert.alert_id), DETAIL_CHARS)
