"""What may be answered before it is written: out of a slice that the service has granted itself. Pure.

An answer that waits for its own commit waits for the disk. So the service keeps an escrow for each busy tenant: a slice
of its quotas for any model, in the journal before anything is answered out of it. An admission whose bound fits into
what is left of it is answered at once, and written with the next batch; then its bound is free for others. If the
process ends in between, whoever owns the shard next knows how much was answered at most, and holds that until none of
it can run any more, as of any slice whose holder is gone (docs/decisions/0071-answers-before-their-commit.md).

While its owner lives it holds nothing: each admission counts from the moment at which it is decided.
"""

from __future__ import annotations

from typing import Final

from streams.quotas.entries import Reserved
from streams.quotas.granting import Slice

ADMITS_US: Final = 60_000_000
"""So long after it was granted, or renewed, something is answered out of it."""
PAUSE_US: Final = 1_000_000
"""After it ended, or there was no room for it."""
LARGEST: Final = 2**40
"""Of each of its numbers, as of any slice that is asked for: where no quota bounds it, the journal's integers would."""


class Escrow:
    """One tenant's."""

    __slots__ = ("input_tokens", "is_asked_for", "output_tokens", "requests", "size", "until")

    def __init__(self) -> None:
        self.size = Slice()
        """As the journal has it, once it is written."""
        self.requests = self.input_tokens = self.output_tokens = 0
        """Left beside what was answered and is not written yet."""
        self.until = 0
        self.is_asked_for = False
        """Whether it is about to be larger, or longer."""

    def take(self, entry: Reserved, now: int) -> bool:
        """Whether an admission may be answered now; then its bound is taken out until it is written."""
        if (
            now >= self.until
            or self.requests < 1
            or self.input_tokens < entry.input_tokens
            or self.output_tokens < entry.output_cap
        ):
            return False
        self.requests -= 1
        self.input_tokens -= entry.input_tokens
        self.output_tokens -= entry.output_cap
        return True

    def put_back(self, entry: Reserved) -> None:
        """It is written."""
        self.requests += 1
        self.input_tokens += entry.input_tokens
        self.output_tokens += entry.output_cap

    def wants_longer(self, now: int) -> bool:
        """Whether it is to be renewed: half of its time is over."""
        return not self.is_asked_for and now > self.until - ADMITS_US // 2

    def larger(self, entry: Reserved) -> Slice:
        """Twice as much as now, and this: a few such steps find as much as comes within a commit."""
        more = (1, entry.input_tokens, entry.output_cap, 1)
        return Slice(*(min(2 * (was + new), LARGEST) for was, new in zip(self.size, more, strict=True)))

    def missing(self, size: Slice, entry: Reserved) -> Slice | None:
        """What is to be added so that it is of that size; None if this admission would not fit then either."""
        more = Slice(*(max(a - b, 0) for a, b in zip(size, self.size, strict=True)))
        fits = (
            self.requests + min(more.requests, more.slots) > 0
            and self.input_tokens + more.input_tokens >= entry.input_tokens
            and self.output_tokens + more.output_tokens >= entry.output_cap
        )
        return more if fits else None

    def ask(self, more: Slice) -> None:
        """So much more is in the batch to come."""
        self.size = Slice(*map(sum, zip(self.size, more, strict=True)))
        self.is_asked_for = True

    def granted(self, more: Slice, until: int) -> None:
        """That is written."""
        self.requests += min(more.requests, more.slots)
        self.input_tokens += more.input_tokens
        self.output_tokens += more.output_tokens
        self.until, self.is_asked_for = until, False
