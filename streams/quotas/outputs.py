"""How long a tenant's answers were lately. Pure."""

from __future__ import annotations

from collections import deque
from typing import Final

KEPT: Final = 128
KNOWN_FROM: Final = 16
"""Fewer answers say nothing."""
HIGH: Final = 0.95


class RecentOutputs:
    """Output tokens of the last answers, and two quantiles of them, worked out anew every few answers."""

    __slots__ = ("_high", "_median", "_since", "_values")

    def __init__(self) -> None:
        self._values: deque[int] = deque(maxlen=KEPT)
        self._since = 0
        self._high: int | None = None
        self._median: int | None = None

    def add(self, output_tokens: int) -> None:
        """Note an answer."""
        self._values.append(output_tokens)
        self._since += 1
        if self._since >= KNOWN_FROM:
            self._since = 0
            ordered = sorted(self._values)
            self._high = ordered[int(len(ordered) * HIGH)]
            self._median = ordered[len(ordered) // 2]

    def expected(self, at_most: int) -> int:
        """A high quantile, but not more than `at_most`, which also stands for what is not known."""
        return at_most if self._high is None else min(self._high, at_most)

    def median(self, at_most: int) -> int:
        """The median, but not more than `at_most`, which also stands for what is not known."""
        return at_most if self._median is None else min(self._median, at_most)
