"""Running other programs for the installation: their output goes to a log file, their failure becomes one message."""

from __future__ import annotations

import os
import shlex
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devstack.errors import DevstackError

LAST_LINES = 12  # of a failed command's output, shown to the person
NO_SPACE = ("No space left on device", "You don't have enough free space")
NO_NETWORK = (
    "Temporary failure resolving",
    "Could not resolve",
    "Name or service not known",
    "Temporary failure in name resolution",
    "Unknown host",
    "Network is unreachable",
    "Connection refused",
    "Connection timed out",
    "NewConnectionError",
    "dns error",
    "Failed to fetch",
)


@dataclass(slots=True)
class ToolLog:
    """One log file for an installation, into which commands that run at the same time each write whole blocks."""

    path: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, text: str) -> None:
        with self._lock, self.path.open("a", encoding="utf-8", errors="replace") as log:
            log.write(text if text.endswith("\n") else text + "\n")


def run(
    log: ToolLog,
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    what_to_do: str = "",
    shown: Sequence[str] = (),
) -> str:
    """Run `command` without a terminal and return its output; raises DevstackError with the last lines if it fails.

    `environ` is laid over the process's own. `what_to_do` ends the message unless the output tells something better.
    `shown` stands for the command in the message, where the command itself would confuse.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **(environ or {})},
            cwd=cwd,
        )
    except OSError as error:
        raise DevstackError(f"cannot run {shlex.join(command)}: {error.strerror}. {what_to_do}".rstrip()) from None
    try:
        output, _ = process.communicate()
    except BaseException:
        process.wait()  # Ctrl-C reached the child too: let it put its files in order (dpkg does)
        raise
    log.write(f"$ {shlex.join(command)}\n{output}exit code {process.returncode}\n")
    if process.returncode == 0:
        return output
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    last_lines = "\n".join("  | " + line[:300] for line in lines[-LAST_LINES:])
    raise DevstackError(
        f"this command failed (exit code {process.returncode}): {shlex.join(shown or command)}\n{last_lines}\n"
        f"{_advice(output, what_to_do)}\nAll of its output: {log.path}"
    )


def _advice(output: str, otherwise: str) -> str:
    if any(text in output for text in NO_SPACE):
        return "The disk is full: make room (df -h), then run the same command again; it goes on where it stopped."
    if any(text in output for text in NO_NETWORK):
        return (
            "A package server was not reached: check the network, the proxy and this machine's mirror settings, "
            "then run the same command again; it goes on where it stopped."
        )
    return otherwise or "Mend that, then run the same command again; it goes on where it stopped."
