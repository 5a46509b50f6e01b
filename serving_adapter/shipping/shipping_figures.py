"""How shipping goes, for whoever watches it: a small page of its own (`ship --metrics PORT`). It names no tenant."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from serving_adapter.settings import SettingsError

TURNS_WITHIN_S: Final = 300.0
"""A pass waits for Kafka, and pauses, for some 90 s at most."""


@dataclass
class ShippingFigures:
    """One shipper's, since it was started."""

    clock: Callable[[], float] = time.monotonic
    events: int = 0
    poison: int = 0
    unreadable: int = 0
    failures: int = 0
    """Passes that Kafka, or a disk, did not let end."""
    failing: bool = False
    turned_at: float = 0.0
    """When the last pass ended, however it did (monotonic)."""
    _level_at: dict[Path, float] = field(default_factory=dict)
    """By boot that is not over: when Kafka last had all of it that was on disk."""

    def __post_init__(self) -> None:
        """It begins now."""
        self.turned_at = self.clock()

    def seen(self, boot: Path, *, level: bool, over: bool) -> None:
        """A boot was looked at. `level`: Kafka has all that is durable."""
        if over:
            self._level_at.pop(boot, None)
        elif level or boot not in self._level_at:
            self._level_at[boot] = self.clock() if level else self.turned_at

    def turned(self, *, failed: bool) -> None:
        """A pass has ended."""
        self.turned_at = self.clock()
        self.failing = failed
        self.failures += failed

    @property
    def lag_s(self) -> float:
        """How long ago Kafka had all of the boot that is furthest behind; it counts up while passes fail."""
        now = self.clock()
        behind = [now - at for at in self._level_at.values()]
        return max([*behind, now - self.turned_at])

    @property
    def is_alive(self) -> bool:
        """Whether passes end at all."""
        return self.clock() - self.turned_at < TURNS_WITHIN_S

    def page(self) -> str:
        """Prometheus' text."""
        return "".join(
            f"# TYPE tollbook_shipper_{name} {kind}\ntollbook_shipper_{name} {number}\n"
            for name, kind, number in (
                ("events_total", "counter", self.events),
                ("poison_total", "counter", self.poison),
                ("unreadable_total", "counter", self.unreadable),
                ("failures_total", "counter", self.failures),
                ("failing", "gauge", int(self.failing)),
                ("boots", "gauge", len(self._level_at)),
                ("lag_seconds", "gauge", round(self.lag_s, 3)),
            )
        )


def serve(figures: ShippingFigures, port: int) -> ThreadingHTTPServer:
    """`/metrics`, and `/health` (503 where no pass ends), at this port (0: any) of all addresses.

    Raises SettingsError.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The two pages."""
            status, page = {
                "/metrics": (200, figures.page()), "/health": (200 if figures.is_alive else 503, ""),
            }.get(self.path, (404, ""))  # fmt: skip
            self.send_response(status)
            self.send_header("content-type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("content-length", str(len(page.encode())))
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            """Nobody wants to know."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        raise SettingsError(f"--metrics {port}: {error.strerror}") from None
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="tollbook-figures", daemon=True).start()
    return server
