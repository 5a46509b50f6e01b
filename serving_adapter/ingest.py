"""From a file of JSON lines into Kafka, safe to repeat (`tollbook events validate | ingest`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import UsageEvent, completed_at, decode, key_of
from serving_adapter.identity import event_id_text_of, identity_of
from serving_adapter.producer import EventProducer

Progress = Callable[[int], None]
"""Told how many lines are through."""
PROGRESS_EVERY: Final = 1000


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


def check_lines(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes, UsageEvent | BadLine]]:
    """Each line that is not blank, with its number and the event it holds or what is wrong with it."""
    for number, line in enumerate(lines, 1):
        message = line.rstrip(b"\r\n")
        if not message.strip():
            continue
        try:
            yield number, message, decode(message)
        except RefusedEvent as refused:
            yield number, message, BadLine(number, refused.field, refused.reason, refused.detail)


def validate(lines: Iterable[bytes]) -> IngestResult:
    """Check without sending."""
    result = IngestResult()
    for _, _, checked in check_lines(lines):
        result.lines += 1
        if isinstance(checked, BadLine):
            result.bad.append(checked)
    return result


def ingest(
    lines: Iterable[bytes], producer: EventProducer, *, source: str, progress: Progress | None = None
) -> IngestResult:
    """Send the good lines, keyed by tenant and byte for byte as they came; name the bad ones.

    `source` becomes the CloudEvents source. Raises DeliveryFailed; repeating is safe, because events have identities.
    """
    result = IngestResult()
    for _, message, checked in check_lines(lines):
        result.lines += 1
        if isinstance(checked, BadLine):
            result.bad.append(checked)
        else:
            producer.send(checked.tenant_id.encode(), message, cloud_event_headers(checked, source))
        if progress and result.lines % PROGRESS_EVERY == 0:
            progress(result.lines)
    producer.flush()
    result.sent = result.lines - len(result.bad)
    return result


def ingest_raw(lines: Iterable[bytes], producer: EventProducer, *, progress: Progress | None = None) -> IngestResult:
    """Send every line as it is, keyed by `tenant_id` where one can be read; the streams judge it."""
    result = IngestResult()
    for line in lines:
        message = line.rstrip(b"\r\n")
        if not message.strip():
            continue
        result.lines += 1
        producer.send(key_of(message), message)
        if progress and result.lines % PROGRESS_EVERY == 0:
            progress(result.lines)
    producer.flush()
    result.sent = result.lines
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
