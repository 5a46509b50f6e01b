"""What a shard has done since it was started. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """What happened since the start, for metrics."""

    admitted: int = 0
    answered_at_once: int = 0
    """Of the admitted, what was told before it was written, as an escrow stood for it."""
    shrunk: int = 0
    refused: int = 0
    settled: int = 0
    confirmed: int = 0
    unreserved: int = 0
    """Usage events that nobody had reserved."""
    expired: int = 0
    over: int = 0
    """Tokens used beyond what was reserved."""
    unasked: int = 0
    findings: int = 0
    """Attempts that were settled and not confirmed within the bound."""
    never_confirmed: int = 0
    """Of these, those whose usage event had not come when the periods that they counted in were over."""
