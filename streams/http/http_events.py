"""What a request to `POST /v1/events` holds: events to send, and refusals with their reason. Values in, values out.

Four forms are read (CloudEvents 1.0 over HTTP): structured, batched, binary, and plain JSON, an event or an array of
events. `data` is the usage event, and goes to Kafka byte for byte as it came, but for one addition: a CloudEvent's `id`
is kept as `source_event_id` where the event has none, because an emitter's own id is worth keeping and never identity
(docs/spec/metering.md 1.1).
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Meta

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import UNREADABLE, UsageEvent, decode, not_json
from serving_adapter.identity import event_id_text_of, identity_of

MAX_EVENTS: Final = 1000
"""Events a request (docs/spec/metering.md 5)."""
MAX_EVENT_BYTES: Final = 256 * 1024
"""Bytes an event: far above its own 20 KB at most, far below what a Kafka message may be, headers included."""
SPEC_VERSION: Final = "1.0"
NOT_ALLOWED: Final = "tenant_not_allowed"
"""The reason of an event whose tenant the emitter may not speak for."""
FOREIGN_REPLICA: Final = "replica_not_allowed"
"""The reason of an event that is numbered under a name which is not the emitter's own: it could fill another's gap, or
claim numbers that never come. All other reasons are those of the quarantine."""

CloudEventId = Annotated[str, Meta(min_length=1, max_length=256)]
CloudEventSource = Annotated[str, Meta(min_length=1, max_length=1024)]
CloudEventType = Annotated[str, Meta(min_length=1, max_length=256)]


class CloudEvent(msgspec.Struct, frozen=True):
    """The envelope. `type`, `subject` and `time` are not looked at: what is written is taken from the event itself."""

    specversion: str
    id: CloudEventId
    source: CloudEventSource
    type: CloudEventType
    datacontenttype: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None


class Accepted(msgspec.Struct, frozen=True, tag="accepted", tag_field="status"):
    """An event that is in Kafka: its place in the request, and its id."""

    index: int
    event_id: str


class Refused(msgspec.Struct, frozen=True, tag="refused", tag_field="status"):
    """An event that was not sent: which field (or `""`), and why."""

    index: int
    reason: str
    field: str
    detail: str


Result = Accepted | Refused


class Answer(msgspec.Struct, frozen=True):
    """What the emitter is told: in the order of the request, a result for each event."""

    accepted: int
    refused: int
    results: list[Result]


class Submission(msgspec.Struct, frozen=True, gc=False):
    """An event to be sent: what Kafka gets, what is known about it, who says so."""

    index: int
    message: bytes
    event: UsageEvent
    event_id: str
    source: str


class BadRequest(Exception):
    """A request of which no event can be told: HTTP status, a code for machines, a text for people."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


_decode_one = msgspec.json.Decoder(CloudEvent).decode
_decode_many = msgspec.json.Decoder(list[CloudEvent]).decode
_split = msgspec.json.Decoder(list[msgspec.Raw]).decode
_to_json = msgspec.json.Encoder().encode
_AT_FIELD: Final = re.compile(r" - at `\$\.?([^`\[.]*)[^`]*`$")
_MISSING: Final = re.compile(r"required field `([^`]+)`")
_JSON_TYPE: Final = re.compile(r"(application|text)/([a-z0-9.!#$&^_-]+\+)?json")

STRUCTURED: Final = "application/cloudevents+json"
BATCHED: Final = "application/cloudevents-batch+json"
PLAIN: Final = "application/json"


def read_request(
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes,
    *,
    emitter: str,
    may_speak_for: Callable[[str], bool],
    may_number_as: Callable[[str], bool],
) -> list[Submission | Refused]:
    """The events of a request, in order; those that must not be sent as refusals.

    `headers` have lower-case names (ASGI). `emitter` names the source of events that come without an envelope; the
    other two say for which tenants, and under which replica's name, it may send.
    Raises BadRequest: 400 not JSON or not in the form that its content type says, 413 too many events, 415 another
    content type.
    """
    media_type = _media_type(headers)
    reader = _Reader(emitter, may_speak_for, may_number_as)
    if media_type == STRUCTURED:
        return [_whole(reader.structured(0, body))]
    if media_type == BATCHED:
        return reader.batched(body)
    if any(name == b"ce-specversion" for name, _ in headers):
        return [_whole(reader.binary(headers, body))]
    if body.lstrip(b" \t\r\n").startswith(b"["):
        return [reader.plain(index, message) for index, message in enumerate(_elements(body))]
    return [_whole(reader.plain(0, body))]


