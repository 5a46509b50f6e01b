"""How an attempt ended. A stream that fails midway is HTTP 200, so the engine's word comes before the status code."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from serving_adapter.events import Fault, Status


class Outcome(NamedTuple):
    """The three fields of the event."""

    status: Status
    fault: Fault
    finish_reason: str


@dataclass(slots=True)
class Ending:
    """What was seen of an attempt by the time it was over."""

    http_status: int | None = None
    answered: bool = False
    """The last byte of the answer was sent."""
    client_gone: bool = False
    """The client left before that."""
    failed: bool = False
    """Serving it raised."""
    timed_out: bool = False
    shut_down: bool = False
    let_go: bool = False
    """For one of the two the engine's server was let go, as if its client had left."""
    reasons: set[str] = field(default_factory=set)
    """Why the engine ended its sequences."""


def outcome(seen: Ending) -> Outcome:
    """The first that holds: the platform's own cuts, the client's leaving, failures, refusals, the engine's reason."""
    if seen.shut_down:
        return Outcome("aborted", "platform", "shutdown")
    if seen.timed_out:
        return Outcome("error", "platform", "timeout")
    if seen.client_gone:
        return Outcome("aborted", "client", "client_gone")
    status = seen.http_status
    if status is not None and 400 <= status < 500 and not seen.failed:
        return Outcome("rejected", "client", f"http_{status}")
    if seen.failed or status is None or status >= 500 or "error" in seen.reasons:
        return Outcome("error", "platform", "engine_error")
    if "abort" in seen.reasons or not seen.answered:
        return Outcome("aborted", "platform", "engine_abort")
    return Outcome("ok", "none", _told(seen.reasons))


def _told(reasons: Collection[str]) -> str:
    return ",".join(sorted(reasons))
