"""One local service: how it is found, started, waited for and stopped. What it is, its own module says."""

from __future__ import annotations

import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from devstack import ports, processes
from devstack.errors import DevstackError
from devstack.locations import Locations
from devstack.processes import ProcessId
from devstack.progress import STILL_EVERY_S, Progress
from devstack.settings import Settings

LAST_LOG_LINES = 8  # shown when a service does not start
PORT_ATTEMPTS = 3  # between choosing a port and listening on it, another process may take it


class Service(ABC):
    """A process with a port on the loopback address, a data folder and a log file below `places.home`."""

    name: ClassVar[str]
    title: ClassVar[str]
    port_names: ClassVar[tuple[str, ...]]  # the first is the one that clients use
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_patience_s: ClassVar[float] = 120.0
    stop_patience_s: ClassVar[float] = 30.0

    def __init__(self, places: Locations, settings: Settings) -> None:
        self.places = places
        self.settings = settings
        self._log_start = 0  # bytes in the log before this start: of older trouble nothing is shown

    @abstractmethod
    def prepare(self) -> None:
        """Make data folder and configuration where missing, for the ports in the settings."""

    @abstractmethod
    def launch(self) -> ProcessId:
        """Start the process."""

    @abstractmethod
    def is_mine(self, arguments: list[str]) -> bool:
        """Whether a command line is that of this very service (this data folder)."""

    @abstractmethod
    def check(self) -> str | None:
        """None when the service does its work for a client; else what is still wrong."""

    @abstractmethod
    def address(self) -> str:
        """What a client is given."""

    def shown_address(self) -> str:
        """The address as people are shown it, without its parameters."""
        return self.address().partition("?")[0]

    @property
    def data(self) -> Path:
        return self.places.home / self.name

    @property
    def log(self) -> Path:
        return self.places.log / f"{self.name}.log"

    @property
    def port(self) -> int | None:
        return self.settings.ports.get(self.port_names[0])

    def complete(self) -> None:  # noqa: B027 - not every service has something to do
        """What is to be done once it runs (databases, topics). Must be safe to repeat."""

    def outdated(self) -> bool:
        """Whether the running process is older than what launch() would start now."""
        return False

    def running(self) -> ProcessId | None:
        """This service's process, also when its record was lost."""
        return processes.remembered(self._record) or processes.find(self.is_mine)

    def up(self, progress: Progress) -> None:
        """Run the service and wait until it does its work; raises DevstackError. Does nothing to one that runs."""
        began = time.monotonic()
        process = self.running()
        # Without a port its home was removed under it, and nothing tells its address
        if process is not None and (self.port is None or self.outdated()):
            progress.say(f"{self.title}: starting anew, for the running one is of an older version or home")
            processes.stop(process, self.stop_signal, self.stop_patience_s)
            process = None
        if process is not None:
            processes.remember(self._record, process)
            self._await(process, progress)
            self.complete()
            progress.say(f"{self.title}: runs already, {self.shown_address()}")
            return
        process = self._start(progress)
        self.complete()
        progress.say(f"{self.title}: ready after {time.monotonic() - began:.1f} s, {self.shown_address()}")

    def down(self, progress: Progress) -> None:
        """Stop the service in order, and wait for its end."""
        process = self.running()
        if process is None:
            return
        began = time.monotonic()
        progress.say(f"{self.title}: stopping...")
        if processes.stop(process, self.stop_signal, self.stop_patience_s):
            progress.say(f"{self.title}: stopped after {time.monotonic() - began:.1f} s")
        else:
            progress.say(
                f"{self.title}: did not stop within {self.stop_patience_s:.0f} s and was killed; its data is safe"
            )
        self._record.unlink(missing_ok=True)

    def remove_data(self) -> None:
        """Remove what the service keeps. It must be stopped."""
        shutil.rmtree(self.data, ignore_errors=True)

    def data_size(self) -> int:
        """Bytes below the data folder (as far as they may be read)."""
        return sum(
            os.lstat(os.path.join(folder, name)).st_blocks * 512
            for folder, _, names in os.walk(self.data)
            for name in names
            if os.path.lexists(os.path.join(folder, name))
        )

    def choose_ports(self, progress: Progress) -> None:
        """Keep the remembered ports that are free; choose new ones for the others, and say so."""
        for name in self.port_names:
            port = self.settings.ports.get(name)
            if port is not None and ports.is_free(port):
                continue
            self.settings.ports[name] = ports.choose(self.settings.ports.values())
            if port is not None:
                new = self.settings.ports[name]
                progress.say(f"{self.title}: port {port} is taken by another program; using {new} from now on")

    @property
    def _record(self) -> Path:
        return self.places.home / "run" / f"{self.name}.json"

    def _start(self, progress: Progress) -> ProcessId:
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.choose_ports(progress)
            self.prepare()
            self._log_start = self.log.stat().st_size if self.log.exists() else 0
            process = self.launch()
            processes.remember(self._record, process)
            try:
                self._await(process, progress)
                return process
            except DevstackError:
                lost_port = any(not ports.is_free(self.settings.ports[name]) for name in self.port_names)
                if process.alive() or not lost_port or attempt == PORT_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _await(self, process: ProcessId, progress: Progress) -> None:
        """Wait until check() is content; an end of the process, or no end of waiting, is an error with log lines."""
        began = time.monotonic()
        reminded = began
        while (wrong := self._check(process)) is not None:
            if not process.alive():
                raise DevstackError(f"{self.title} ended while starting. {self._log_says()}")
            now = time.monotonic()
            if now - reminded > STILL_EVERY_S:
                reminded = now
                progress.say(f"{self.title}: not ready after {now - began:.0f} s ({wrong})")
            if now - began > self.start_patience_s:
                raise DevstackError(
                    f"{self.title} (pid {process.pid}) is not ready after {self.start_patience_s:.0f} s: {wrong}. "
                    + self._log_says()
                )
            time.sleep(0.05)

    def _check(self, process: ProcessId) -> str | None:
        if self.port is None or not ports.answers(self.port):
            return f"nothing listens on port {self.port}"
        # The port might be a stranger's, were ours dead: never hand out such an address
        return self.check() if process.alive() else "it has ended"

    def _log_says(self) -> str:
        try:
            text = self.log.read_bytes()[self._log_start :].decode(errors="replace")
        except OSError:
            text = ""
        lines = [line for line in text.splitlines() if line.strip()]
        shown = "\n".join("  | " + line[:300] for line in lines[-LAST_LOG_LINES:])
        return f"The end of its log {self.log}:\n{shown}"
