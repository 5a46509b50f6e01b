"""The Stripe twin for tests: one process per test worker, an account of its own per test.

Starts `python -m devstack.stripe_twin` on a free port with a temporary folder, and stops it at the end of the run.
An API key is an account, so a test with a fresh key sees an empty Stripe however many tests share the process.
"""

from __future__ import annotations

import json
import secrets
import select
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import stripe

from devstack import ports
from tests.waiting import PATIENCE_S

START_TIMEOUT_S = STOP_TIMEOUT_S = PATIENCE_S

REPOSITORY = Path(__file__).resolve().parents[1]


def new_test_key() -> str:
    """A key that nobody has used: an empty account."""
    return f"sk_test_{secrets.token_hex(12)}"


@dataclass
class StripeTwin:
    """A running twin, seen from one account: `.url` and `.key` are what an SDK client needs."""

    url: str
    key: str = field(default_factory=new_test_key)

    def client(self, key: str | None = None, max_network_retries: int = 0) -> stripe.StripeClient:
        """The real SDK; without retries of its own, so that each error is seen."""
        return stripe.StripeClient(
            key or self.key, base_addresses={"api": self.url}, max_network_retries=max_network_retries
        )

    def call(
        self, method: str, path: str, body: str | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """A bare HTTP call: status, headers with lower-case names, decoded JSON. The key goes with /v1 calls."""
        sent = {"Authorization": f"Bearer {self.key}"} if path.startswith("/v1") else {}
        sent.update(headers or {})
        request = urllib.request.Request(
            f"{self.url}{path}", method=method, data=None if body is None else body.encode(), headers=sent
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _KeepErrors())
        with opener.open(request, timeout=60) as reply:
            return reply.status, {k.lower(): v for k, v in reply.headers.items()}, json.loads(reply.read())

    def hold(self, checkpoint: str, method: str, path: str) -> Hold:
        """Make matching requests wait at `before_execute` or `after_commit` until released."""
        wanted = {"checkpoint": checkpoint, "method": method, "path": path}
        status, _, created = self.call("POST", "/_twin/holds", json.dumps(wanted))
        assert status == 200, created
        return Hold(self, created["id"])


class ActRefused(Exception):
    """Something that nobody can do in Stripe as it stands."""


def act(twin: StripeTwin, name: str, **given: Any) -> dict[str, Any]:
    """Somebody other than us does something in Stripe. Raises ActRefused."""
    status, _, done = twin.call("POST", f"/_twin/acts/{name}", json.dumps({"key": twin.key, **given}))
    if status != 200:
        raise ActRefused(done)
    return dict(done)


def control(twin: StripeTwin, what: str, **given: Any) -> dict[str, Any]:
    """Sets the twin itself: its faults, limits, webhooks, clock."""
    status, _, said = twin.call("POST", f"/_twin/{what}", json.dumps(given))
    assert status == 200, said
    return dict(said)


@dataclass
class Hold:
    """Requests that the twin keeps waiting."""

    twin: StripeTwin
    id: int

    def wait(self) -> None:
        """Until a request is held."""
        status, _, shown = self.twin.call("GET", f"/_twin/holds/{self.id}?wait=30")
        assert status == 200, shown

    def release(self) -> None:
        self.twin.call("DELETE", f"/_twin/holds/{self.id}")


class TwinProcess:
    """A twin of one's own, to stop, kill and start again on the same data and port."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.log = data.with_name(f"{data.name}.log")
        self.port = ports.choose()
        """Below those of passing connections, one of which might have it while the twin is stopped."""
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> StripeTwin:
        """Start and wait until it can be called."""
        command = [sys.executable, "-m", "devstack.stripe_twin", "--port", str(self.port), "--data", str(self.data)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], START_TIMEOUT_S)
        line = self._process.stdout.readline() if ready else ""
        if "http://" not in line:
            self.kill()
            pytest.fail(f"the Stripe twin did not start: {self.log.read_text()}")
        url = line.split()[-1]
        self.port = int(url.rsplit(":", 1)[1])
        return StripeTwin(url)

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM; returns the exit status."""
        return self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        process.communicate(timeout=STOP_TIMEOUT_S)
        return process.returncode


@pytest.fixture(scope="session")
def stripe_twin_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the shared twin: for tests that change what Stripe has behind its back."""
    return tmp_path_factory.mktemp("stripe_twin")


@pytest.fixture(scope="session")
def stripe_twin_url(stripe_twin_data: Path) -> Iterator[str]:
    """The address of a twin that all tests of this worker share."""
    process = TwinProcess(stripe_twin_data)
    yield process.start().url
    process.stop()


@pytest.fixture
def stripe_twin(stripe_twin_url: str) -> StripeTwin:
    """The shared twin, from an account of this test's own."""
    return StripeTwin(stripe_twin_url)


@pytest.fixture
def make_stripe_twin(tmp_path: Path) -> Iterator[Callable[[], TwinProcess]]:
    """Makes twins of the test's own (not yet started) that share one data folder; all are killed at the end."""
    made: list[TwinProcess] = []

    def make() -> TwinProcess:
        made.append(TwinProcess(tmp_path / "twin"))
        return made[-1]

    yield make
    for process in made:
        process.kill()


class _KeepErrors(urllib.request.HTTPErrorProcessor):
    """Replies with an error status are replies, not exceptions."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response
