"""A listening socket for uvicorn."""

from __future__ import annotations

import socket

from streams.errors import CannotServe


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """The socket; callers can connect from here on, `backlog` of them before one is taken. Raises CannotServe."""
    # With the protocol named, asyncio sets TCP_NODELAY; without it each answer waits 40 ms for an ACK.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(backlog)
    except (OSError, OverflowError) as error:
        listener.close()
        raise CannotServe(f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    """What to call it by."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
