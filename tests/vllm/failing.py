"""An engine that is not well, for the tests: by its `seed` a request fails."""

from __future__ import annotations

from typing import Final

FAILS: Final = 660_000
"""Its sequence ends with the engine's own error after two tokens. Of `n` sequences each has a seed of one more."""
FAILS_UNREAD: Final = 670_000
"""It ends so before its prompt was read."""
ENDS_ENGINE: Final = 680_000
"""At its second token the engine raises, and ends for all."""
FAILING: Final = ("--scheduler-cls", "tests.vllm.failing_scheduler.FailingScheduler")
"""Flags of a server, after the adapter's own."""
