"""The forms of `POST /v1/events`, and what each event of a request becomes."""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import decode
from serving_adapter.identity import event_id_of, identity_of
from streams.http.http_events import (
    BATCHED,
    FOREIGN_REPLICA,
    MAX_EVENT_BYTES,
    MAX_EVENTS,
    NOT_ALLOWED,
    PLAIN,
    STRUCTURED,
    Accepted,
    BadRequest,
    Refused,
    Submission,
    answer_of,
    read_request,
    status_of,
)
from tests.builders import EVENT, event_json

ENVELOPE: dict[str, Any] = {"specversion": "1.0", "id": "own-1", "source": "/gateway/eu", "type": "tollbook.usage.v1"}
NUMBERED = {"replica_id": "gateway.1", "boot_id": "b1", "seq": 1}
ATTRIBUTES = [(f"ce-{name}".encode(), value.encode()) for name, value in ENVELOPE.items()]


def enveloped(data: Any = EVENT, **changed: Any) -> bytes:
    return json.dumps(ENVELOPE | {"data": data} | changed).encode()


def read(
    body: bytes, media_type: str = PLAIN, *more: tuple[bytes, bytes], tenants: tuple[str, ...] = ("tenant_1",)
) -> list[Submission | Refused]:
    headers = [(b"content-type", media_type.encode()), *more]
    return read_request(
        headers,
        body,
        emitter="gateway",
        may_speak_for=lambda tenant: tenant in tenants,
        may_number_as=lambda replica: replica in ("gateway", "gateway.1"),
    )


def sent(found: list[Submission | Refused]) -> Submission:
    (one,) = found
    assert isinstance(one, Submission), one
    return one


def refusal(found: list[Submission | Refused]) -> tuple[str, str]:
    (one,) = found
    assert isinstance(one, Refused), one
    return one.reason, one.field


@pytest.mark.parametrize(
    ("body", "media_type", "more"),
    [
        (enveloped(), STRUCTURED, []),
        (enveloped(), "Application/CloudEvents+JSON; charset=UTF-8", []),
        (b" [" + enveloped() + b"]", BATCHED, []),
        (event_json(), PLAIN, ATTRIBUTES),
        (enveloped(None, data_base64=b64encode(event_json()).decode()).replace(b'"data": null, ', b""), STRUCTURED, []),
    ],
)
def test_every_form_of_a_cloud_event_gives_the_same_event(
    body: bytes, media_type: str, more: list[tuple[bytes, bytes]]
) -> None:
    one = sent(read(body, media_type, *more))
    assert (one.event_id, one.source) == (str(event_id_of(identity_of(one.event))), "/gateway/eu")
    assert json.loads(one.message) == EVENT | {"source_event_id": "own-1"}
    assert decode(one.message).source_event_id == "own-1"


@pytest.mark.parametrize("body", [event_json(), b" \n[" + event_json() + b"]"])
def test_a_plain_event_goes_on_byte_for_byte(body: bytes) -> None:
    one = sent(read(body))
    assert (one.message, one.source) == (event_json(), "emitter:gateway")


@pytest.mark.parametrize("given", ["theirs", None])
def test_an_id_that_the_event_has_is_not_replaced(given: str | None) -> None:
    one = sent(read(enveloped(EVENT | {"source_event_id": given}), STRUCTURED))
    assert json.loads(one.message)["source_event_id"] == given
    assert b"own-1" not in one.message


def test_an_envelopes_id_that_is_the_events_own_is_not_kept_twice() -> None:
    event_id = sent(read(event_json())).event_id
    assert sent(read(enveloped(id=event_id), STRUCTURED)).message == json.dumps(EVENT).encode()


@given(
    own_id=st.text(min_size=1, max_size=256), event=st.fixed_dictionaries({}, optional={"labels": st.just({"a": "b"})})
)
def test_whatever_the_envelopes_id_what_is_sent_still_decodes_to_the_same_identity(
    own_id: str, event: dict[str, Any]
) -> None:
    (found,) = read(
        json.dumps(ENVELOPE | {"id": own_id, "data": EVENT | event}, ensure_ascii=False).encode(), STRUCTURED
    )
    if isinstance(found, Refused):
        assert (found.field, "\0" in own_id) == ("id", True)
        return
    decoded = decode(found.message)
    assert decoded.source_event_id == own_id
    assert identity_of(decoded) == identity_of(decode(event_json()))


SCALARS = st.none() | st.booleans() | st.integers() | st.text()
FIELDS = st.sampled_from([*EVENT, "seq", "labels"])
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS, inner, max_size=4), max_leaves=8
)


@given(data=ANYTHING)
def test_an_event_is_refused_exactly_when_a_reader_of_the_topic_would_refuse_it(data: Any) -> None:
    body = json.dumps(data).encode()
    first, second = read(b"[" + body + b"," + event_json() + b"]")
    assert isinstance(second, Submission)
    expected: Refused | None = None
    try:
        decode(body)
    except RefusedEvent as refused:
        expected = Refused(0, refused.reason, refused.field, refused.detail)
    assert first == expected or (expected is None and isinstance(first, Submission))


