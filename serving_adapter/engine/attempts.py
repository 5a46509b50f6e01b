"""Attempts in flight: what the engine runs for each, and when one is over.

An attempt has ended when its HTTP exchange is over and none of its sequences runs any more, whichever comes last: a
request that was aborted leaves the exchange before the engine has let go of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final

from serving_adapter.events import UsageSource
from serving_adapter.metering.counts import OnGap, Sequence, TokenCounts, count, no_gap
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
    on_wait: Callable[[Attempt], None] = lambda _: None
    on_gap: OnGap = no_gap
    """Hears how long each further token took."""
    source: UsageSource = "engine"
    """Who counted."""
    await_gpu: Callable[[str, Attempt], None] | None = None
    """Where the engine tells the GPU time of its sequences: announces one that is to come."""
    gpu_us: int = 0
    """Of its sequences whose time is final."""
    gpu_so_far: dict[str, int] = field(default_factory=dict)
    """Of the others, as the engine told it last."""
    gpu_awaited: set[str] = field(default_factory=set)
    gpu_late: bool = False
    """Nobody waits for it any longer: what comes now is a correction."""
    read_on: Callable[[], Awaitable[None]] | None = None
    """Where counts are read from the answer: waits until it has stated them, for who has left; not for ever."""
    let_go: Callable[[], None] = lambda: None
    """Ends its exchange, if that goes on: the engine answers nothing more."""
    seen: Ending = field(default_factory=Ending)
    running: dict[str, Look] = field(default_factory=dict)
    ended: list[Sequence] = field(default_factory=list)
    exchange_over: bool = False
    over: bool = False

    def began(self, sequence_id: str, look: Look) -> None:
        """The engine has taken in a sequence."""
        self.running[sequence_id] = look
        if self.await_gpu is not None:
            self.gpu_awaited.add(sequence_id)
            self.await_gpu(sequence_id, self)

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

    def took(self, sequence_id: str, gpu_us: int) -> None:
        """A sequence's GPU time is final."""
        self.gpu_us += gpu_us
        self.gpu_so_far.pop(sequence_id, None)
        self.gpu_awaited.discard(sequence_id)
        self.end_if_over()

    def without_gpu(self) -> None:
        """Wait no longer for GPU times."""
        self.gpu_late = True
        self.end_if_over()

    def cut_off(self) -> None:
        """Nothing more will come: take the counts as they stand."""
        self.gpu_late = True
        for sequence_id in list(self.running):
            self.finished(sequence_id)
        self.close()

    def end_if_over(self) -> None:
        """Tell of the end, once; before that, that only GPU time is missing."""
        if self.over or self.running or not self.exchange_over:
            return
        if self.gpu_awaited and not self.gpu_late:
            self.on_wait(self)
        else:
            self.over = True
            self.on_end(self)

    def counts(self) -> TokenCounts:
        """Tokens so far."""
        return count([*self.ended, *(look() for look in self.running.values())])

    def so_far(self) -> OpenRequest:
        """For the progress record."""
        now = self.counts()
        return OpenRequest(self.no, *now[:3], now.engine_input_tokens, now.engine_cached_tokens, self.known_gpu_us)

    @property
    def is_at_work(self) -> bool:
        """Whether anything of it goes on but the wait for its GPU time."""
        return bool(self.running) or not self.exchange_over

    @property
    def known_gpu_us(self) -> int:
        """All that the engine has told of its GPU time."""
        return self.gpu_us + sum(self.gpu_so_far.values())


CURRENT: Final[ContextVar[Attempt | None]] = ContextVar("tollbook_attempt", default=None)
"""The attempt that the running task serves. Tasks that a handler starts inherit it."""
