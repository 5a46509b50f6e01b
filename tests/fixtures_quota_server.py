"""`tollbook quota serve` as a process."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from streams.http import access_keys
from tests.waiting import PATIENCE_S

STARTS_WITHIN_S = STOPS_WITHIN_S = PATIENCE_S
PATIENT = (
    "from streams.quotas import service; service.AWAY_AFTER_S = 60.0;"  # the database of a busy machine is not away
    " from console.main import main; main()"
)


@dataclass
class QuotaReply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass
class QuotaServerProcess:
    """A running server and a key that it takes."""

    process: subprocess.Popen[str]
    port: int
    secret: str
    envoy_port: int = 0

    def request(self, method: str, path: str, body: Any = None, *, secret: str | None = None) -> QuotaReply:
        """One request on a connection of its own."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=2 * PATIENCE_S)) as connection:
            sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, sent, {"authorization": f"Bearer {secret or self.secret}"})
            reply = connection.getresponse()
            text = reply.read()
            headers = {name.lower(): value for name, value in reply.getheaders()}
            is_json = headers.get("content-type") == "application/json"
            return QuotaReply(reply.status, headers, json.loads(text) if is_json else text.decode())

    def ask(self, request_id: str, tenant: str = "t1", max_tokens: int | None = 100, **more: Any) -> QuotaReply:
        """Ask for a request's admission."""
        body = {"tenant_id": tenant, "request_id": request_id, "model": "m-1", "input_tokens": 10} | more
        return self.request("POST", "/v1/reservations", body | {"max_tokens": max_tokens})

    def settle(self, request_id: str, output: int, tenant: str = "t1", **more: Any) -> QuotaReply:
        """Tell what it has used."""
        body = {"input_tokens": 10, "output_tokens": output} | more
        return self.request("POST", f"/v1/reservations/{tenant}/{request_id}/settle", body)

    def quota(self, quota_id: str = "month-output_tokens", tenant: str = "t1") -> dict[str, Any]:
        """Where a quota stands."""
        found = self.request("GET", f"/v1/tenants/{tenant}/quota").body["quotas"]
        return next(each for each in found if each["quota_id"] == quota_id)

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(STOPS_WITHIN_S)


def add_key(connection: psycopg.Connection, *tenants: str) -> str:
    """A quota caller's key, for these tenants or all."""
    secret = access_keys.secret_from(secrets.token_bytes(32))
    access_keys.add(connection, kind="quota", name="gw", tenant_ids=tenants, all_tenants=not tenants, secret=secret,
                    actor="test")  # fmt: skip
    return secret


def start_quota_server(url: str, secret: str, *arguments: str, patient: bool = False) -> QuotaServerProcess:
    """Start one on a free port and wait until it can be called. `patient`: no wait for the database is too long."""
    program = ("-c", PATIENT) if patient else ("-m", "console.main")
    process = subprocess.Popen(
        [sys.executable, *program, "quota", "serve", "--port", "0", *arguments],
        env=os.environ | {"TOLLBOOK_DATABASE_URL": url}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = ""
    until = time.monotonic() + STARTS_WITHIN_S
    assert process.stderr is not None
    while time.monotonic() < until:
        ready, _, _ = select.select([process.stderr], [], [], 0.2)
        if ready:
            said += os.read(process.stderr.fileno(), 4096).decode()  # lines that a reader buffers are never selected
            if found := re.search(r"POST http://127\.0\.0\.1:(\d+)/", said):
                envoy = re.search(r"gRPC \S+ on 127\.0\.0\.1:(\d+)", said)
                return QuotaServerProcess(process, int(found[1]), secret, int(envoy[1]) if envoy else 0)
        if process.poll() is not None:
            break
    process.kill()
    raise AssertionError(f"the quota server did not start: {said}{process.stderr.read()}")


@pytest.fixture
def quota_server(own_database_url: str, connection: psycopg.Connection) -> Iterator[Callable[..., QuotaServerProcess]]:
    """Starts quota servers on this test's database, patient ones if not told otherwise; ends them."""
    started: list[QuotaServerProcess] = []
    secret = add_key(connection)

    def start(*arguments: str, patient: bool = True) -> QuotaServerProcess:
        started.append(start_quota_server(own_database_url, secret, *arguments, patient=patient))
        return started[-1]

    yield start
    for each in started:
        each.process.send_signal(signal.SIGTERM)
    for each in started:
        try:
            each.process.wait(STOPS_WITHIN_S)
        except subprocess.TimeoutExpired:
            each.kill()
        assert each.process.stderr is not None
        each.process.stderr.close()
