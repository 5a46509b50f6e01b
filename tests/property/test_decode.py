"""Whatever bytes arrive, decoding gives an event or a refusal: nothing else can stop a partition."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import decode, key_of
from streams.rules.chunks import Accepted, Record, number_in, read
from tests.builders import EVENT

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [*EVENT, "status", "attempt", "kind", "labels", "seq", "gpu_us", "started_at", "schema_version"]
)


def judged(message: bytes) -> None:
    """Read as the streams do; key and refusal can be stored as text."""
    key = key_of(message)
    assert key is None or key.decode().isascii()
    found = read(Record(0, key, message, datetime(2026, 11, 1, tzinfo=UTC)))
    if isinstance(found, Accepted):
        return
    assert found.reason in ("torn", "invalid", "unsupported", "bad_time", "too_large", "future")
    assert found.tenant_id is None or len(found.tenant_id) <= 128
    assert "\0" not in found.detail
    number_in(found)


@given(st.binary())
@example(b'{"tenant_id": "a\xff"}')
@example(b"[" * 3000)
@example(b'{"tenant_id": ' + b"[" * 100_000)
@example(b'{"tenant_id": "' + b"x" * 6000 + b'"}')
@example(b"\xef\xbb\xbf{}")
def test_any_bytes_are_judged(message: bytes) -> None:
    judged(message)


@given(FIELDS, VALUES)
def test_any_value_in_any_field_is_judged(field: str, value: Any) -> None:
    judged(json.dumps(EVENT | {field: value}).encode("utf-8", "surrogatepass"))


@given(st.text(max_size=300))
def test_an_accepted_name_fits_into_an_index(name: str) -> None:
    try:
        event = decode(json.dumps(EVENT | {"model": name}).encode("utf-8", "surrogatepass"))
    except RefusedEvent:
        return
    assert 1 <= len(event.model.encode()) <= 256
