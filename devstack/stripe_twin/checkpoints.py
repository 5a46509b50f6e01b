"""The single place where a running request can be made to wait, and where faults belong.

A request passes ``BEFORE_EXECUTE`` (its idempotency key is taken, nothing is written) and ``AFTER_COMMIT`` (all is
written, the reply is not sent). Tests hold requests there to make races certain instead of likely.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count


class Checkpoint(StrEnum):
    BEFORE_EXECUTE = "before_execute"
    AFTER_COMMIT = "after_commit"


@dataclass
class Hold:
    """Keeps every request that matches waiting at ``checkpoint`` until it is released."""

    id: int
    checkpoint: Checkpoint
    method: str
    path: str
    held: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Checkpoints:
    def __init__(self) -> None:
        self._holds: dict[int, Hold] = {}
        self._numbers = count(1)

    def hold(self, checkpoint: Checkpoint, method: str, path: str) -> Hold:
        hold = Hold(next(self._numbers), checkpoint, method, path)
        self._holds[hold.id] = hold
        return hold

    def find(self, hold_id: int) -> Hold | None:
        return self._holds.get(hold_id)

    def release(self, hold: Hold) -> None:
        del self._holds[hold.id]
        hold.released.set()

    async def reach(self, checkpoint: Checkpoint, method: str, path: str) -> None:
        for hold in list(self._holds.values()):
            if (hold.checkpoint, hold.method, hold.path) == (checkpoint, method, path):
                hold.held += 1
                hold.reached.set()
                await hold.released.wait()
