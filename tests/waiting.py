"""Waiting for what comes about elsewhere, in a server or a worker."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0  # for a busy machine; nothing takes nearly as long


def wait_for(condition: Callable[[], bool], what: str = "the condition", within_s: float = PATIENCE_S) -> None:
    """Until it holds; a server that cannot be reached yet counts as not yet. AssertionError when it never does."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        assert time.monotonic() < deadline, f"{what} did not come about within {within_s:g} s"
        time.sleep(0.02)
