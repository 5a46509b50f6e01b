"""Free ports on the loopback address."""

from __future__ import annotations

import random
import socket
from collections.abc import Container

# Below Linux's range for outgoing connections (32768 and up): a port chosen here is not taken by a passing
# connection while its service is stopped.
LOWEST, HIGHEST = 20000, 32000
HOST = "127.0.0.1"


def is_free(port: int) -> bool:
    """Whether a service could listen on `port` now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the services do: closed connections may linger
        try:
            probe.bind((HOST, port))
            probe.listen(1)
        except OSError:
            return False
        return True


def choose(taken: Container[int] = ()) -> int:
    """A free port that is not among `taken`. Chosen at random: two stacks that start together rarely meet."""
    pick = random.SystemRandom()
    while True:
        port = pick.randint(LOWEST, HIGHEST)
        if port not in taken and is_free(port):
            return port


def answers(port: int) -> bool:
    """Whether anything listens on `port`."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