@given(body=st.binary(max_size=64), media_type=st.sampled_from([PLAIN, STRUCTURED, BATCHED]))
def test_any_bytes_are_refused_as_a_request_or_event_by_event(body: bytes, media_type: str) -> None:
    with contextlib.suppress(BadRequest):
        assert all(isinstance(each, Refused) for each in read(body, media_type))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (enveloped(specversion="0.3"), ("unsupported", "specversion")),
        (enveloped(id=""), ("invalid", "id")),
        (enveloped(id="a\0b"), ("invalid", "id")),
        (enveloped(id=7), ("invalid", "id")),
        (json.dumps({k: v for k, v in ENVELOPE.items() if k != "source"}).encode(), ("invalid", "source")),
        (json.dumps(ENVELOPE).encode(), ("invalid", "data")),
        (enveloped("text"), ("invalid", "")),
        (enveloped(datacontenttype="text/plain"), ("unsupported", "datacontenttype")),
        (enveloped(data_base64="e30="), ("invalid", "data_base64")),
        (enveloped(EVENT | {"output_tokens": -1}), ("invalid", "output_tokens")),
        (enveloped(EVENT | {"schema_version": 2}), ("unsupported", "schema_version")),
        (enveloped(EVENT | {"timestamp": 0}), ("bad_time", "timestamp")),
        (enveloped(EVENT | {"tenant_id": "tenant_2"}), (NOT_ALLOWED, "tenant_id")),
        (enveloped(EVENT | NUMBERED | {"replica_id": "replica-1"}), (FOREIGN_REPLICA, "replica_id")),
        (enveloped(EVENT | {"replica_id": "replica-1"}), (FOREIGN_REPLICA, "replica_id")),
        (enveloped(EVENT | {"x": "x" * MAX_EVENT_BYTES}), ("too_large", "")),
    ],
)
def test_a_cloud_event_that_does_not_fit_is_refused_by_field(body: bytes, expected: tuple[str, str]) -> None:
    assert refusal(read(body, STRUCTURED)) == expected
    (first, second) = read(b"[" + body + b"," + enveloped() + b"]", BATCHED)
    assert isinstance(first, Refused)
    assert (first.reason, first.field) == expected
    assert isinstance(second, Submission)
    assert second.index == 1


@pytest.mark.parametrize("numbering", [NUMBERED, NUMBERED | {"replica_id": "gateway"}, NUMBERED | {"replica_id": ""}])
def test_an_emitter_numbers_under_its_own_name_or_not_at_all(numbering: dict[str, Any]) -> None:
    assert json.loads(sent(read(json.dumps(EVENT | numbering).encode())).message) == EVENT | numbering


def test_headers_of_binary_mode_are_percent_encoded_utf8() -> None:
    more = [(name, b"%C3%A9" if name == b"ce-source" else value) for name, value in ATTRIBUTES]
    assert sent(read(event_json(), PLAIN, *more)).source == "é"
    bad = [(name, b"%FF" if name == b"ce-source" else value) for name, value in ATTRIBUTES]
    assert refusal(read(event_json(), PLAIN, *bad)) == ("invalid", "source")


@pytest.mark.parametrize(
    ("body", "media_type", "more", "status"),
    [
        (b"{torn", PLAIN, (), 400),
        (b"{torn", PLAIN, tuple(ATTRIBUTES), 400),
        (b"[{}", PLAIN, (), 400),
        (b"{torn", STRUCTURED, (), 400),
        (b"{}", BATCHED, (), 400),
        (b"[{}", BATCHED, (), 400),
        (b"[" + b",".join([b"{}"] * (MAX_EVENTS + 1)) + b"]", PLAIN, (), 413),
        (b"[" + b",".join([enveloped()] * (MAX_EVENTS + 1)) + b"]", BATCHED, (), 413),
        (b"[" + b",".join([b"{}"] * (MAX_EVENTS + 1)) + b"]", BATCHED, (), 413),
        (event_json(), "text/plain", (), 415),
        (event_json(), "", (), 415),
        (event_json(), PLAIN + "; charset=latin-1", (), 415),
        (event_json(), PLAIN, ((b"content-encoding", b"gzip"),), 415),
    ],
)
def test_a_request_of_which_no_event_can_be_told_is_refused_whole(
    body: bytes, media_type: str, more: tuple[tuple[bytes, bytes], ...], status: int
) -> None:
    with pytest.raises(BadRequest) as caught:
        read(body, media_type, *more)
    assert caught.value.status == status


GOOD, BAD, FOREIGN = Accepted(0, "id"), Refused(1, "invalid", "model", "…"), Refused(2, NOT_ALLOWED, "tenant_id", "…")


@pytest.mark.parametrize(
    ("results", "status"),
    [
        ([], 202),
        ([GOOD], 202),
        ([GOOD, BAD, FOREIGN], 202),
        ([BAD], 422),
        ([BAD, FOREIGN], 422),
        ([FOREIGN], 403),
        ([FOREIGN, Refused(3, FOREIGN_REPLICA, "replica_id", "…")], 403),
    ],
)
def test_the_status_says_whether_anything_was_accepted(results: list[Accepted | Refused], status: int) -> None:
    assert status_of(results) == status
    answer = answer_of(results)
    assert (answer.accepted, answer.refused) == (results.count(GOOD), len(results) - results.count(GOOD))
