"""Errors of the serving adapter."""

from __future__ import annotations

from typing import Final

DETAIL_CHARS: Final = 500
"""Of why something is refused so much is told: what was sent is anybody's, and up to a megabyte."""


def shortened(text: str, most: int = DETAIL_CHARS) -> str:
    """The text, or its beginning with an ellipsis: at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


class AdapterError(Exception):
    """Base of this folder's errors."""


class RefusedEvent(AdapterError):
    """A message that is not a usage event of this version.

    `reason` is one of the quarantine reasons `torn`, `invalid`, `unsupported`, `bad_time`, `too_large`
    (docs/spec/metering.md 2); `field` is the field at fault or `""`; `detail` says what was expected, in at most
    DETAIL_CHARS characters.
    """

    def __init__(self, reason: str, field: str, detail: str) -> None:
        detail = shortened(detail)
        super().__init__(f"{field}: {detail}" if field else detail)
        self.reason = reason
        self.field = field
        self.detail = detail


class KafkaUnavailable(AdapterError):
    """The brokers did not answer within the time allowed."""


class MessageTooLarge(AdapterError):
    """A message that Kafka does not take, with its key and headers."""


class DeliveryFailed(AdapterError):
    """Kafka refused or lost track of messages; sending the same file again is safe."""


class TopicUnfit(AdapterError):
    """The usage topic is missing, or not set as metering needs it."""


class BadMetrics(AdapterError):
    """A page of metrics that cannot be read, or not wholly."""


class EngineUnreachable(AdapterError):
    """An engine's metrics could not be fetched within the time and size allowed."""


class BootUnknown(AdapterError):
    """Nobody said which boot of the replica an engine's counters belong to."""
