"""When the service is not asked at all, because it did not answer lately. Pure; seconds of a monotonic clock."""

from __future__ import annotations


class Breaker:
    """Opens after some failures in a row; lets one call through after a while, and closes when that succeeds."""

    __slots__ = ("_failures", "_failures_to_open", "_open_for", "_open_until", "_probing", "opened")

    def __init__(self, failures_to_open: int, open_for: float) -> None:
        self._failures_to_open = failures_to_open
        self._open_for = open_for
        self._failures = 0
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
        self._failures += 1
        if self._probing or self._failures >= self._failures_to_open:
            if self._open_until is None:
                self.opened += 1
            self._open_until, self._probing = now + self._open_for, False
