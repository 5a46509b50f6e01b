"""Processes of our own: started detached, known again by their start time, and only then ever stopped."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that can be told from a later one with its pid: by its start in clock ticks, and the boot it ran in."""

    pid: int
    started_ticks: int
    boot: str

    def alive(self) -> bool:
        return _started_ticks(self.pid) == self.started_ticks and _boot() == self.boot

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it is still this process."""
        if self.alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start(
    command: Sequence[str | Path],
    *,
    log: Path,
    environ: Mapping[str, str],
    cwd: Path,
    run_as: str | None = None,
) -> ProcessId:
    """Start `command` in a session of its own, so that neither Ctrl-C here nor the end of this process reaches it.

    Output is added to `log`. `run_as`: another user's name (only root can).
    """
    user = pwd.getpwnam(run_as) if run_as else None
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=dict(environ),
            cwd=cwd,
            start_new_session=True,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
    _children.append(process)
    return ProcessId(process.pid, _started_ticks(process.pid) or 0, _boot())


# Popen objects of what this process started: their poll() is what removes the zombie when a service ends early.
_children: list[subprocess.Popen[bytes]] = []


def remember(file: Path, process: ProcessId) -> None:
    """Write down `process` for later commands."""
    file.parent.mkdir(exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(
        json.dumps({"pid": process.pid, "started_ticks": process.started_ticks, "boot": process.boot}) + "\n"
    )
    os.replace(unfinished, file)


def remembered(file: Path) -> ProcessId | None:
    """The process written down in `file`, if it still runs."""
    try:
        fields = json.loads(file.read_text())
        process = ProcessId(int(fields["pid"]), int(fields["started_ticks"]), str(fields["boot"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return process if process.alive() else None


def find(matches: Callable[[list[str]], bool]) -> ProcessId | None:
    """A running process whose command line `matches`: for one that was started but is not written down."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                arguments = Path(f"/proc/{entry}/cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            ticks = _started_ticks(int(entry))
            if ticks is not None and matches(arguments):
                return ProcessId(int(entry), ticks, _boot())
    return None


def stop(process: ProcessId, number: signal.Signals, patience_s: float) -> bool:
    """Ask with `number`, wait, and end it by SIGKILL after `patience_s`. Returns whether it ended by itself."""
    process.signal(number)
    if wait_until(lambda: not process.alive(), patience_s):
        return True
    process.signal(signal.SIGKILL)
    wait_until(lambda: not process.alive(), 10)
    return False


def wait_until(condition: Callable[[], bool], patience_s: float, every_s: float = 0.05) -> bool:
    """Whether `condition` came true within `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True


def _started_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None for a process that is gone or only waits to be reaped."""
    for child in _children:
        if child.pid == pid:
            child.poll()
    try:
        # The second field, the program's name in brackets, may hold blanks and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
