"""From a file of JSON lines into Kafka, safe to repeat (`tollbook events validate | ingest`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Final

from serving_adapter.errors import MessageTooLarge, RefusedEvent
from serving_adapter.events import MAX_MESSAGE_BYTES, UsageEvent, completed_at, decode, key_of
from serving_adapter.identity import event_id_text_of, identity_of
from serving_adapter.producer import EventProducer

Progress = Callable[[int], None]
"""Told how many lines are through."""
PROGRESS_EVERY: Final = 1000
LINE_BYTES: Final = MAX_MESSAGE_BYTES + 1024
"""Of a line that is longer only this much is read, and judged to be too large."""

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that was not sent: where, which field, why."""

    line: int
    field: str
    reason: str
    detail: str


@dataclass(slots=True)
class IngestResult:
    """What became of a file. `sent` counts lines that Kafka acknowledged."""

    lines: int = 0
    sent: int = 0
    bad: list[BadLine] = field(default_factory=list)


def bounded_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Each line that is not blank, with its number, and no more of it in memory than shows that it is too long."""
    number = 0
    while line := stream.readline(LINE_BYTES):
        number += 1
        rest = line
        while not rest.endswith(b"\n") and len(rest) == LINE_BYTES:
            rest = stream.readline(LINE_BYTES)
        if message := line.rstrip(b"\r\n").strip():
            yield number, message


def check_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes, UsageEvent | BadLine]]:
    """Each line that is not blank, with its number and the event it holds or what is wrong with it."""
    for number, message in bounded_lines(stream):
        try:
            yield number, message, decode(message)
        except RefusedEvent as refused:
            yield number, message, BadLine(number, refused.field, refused.reason, refused.detail)


def validate(stream: BinaryIO) -> IngestResult:
    """Check without sending."""
    result = IngestResult()
    for _, _, checked in check_lines(stream):
        result.lines += 1
        if isinstance(checked, BadLine):
            result.bad.append(checked)
    return result


def ingest(stream: BinaryIO, producer: EventProducer, *, source: str, progress: Progress | None = None) -> IngestResult:
    """Send the good lines, keyed by tenant and byte for byte as they came; name the bad ones.

    `source` becomes the CloudEvents source. Raises DeliveryFailed; repeating is safe, because events have identities.
    """
    result = IngestResult()
    for number, message, checked in check_lines(stream):
        result.lines += 1
        if isinstance(checked, BadLine):
            result.bad.append(checked)
        else:
            headers = cloud_event_headers(checked, source)
            _send(producer, result, number, checked.tenant_id.encode(), message, headers)
        if progress and result.lines % PROGRESS_EVERY == 0:
            progress(result.lines)
    return _ended(producer, result)


def ingest_raw(stream: BinaryIO, producer: EventProducer, *, progress: Progress | None = None) -> IngestResult:
    """Send every line as it is, keyed by `tenant_id` where one can be read; the streams judge it."""
    result = IngestResult()
    for number, message in bounded_lines(stream):
        result.lines += 1
        _send(producer, result, number, key_of(message), message, ())
        if progress and result.lines % PROGRESS_EVERY == 0:
            progress(result.lines)
    return _ended(producer, result)


def _send(
    producer: EventProducer, result: IngestResult, line: int, key: bytes | None, message: bytes, headers: Headers
) -> None:
    """Queue a message; one that Kafka does not take is a bad line, and the others are sent all the same."""
    try:
        producer.send(key, message, headers)
    except MessageTooLarge as error:
        result.bad.append(BadLine(line, "", "too_large", str(error)))


def _ended(producer: EventProducer, result: IngestResult) -> IngestResult:
    producer.flush()
    result.sent = result.lines - len(result.bad)
    return result


def cloud_event_headers(event: UsageEvent, source: str, event_id: str | None = None) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 attributes in Kafka's binary mode. `event_id` saves working it out where it is known."""
    return [
        ("ce_specversion", b"1.0"),
        ("ce_type", b"tollbook.usage.v1"),
        ("ce_source", source.encode()),
        ("ce_id", (event_id or event_id_text_of(identity_of(event))).encode()),
        ("ce_subject", event.tenant_id.encode()),
        ("ce_time", completed_at(event).isoformat().encode()),
        ("content-type", b"application/json"),
    ]
