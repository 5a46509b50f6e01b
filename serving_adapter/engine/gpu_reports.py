"""GPU time on its way from the engine's process to the adapter's: datagrams over a socket of this machine.

`TOLLBOOK_GPU_SOCKET` names it for both. A datagram that does not arrive is kept by its sender, and sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from serving_adapter.errors import AdapterError

VARIABLE: Final = "TOLLBOOK_GPU_SOCKET"
MOST_ENDED: Final = 200
"""Requests in one datagram: some 20 KB."""
BUFFER_BYTES: Final = 1 << 20


class GpuSocketFailed(AdapterError):
    """The socket cannot be made."""


class GpuReport(msgspec.Struct, frozen=True, array_like=True):
    """Requests whose time is final, with it; what the engine was busy for in all, since when; its GPUs."""

    ended: list[tuple[str, int]]
    busy_us: int
    since_us: int
    """By the machine's monotonic clock."""
    gpus: int
    running: list[tuple[str, int]] = []
    """Requests that go on, with their time so far: what is known of them if the process is killed."""


class GpuSender:
    """The engine's end. Never waits."""

    def __init__(self, path: str | None) -> None:
        """Without a path nothing is sent."""
        self.waiting: list[tuple[str, int]] = []
        """What could not be sent yet."""
        self._path = path
        self._since_us = time.monotonic_ns() // 1000
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @staticmethod
    def from_environment(environ: Mapping[str, str]) -> GpuSender:
        """As `TOLLBOOK_GPU_SOCKET` says."""
        return GpuSender(environ.get(VARIABLE) or None)

    def send(
        self, ended: list[tuple[str, int]], busy_us: int, gpus: int, running: Sequence[tuple[str, int]] = ()
    ) -> None:
        """Say what is final, with what waits. Raises OSError: then it waits too, but for what is `running`."""
        if self._path is None:
            return
        self.waiting += ended
        while True:
            part, so_far = self.waiting[:MOST_ENDED], list(running[:MOST_ENDED])
            report = GpuReport(part, busy_us, self._since_us, gpus, so_far)
            self._socket.sendto(msgspec.json.encode(report), self._path)
            del self.waiting[: len(part)]
            running = running[MOST_ENDED:]
            if not self.waiting and not running:
                return


class GpuReceiver:
    """The adapter's end, on its event loop."""

    def __init__(self, path: str, told: Callable[[GpuReport], None]) -> None:
        """Raises GpuSocketFailed."""
        self._told = told
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            mask = os.umask(0o177)
            try:
                self._socket.bind(path)
            finally:
                os.umask(mask)
        except OSError as error:
            raise GpuSocketFailed(f"{VARIABLE}: {path}: {error}") from None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self.read)

    def read(self) -> None:
        """Take what has come."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data = self._socket.recv(BUFFER_BYTES)
                with contextlib.suppress(msgspec.DecodeError):
                    self._told(msgspec.json.decode(data, type=GpuReport))

    def close(self) -> None:
        """A last look, and no more."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self.read()
        self._socket.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
