"""A connection to the database that is slow, stands still, or loses an answer: a proxy in threads, on its own port."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

BYTES_A_TIME = 64 * 1024


class SlowLink:
    """Between whoever connects to `url` and a server, each piece of data takes `delay_s` longer.

    Once a connection has carried what stands in `unheard`, in that order, nothing comes back over it; `answered` tells
    that the server has answered the last of it, for the first connection.
    """

    def __init__(self, server_url: str, delay_s: float = 0, unheard: Sequence[bytes] = ()) -> None:
        parts = urlsplit(server_url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._delay_s = delay_s
        self._unheard = unheard
        self.answered = threading.Event()
        self._moving = threading.Event()
        self._moving.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        user = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{user}@127.0.0.1:{self._listener.getsockname()[1]}"))

    def __enter__(self) -> SlowLink:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go()
        self._listener.close()

    def hold(self) -> None:
        """Nothing passes, and nobody is told."""
        self._moving.clear()

    def go(self) -> None:
        """What was held passes."""
        self._moving.set()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self._server)
            except OSError:
                client.close()  # the server is away
                continue
            lost = threading.Event()
            asked, answers = self._asked(client, lost), self._answers(server, lost)
            for ends in ((client, server, asked), (server, client, answers)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _asked(self, client: socket.socket, lost: threading.Event) -> Iterator[bytes]:
        waited_for = iter(self._unheard if not self.answered.is_set() else ())
        due = next(waited_for, None)
        while data := client.recv(BYTES_A_TIME):
            if due is not None and due in data:
                due = next(waited_for, None)
                if due is None:
                    lost.set()
            yield data

    def _answers(self, server: socket.socket, lost: threading.Event) -> Iterator[bytes]:
        while data := server.recv(BYTES_A_TIME):
            if lost.is_set():
                self.answered.set()
            else:
                yield data

    def _carry(self, source: socket.socket, target: socket.socket, pieces: Iterator[bytes]) -> None:
        with contextlib.suppress(OSError):
            for data in pieces:
                time.sleep(self._delay_s)
                self._moving.wait()
                target.sendall(data)
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
