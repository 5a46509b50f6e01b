"""The local Stripe twin (devstack/stripe_twin) as a service."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar

from devstack import ports, processes
from devstack.locations import REPOSITORY, VENV
from devstack.processes import ProcessId
from devstack.service import Service
from devstack.settings import secret


class StripeTwinServer(Service):
    name: ClassVar[str] = "stripe_twin"
    title: ClassVar[str] = "Stripe twin"
    port_names: ClassVar[tuple[str, ...]] = ("stripe_twin",)

    def address(self) -> str:
        return f"http://{ports.HOST}:{self.port}"

    def key(self) -> str:
        """The API key to call it with, in the form of Stripe's test keys."""
        return secret(self.places.home / "stripe.key", prefix="sk_test_")

    def is_mine(self, arguments: list[str]) -> bool:
        return "devstack.stripe_twin" in arguments and str(self.data) in arguments

    def prepare(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.key()

    def outdated(self) -> bool:
        try:
            return self._started_version.read_text() != _version()
        except OSError:
            return False

    def launch(self) -> ProcessId:
        self._started_version.parent.mkdir(exist_ok=True)
        self._started_version.write_text(_version())
        kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
        return processes.start(
            [VENV / "bin/python", "-m", "devstack.stripe_twin", "--host", ports.HOST,
             "--port", str(self.port), "--data", str(self.data)],
            log=self.log, environ={**kept, "PYTHONUNBUFFERED": "1"}, cwd=REPOSITORY,
        )  # fmt: skip

    def check(self) -> str | None:
        # No proxy: the twin is on this machine
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.address()}/_twin/health", timeout=5) as reply:
                return None if reply.status == 200 else f"health check answered {reply.status}"
        except (urllib.error.URLError, OSError) as error:
            return f"health check failed: {error}"

    @property
    def _started_version(self) -> Path:
        return self.places.home / "run" / "stripe_twin.version"


def _version() -> str:
    """A digest of the twin's program: a clone that was brought up to date is not to go on with the old one."""
    digest = hashlib.sha256()
    for path in sorted((REPOSITORY / "devstack/stripe_twin").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
