"""``python -m devstack.stripe_twin --host 127.0.0.1 --port N --data DIR`` runs the twin until SIGTERM.

Prints one line with its address once it can be called. What keeps it from starting is one line on standard
error and exit status 1.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
from pathlib import Path
from types import FrameType

import uvicorn

from devstack.stripe_twin.app import build_app
from devstack.stripe_twin.connections import Protocol
from devstack.stripe_twin.store import Store, StoreError

_BACKLOG = 2048
_SECONDS_FOR_OPEN_REQUESTS = 3
_SECONDS_FOR_IDLE_CONNECTIONS = 600
"""Longer than callers pause: a busy machine would close a connection in the moment in which it is used again."""


def main(arguments: list[str] | None = None) -> int:
    options = _parse(arguments)
    # uvicorn takes SIGTERM over while it serves, and raises it again when done: that is a normal end.
    signal.signal(signal.SIGTERM, _exit)
    try:
        listener = _listen(options.host, options.port)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        return _fail(f"cannot listen on {options.host}:{options.port}: {reason}")
    try:
        store = Store.open(options.data)
    except StoreError as error:
        return _fail(str(error))
    host, port = listener.getsockname()[:2]
    base_url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    config = uvicorn.Config(
        build_app(store, base_url),
        http=Protocol,
        access_log=False,
        log_level="warning",
        lifespan="off",
        timeout_keep_alive=_SECONDS_FOR_IDLE_CONNECTIONS,
        timeout_graceful_shutdown=_SECONDS_FOR_OPEN_REQUESTS,
    )
    print(f"stripe twin listening on {base_url}", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        store.close()
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="stripe_twin", description="A local look-alike of Stripe's API.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free port")
    parser.add_argument("--data", type=Path, required=True, help="folder that keeps the twin's state")
    return parser.parse_args(arguments)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: callers can connect from here on, before the server takes over."""
    # With the protocol named, asyncio sets TCP_NODELAY; without it each reply waits 40 ms for an ACK.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError):
        listener.close()
        raise
    return listener


def _exit(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)


def _fail(message: str) -> int:
    print(f"stripe twin: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
