"""Waiting for the database, whatever it takes: what is to be written is tried again until it goes through."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

import psycopg

from streams.database import is_passing
from streams.errors import DatabaseUnavailable
from streams.ingest.tally import Observer

RETRY_FIRST_S: Final = 0.2
RETRY_LONGEST_S: Final = 5.0

_Done = TypeVar("_Done")


class Patience:
    """One reader's."""

    def __init__(self, say: Callable[[str], None], observer: Observer) -> None:
        self._say = say
        self._observer = observer
        self._ending = threading.Event()
        self.trying_since: float | None = None
        """When the attempt in hand began (monotonic seconds); None between two."""

    @property
    def ending(self) -> bool:
        """Whether the process is to end."""
        return self._ending.is_set()

    def note_progress(self) -> None:
        """A part of the attempt in hand is committed."""
        if self.trying_since is not None:
            self.trying_since = time.monotonic()

    def end(self) -> None:
        """Wait no longer: the process is to end. For any thread."""
        self._ending.set()

    def wait(self, work: Callable[[], _Done]) -> _Done | None:
        """What `work` returns, tried again for as long as the database is away; None if told to end meanwhile."""
        wait = RETRY_FIRST_S
        while True:
            self.trying_since = time.monotonic()
            try:
                return work()
            except (psycopg.Error, DatabaseUnavailable) as error:
                if not is_passing(error):
                    raise
                if wait == RETRY_FIRST_S:
                    self._say(f"database: {str(error).splitlines()[0]}; waiting for it, nothing is lost")
                self._observer.database_wait()
                self.trying_since = None  # the pause is no attempt
                if self._ending.wait(wait):
                    return None
                wait = min(wait * 2, RETRY_LONGEST_S)
            finally:
                self.trying_since = None
