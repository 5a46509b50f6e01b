"""Ways to die at a named step of a chunk's transaction (streams.ingest.apply.STEPS): checkpoints for ChunkApplier."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final, Literal

import psycopg

HOLD_S: Final = 1.5
"""How long a chunk is held in mid-transaction while a shutdown goes on."""
HELD_S: Final = 60.0
"""The same, until somebody has seen it and kills the worker."""

How = Literal["kill", "commit unseen", "stop", "raise", "terminate", "hold"]


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the n-th occurrence of a step.

    `kill`: SIGKILL. `commit unseen`: COMMIT is sent, then SIGKILL, so that nobody hears its answer. `stop`: SIGSTOP,
    until somebody sends SIGCONT. `raise`: an error that nobody foresaw. `terminate`: SIGTERM, while the chunk takes a
    while longer. `hold`: only that.
    """

    step: str
    nth: int = 1
    how: How = "kill"

    @staticmethod
    def of(text: str) -> Fault:
        """From the JSON that `text` makes."""
        return Fault(**json.loads(text))

    @property
    def text(self) -> str:
        """As JSON, for a command line."""
        return json.dumps(asdict(self))


class Injector:
    """A checkpoint that carries out one fault, or none."""

    def __init__(self, fault: Fault | None) -> None:
        self._fault = fault
        self._seen = 0
        self.connection: psycopg.Connection | None = None
        """Needed for `commit unseen`."""
        self.hold: Callable[[], object] = partial(time.sleep, HOLD_S)
        """Returns once a chunk was held for long enough."""

    def __call__(self, step: str) -> None:
        """Called at each step."""
        fault = self._fault
        if fault is None or step != fault.step:
            return
        self._seen += 1
        if self._seen == fault.nth:
            self._strike(fault.how)

    def _strike(self, how: How) -> None:
        me = os.getpid()
        if how == "commit unseen":
            assert self.connection is not None
            self.connection.pgconn.send_query(b"commit")
            self.connection.pgconn.flush()
        if how in ("kill", "commit unseen"):
            os.kill(me, signal.SIGKILL)
        elif how == "stop":
            os.kill(me, signal.SIGSTOP)
        elif how == "raise":
            raise RuntimeError("an error that nobody foresaw")
        elif how == "terminate":
            os.kill(me, signal.SIGTERM)
            self.hold()
        else:
            time.sleep(HELD_S)
