"""Read an engine's counters and send them: the witness that is not the adapter (docs/spec/metering.md 6.2, 6.4).

A process of its own beside the engine. What it sends is cumulative, so nothing is lost with a scrape that fails or with
one that is sent twice. On the way out it scrapes a last time.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from serving_adapter import engine_counters
from serving_adapter.engine_counters import BOOT, Run
from serving_adapter.errors import AdapterError, BadMetrics, BootUnknown, EngineUnreachable
from serving_adapter.replica_reports import EngineCounters
from serving_adapter.settings import SettingsError

ANSWER_WITHIN_S: Final = 5.0
"""For a whole page: the engine's API server answers between two steps."""
MOST_BYTES: Final = 8 * 1024 * 1024
"""A page of vLLM has some hundred kilobytes."""
FIRST_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Target:
    """Whose counters are read where. `boot_id`: None takes the one that the adapter puts on the page.

    `secret`: what the adapter wants to be shown before its page (`metrics_secret`).
    """

    url: str
    replica_id: str
    boot_id: str | None = None
    secret: bytes | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError for what is not an http(s) address, or holds a password."""
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            usable = False
        if not usable:
            raise SettingsError(f"--url: {self.url!r} is not an address such as http://127.0.0.1:8000/metrics")
        if parts.username is not None or parts.password is not None:
            raise SettingsError("--url: no user and password in an address")


def fetch(url: str, secret: bytes | None = None) -> str:
    """The page at an address, within ANSWER_WITHIN_S and MOST_BYTES. No redirect is followed.

    Raises EngineUnreachable.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=ANSWER_WITHIN_S)
    late = threading.Event()
    cut_off = threading.Timer(ANSWER_WITHIN_S, lambda: _cut_off(sock, late))
    cut_off.daemon = True
    try:
        connection.connect()
        sock = connection.sock  # kept: the connection forgets it where the server closes after its answer
        cut_off.start()
        bearer = {"authorization": f"Bearer {secret.decode()}"} if secret is not None else {}
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), headers=bearer)
        answer = connection.getresponse()
        if answer.status != 200:
            raise EngineUnreachable(f"{url} answers {answer.status}, expected 200")
        if answer.length is None and not answer.chunked:
            raise EngineUnreachable(f"{url} does not say how long its page is: one that breaks off would look whole")
        body = answer.read(MOST_BYTES + 1)
        if len(body) > MOST_BYTES:
            raise EngineUnreachable(f"{url} has more than {MOST_BYTES:,} bytes")
        if answer.length or late.is_set():
            raise EngineUnreachable(f"{url} breaks off, or takes more than {ANSWER_WITHIN_S:g} s")
        return body.decode()
    except UnicodeDecodeError:
        raise BadMetrics(f"{url} is not UTF-8") from None
    except (OSError, http.client.HTTPException) as error:
        told = str(error) or type(error).__name__
        raise EngineUnreachable(f"{url} cannot be read within {ANSWER_WITHIN_S:g} s: {told}") from None
    finally:
        cut_off.cancel()
        connection.close()


def _cut_off(sock: socket.socket, late: threading.Event) -> None:
    """End a reading that takes too long. A socket's own timeout is per packet, and packets may come forever."""
    late.set()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Scraper:
    """Scrapes whenever told, and knows the run that it follows."""

    def __init__(self, target: Target, send: Callable[[EngineCounters], None]) -> None:
        """`send` returns once Kafka has the report."""
        self._target = target
        self._send = send
        self._run: Run | None = None

    def scrape(self) -> EngineCounters:
        """Read once and send. Raises EngineUnreachable, BadMetrics, BootUnknown, and what `send` raises."""
        at = datetime.now(UTC)  # before the counters: they say what was counted up to this time, or more
        page = engine_counters.read(fetch(self._target.url, self._target.secret))
        boot_id = self._target.boot_id or page.boot_id
        if boot_id is None:
            raise BootUnknown(f"{self._target.url} has no {BOOT}: give --boot, or let the adapter run in the engine")
        self._run = run = engine_counters.follow(self._run, page, at)
        report = EngineCounters(
            replica_id=self._target.replica_id, boot_id=boot_id, at=at.isoformat(), since=run.since.isoformat(),
            from_zero=run.from_zero, models=list(page.models),
        )  # fmt: skip
        self._send(report)
        return report


def keep_scraping(
    scraper: Scraper, stop: threading.Event, interval_s: float, say: Callable[[str], None] = print
) -> bool:
    """Scrape each `interval_s` seconds until `stop`, then a last time; whether that one succeeded.

    A failure is said once, and tried again after 1, 2, 4 … seconds, at most the interval.
    """
    failures = 0
    while not stop.is_set():
        begun = time.monotonic()
        told = _attempt(scraper)
        if told is None:
            if failures:
                say(f"scraping again after {failures} failures")
            failures = 0
            wait = interval_s
        else:
            if not failures:
                say(f"{told}; trying again")
            wait = min(interval_s, FIRST_RETRY_S * 2 ** min(failures, 20))
            failures += 1
        stop.wait(max(0.0, wait - (time.monotonic() - begun)))
    told = _attempt(scraper)
    if told is not None:
        say(f"the last scrape failed: {told}")
    return told is None


def _attempt(scraper: Scraper) -> str | None:
    """Scrape; None if it succeeded, else why not."""
    try:
        scraper.scrape()
    except AdapterError as error:
        return str(error)
    return None
