"""When the service is not asked at all, because it did not answer lately. Pure; seconds of a monotonic clock."""

from __future__ import annotations

from typing import Final

FAILING_FOR_S: Final = 0.05
"""From the first to the last of the failures that open it, at least: calls that one stall meets together are not many
failures."""
FIRST_PAUSE_S: Final = 0.05


class Breaker:
    """Opens after some failures over a while without a success; lets one call through after a pause, which is twice as
    long each time, and closes when that succeeds."""

    __slots__ = ("_failing_since", "_failures", "_failures_to_open", "_longest_pause", "_open_until", "_pause",
                 "_probing", "opened")  # fmt: skip

    def __init__(self, failures_to_open: int, longest_pause: float) -> None:
        self._failures_to_open = failures_to_open
        self._longest_pause = longest_pause
        self._failures = 0
        self._failing_since = 0.0
        self._pause = 0.0
        self._open_until: float | None = None
        self._probing = False
        self.opened = 0
        """How often it has opened."""

    @property
    def is_open(self) -> bool:
        """Whether calls are held back."""
        return self._open_until is not None

    def may_call(self, now: float) -> bool:
        """Whether to ask the service. While open: one call at a time, after the pause."""
        if self._open_until is None:
            return True
        if now < self._open_until or self._probing:
            return False
        self._probing = True
        return True

    def gave_up(self) -> None:
        """Whoever asked did not wait for an answer: nothing is known, and another may try."""
        self._probing = False

    def succeeded(self) -> None:
        """The service has answered, whatever it said."""
        self._failures, self._open_until, self._probing = 0, None, False

    def failed(self, now: float) -> None:
        """It did not, in time."""
        if self._open_until is not None:
            if self._probing:  # any other was on its way when it opened
                self._hold_back(now, min(2 * self._pause, self._longest_pause))
            return
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        if self._failures >= self._failures_to_open and now - self._failing_since >= FAILING_FOR_S:
            self.opened += 1
            self._hold_back(now, min(FIRST_PAUSE_S, self._longest_pause))

    def _hold_back(self, now: float, pause: float) -> None:
        self._open_until, self._pause, self._probing = now + pause, pause, False
