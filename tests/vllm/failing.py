"""An engine that is not well, for the tests: by its `seed` a request fails."""

from __future__ import annotations

from typing import Final

FAILS: Final = 660_000
"""Its sequence ends with the engine's own error after two tokens. Of `n` sequences each has a seed of one more."""
FAILING: Final = ("--scheduler-cls", "tests.vllm.failing_scheduler.FailingScheduler")
"""Flags of a server, after the adapter's own."""
