"""Local services that a test kills and starts again."""

from __future__ import annotations

import os
import signal
from io import StringIO

from devstack import ports, processes
from devstack.progress import Progress
from devstack.service import Service
from tests.waiting import PATIENCE_S


def kill(service: Service) -> None:
    """SIGKILL, and wait until all of it is gone."""
    process = service.running()
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    # All of its threads must be gone: with its port still held, another would be chosen
    port = service.port
    assert port is not None
    assert processes.wait_until(lambda: not process.alive() and ports.is_free(port), PATIENCE_S)


def start(service: Service) -> None:
    """Start it and wait until it works."""
    service.up(Progress(StringIO()))
