"""Attempts in flight: what the engine runs for each, and when one is over.

An attempt has ended when its HTTP exchange is over and none of its sequences runs any more, whichever comes last: a
request that was aborted leaves the exchange before the engine has let go of it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from serving_adapter.metering.counts import Sequence, TokenCounts, count
from serving_adapter.metering.outcome import Ending
from serving_adapter.spool.records import OpenRequest

Look = Callable[[], Sequence]
"""Reads a running sequence's counts."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One request in the engine. Everything on the event loop."""

    no: int
    cache_salt: str
    engine_model: str
    adapter: bool
    on_end: Callable[[Attempt], None]
    seen: Ending = field(default_factory=Ending)
    running: dict[str, Look] = field(default_factory=dict)
    ended: list[Sequence] = field(default_factory=list)
    exchange_over: bool = False
    over: bool = False
    ttft_ms: int | None = None

    def began(self, sequence_id: str, look: Look) -> None:
        """The engine has taken in a sequence."""
        self.running[sequence_id] = look

    def finished(self, sequence_id: str) -> None:
        """A sequence has ended; its counts are final. A second time it changes nothing."""
        look = self.running.pop(sequence_id, None)
        if look is not None:
            self.ended.append(look())
            self.end_if_over()

    def close(self) -> None:
        """The HTTP exchange is over."""
        self.exchange_over = True
        self.end_if_over()

    def cut_off(self) -> None:
        """Nothing more will come: take the counts as they stand."""
        for sequence_id in list(self.running):
            self.finished(sequence_id)
        self.close()

    def end_if_over(self) -> None:
        """Tell of the end, once."""
        if self.exchange_over and not self.running and not self.over:
            self.over = True
            self.on_end(self)

    def counts(self) -> TokenCounts:
        """Tokens so far."""
        return count([*self.ended, *(look() for look in self.running.values())])

    def so_far(self) -> OpenRequest:
        """For the progress record."""
        now = self.counts()
        return OpenRequest(self.no, *now[:3], now.engine_input_tokens, now.engine_cached_tokens)


CURRENT: Final[ContextVar[Attempt | None]] = ContextVar("tollbook_attempt", default=None)
"""The attempt that the running task serves. Tasks that a handler starts inherit it."""
