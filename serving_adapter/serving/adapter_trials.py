"""Which replica loads a new adapter first, and which no replica tries again by itself.

An adapter can end an engine, and a replica that comes up again would load it again. So before it loads one, a replica
writes that it tries it; what an earlier start was at when it ended is not tried again. Of several replicas one tries
first, and the others wait until it serves. All of it lies in the registry's folder. Nothing here runs on an event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from serving_adapter.adapters.registry_folder import RegistryFolder, Served, Trial

FIRST_WITHIN_S: Final = 300.0
"""So long others wait for the first; it may have gone, and not come up again."""
MOST_FIRST: Final = 2
"""Replicas that may try one after another before one has served it: more than these do not end of it."""
AGAIN: Final = "it is not tried again by itself: remove it, and register it anew"


class AdapterTrials:
    """One replica's."""

    def __init__(self, registry: RegistryFolder, replica_id: str, boot_id: str, now: Callable[[], str]) -> None:
        """`now`: the time as text, for people."""
        self._registry = registry
        self._replica_id = replica_id
        self._boot_id = boot_id
        self._now = now
        self._waiting_since: dict[str, float] = {}

    def recall(self) -> dict[str, Served]:
        """What an earlier start of this replica ended with: those that it was at, and those that others did before."""
        status = self._registry.status_of(self._replica_id)
        if status is None or status.boot_id == self._boot_id:
            return {}
        found = {}
        for engine, served in status.adapters.items():
            if served.state == "died":
                found[engine] = served
            elif served.state == "trying":
                found[engine] = self.died(engine, "the engine, or its server, ended while it was loaded")
        return found

    def may_try(self, engine: str, served: Served | None) -> Served | None:
        """None: now. Else how it stands: `waiting`, or `died`."""
        trial = self._registry.trial(engine)
        if trial is None:  # nobody has tried it, or somebody has registered it anew
            if self._registry.begin_trial(engine, self._mine()):
                return None
            if self._has_waited(engine):  # its writer ended before it had written a word
                self._registry.end_trial(engine, None)
            return self._wait(engine, "another replica")
        if served is not None and served.state == "died" and served.trial == trial.id:
            return served
        if trial.state == "died":
            return _died(f"it ended the engine of {trial.replica_id}", trial)
        if trial.state != "trying" or self._is_mine(trial):
            return None
        if trial.replica_id == self._replica_id:  # an earlier start ended between two lines of its own
            self._registry.end_trial(engine, replace(self._mine(), id=trial.id, number=trial.number))
            return None
        if not self._has_waited(engine):
            return self._wait(engine, trial.replica_id)
        if trial.number >= MOST_FIRST:
            return _died(f"{trial.number} replicas tried it, and none has said how it went", trial)
        self._waiting_since.pop(engine, None)
        self._registry.end_trial(engine, replace(self._mine(), id=trial.id, number=trial.number + 1))
        return None

    def served(self, engine: str) -> None:
        """It answers here: others may load it."""
        self._waiting_since.pop(engine, None)
        trial = self._registry.trial(engine)
        if trial is None or trial.state != "serving":
            self._registry.end_trial(engine, replace(trial or self._mine(), state="serving"))

    def failed(self, engine: str) -> None:
        """It does not work here, and the engine does: others may try."""
        trial = self._registry.trial(engine)
        if trial is not None and self._is_mine(trial):
            self._registry.end_trial(engine, None)

    def died(self, engine: str, why: str) -> Served:
        """The engine ended of it: nobody tries it who does not serve it already."""
        trial = self._registry.trial(engine) or self._mine()
        if trial.replica_id == self._replica_id:
            self._registry.end_trial(engine, replace(trial, state="died"))
        return _died(why, trial)

    def _mine(self) -> Trial:
        at = self._now()
        id_ = f"{self._replica_id} {self._boot_id} {at}"
        return Trial(id=id_, replica_id=self._replica_id, boot_id=self._boot_id, at=at, state="trying")

    def _is_mine(self, trial: Trial) -> bool:
        return (trial.replica_id, trial.boot_id) == (self._replica_id, self._boot_id)

    def _has_waited(self, engine: str) -> bool:
        now = time.monotonic()
        return now - self._waiting_since.setdefault(engine, now) >= FIRST_WITHIN_S

    def _wait(self, engine: str, whom: str) -> Served:
        return Served(state="waiting", why=f"{whom} tries it first")


def _died(why: str, trial: Trial) -> Served:
    return Served(state="died", why=f"{why}; {AGAIN}", trial=trial.id)