def status_of(results: Sequence[Result]) -> int:
    """The answer's HTTP status: 202 if anything was accepted (or nothing was sent), else 403 or 422.

    403 says that nothing stood in the way but for whom, and under which name, the emitter may send.
    """
    if not results or any(isinstance(result, Accepted) for result in results):
        return 202
    return 403 if all(isinstance(r, Refused) and r.reason in (NOT_ALLOWED, FOREIGN_REPLICA) for r in results) else 422


def answer_of(results: list[Result]) -> Answer:
    """The answer's body."""
    accepted = sum(isinstance(result, Accepted) for result in results)
    return Answer(accepted, len(results) - accepted, results)


class _Reader:
    """Reads the events of one request for one emitter."""

    def __init__(
        self, emitter: str, may_speak_for: Callable[[str], bool], may_number_as: Callable[[str], bool]
    ) -> None:
        self._emitter = emitter
        self._may_speak_for = may_speak_for
        self._may_number_as = may_number_as

    def structured(self, index: int, text: bytes | msgspec.Raw) -> Submission | Refused:
        """One CloudEvent as JSON."""
        try:
            envelope = _decode_one(text)
        except msgspec.ValidationError as error:
            return _bad_attribute(index, str(error))
        except UNREADABLE as error:
            return Refused(index, "torn", "", not_json(error))
        return self._enveloped(index, envelope)

    def batched(self, body: bytes) -> list[Submission | Refused]:
        """A JSON array of CloudEvents; where one does not fit, each is read alone, so that the others are not lost."""
        try:
            envelopes = _decode_many(body)
        except msgspec.ValidationError:
            return [self.structured(index, text) for index, text in enumerate(_elements(body))]
        except UNREADABLE as error:
            raise _torn(error) from None
        _refuse_too_many(len(envelopes))
        return [self._enveloped(index, envelope) for index, envelope in enumerate(envelopes)]

    def binary(self, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> Submission | Refused:
        """Attributes in `ce-` headers, percent-encoded UTF-8; the body is the data."""
        attributes = {}
        for name, value in headers:
            if name.startswith(b"ce-"):
                attribute = name[3:].decode("latin-1")
                try:
                    attributes[attribute] = unquote_to_bytes(value).decode()
                except UnicodeDecodeError:
                    return Refused(0, "invalid", attribute, "the header is not percent-encoded UTF-8")
        try:
            envelope = msgspec.convert(attributes, CloudEvent, strict=False)
        except msgspec.ValidationError as error:
            return _bad_attribute(0, str(error))
        wrong = _wrong_with(envelope)
        return Refused(0, *wrong) if wrong else self._event(0, body, envelope)

    def plain(self, index: int, message: bytes | msgspec.Raw) -> Submission | Refused:
        """A usage event without an envelope."""
        return self._event(index, bytes(message), None)

    def _enveloped(self, index: int, envelope: CloudEvent) -> Submission | Refused:
        wrong = _wrong_with(envelope)
        if wrong:
            return Refused(index, *wrong)
        if envelope.datacontenttype is not None and not _is_json(envelope.datacontenttype):
            return Refused(index, "unsupported", "datacontenttype", "data must be JSON")
        message = bytes(envelope.data)
        if envelope.data_base64 is not None:
            if message:
                return Refused(index, "invalid", "data_base64", "there is data as well: one of them only")
            try:
                message = b64decode(envelope.data_base64, validate=True)
            except (binascii.Error, ValueError):
                return Refused(index, "invalid", "data_base64", "not base64")
        elif not message:
            return Refused(index, "invalid", "data", "missing: it is the usage event")
        return self._event(index, message, envelope)

    def _event(self, index: int, message: bytes, envelope: CloudEvent | None) -> Submission | Refused:
        if len(message) > MAX_EVENT_BYTES:
            return Refused(index, "too_large", "", f"{len(message)} bytes, at most {MAX_EVENT_BYTES}")
        try:
            event = decode(message)
        except RefusedEvent as refused:
            return Refused(index, refused.reason, refused.field, refused.detail)
        if not self._may_speak_for(event.tenant_id):
            return Refused(index, NOT_ALLOWED, "tenant_id", f"this key may not speak for {event.tenant_id}")
        if event.replica_id and not self._may_number_as(event.replica_id):
            own = f"this key sends as replica {self._emitter}, {self._emitter}.… or {self._emitter}/… alone"
            return Refused(index, FOREIGN_REPLICA, "replica_id", own)
        event_id = event_id_text_of(identity_of(event))
        if envelope is None:
            return Submission(index, message, event, event_id, f"emitter:{self._emitter}")
        if event.source_event_id is None and envelope.id != event_id:
            message = _with_source_event_id(message, envelope.id)
        return Submission(index, message, event, event_id, envelope.source)


def _whole(found: Submission | Refused) -> Submission | Refused:
    """The only event of a request: if it is not JSON, the request is not."""
    if isinstance(found, Refused) and found.reason == "torn":
        raise BadRequest(400, "torn", found.detail)
    return found


def _with_source_event_id(message: bytes, own_id: str) -> bytes:
    """The event with the emitter's own id added, everything else byte for byte as it came.

    An event that says `"source_event_id": null` in so many words is left alone: of two equal names the later counts.
    """
    if b'"source_event_id"' in message:
        return message
    return b'{"source_event_id":' + _to_json(own_id) + b"," + message.lstrip(b" \t\r\n")[1:]


def _wrong_with(envelope: CloudEvent) -> tuple[str, str, str] | None:
    """Reason, field and detail of an envelope that fits its types and is wrong all the same."""
    if envelope.specversion != SPEC_VERSION:
        return "unsupported", "specversion", f"must be {SPEC_VERSION}"
    if "\0" in envelope.id:
        return "invalid", "id", "holds a NUL character"
    return None


def _bad_attribute(index: int, text: str) -> Refused:
    found = _AT_FIELD.search(text) or _MISSING.search(text)
    return Refused(index, "invalid", found.group(1) if found else "", "CloudEvent: " + _AT_FIELD.sub("", text))


def _elements(body: bytes) -> list[msgspec.Raw]:
    """The elements of a JSON array."""
    try:
        elements = _split(body)
    except msgspec.ValidationError:
        raise BadRequest(400, "invalid", "the body of a batch must be a JSON array") from None
    except UNREADABLE as error:
        raise _torn(error) from None
    _refuse_too_many(len(elements))
    return elements


def _refuse_too_many(events: int) -> None:
    if events > MAX_EVENTS:
        raise BadRequest(413, "too_many_events", f"{events} events, at most {MAX_EVENTS} a request")


def _torn(error: Exception) -> BadRequest:
    return BadRequest(400, "torn", not_json(error))


def _media_type(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The content type, without parameters, if it can be read. Raises BadRequest 415."""
    given = {name: value.decode("latin-1") for name, value in headers if name.startswith(b"content-")}
    if given.get(b"content-encoding", "identity") != "identity":
        raise BadRequest(415, "unsupported_encoding", "send the body without Content-Encoding")
    media_type, _, parameters = given.get(b"content-type", "").partition(";")
    media_type = media_type.strip().lower()
    charset = re.search(r"charset\s*=\s*\"?([^\s;\"]+)", parameters, re.IGNORECASE)
    if media_type not in (STRUCTURED, BATCHED, PLAIN) or (charset and charset.group(1).lower() != "utf-8"):
        raise BadRequest(
            415, "unsupported_media_type", f"Content-Type must be {STRUCTURED}, {BATCHED} or {PLAIN}, in UTF-8"
        )
    return media_type


def _is_json(media_type: str) -> bool:
    return _JSON_TYPE.fullmatch(media_type.partition(";")[0].strip().lower()) is not None
