"""An engine double behind the middleware, and how to ask it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serving_adapter.events import UsageEvent
from serving_adapter.isolation.callers import Caller, sign
from serving_adapter.isolation.rules import Rules
from serving_adapter.serving.adapter_settings import AdapterSettings, SpoolSection
from serving_adapter.serving.middleware import Middleware
from serving_adapter.serving.replica import Replica
from tests.adapter_builders import events
from tests.engine_double import EngineClient, engine_app

PROMPT = "one two three four five six seven eight nine"
KEY = b"k" * 32
RULES = {
    "models": {"tiny": [{"engine": "tiny", "revision": "r1"}], "fast": [{"engine": "tiny", "revision": "r1"}]},
    "adapters": [
        {"tenant_id": "tenant_a", "name": "fr", "engine": "tenant_a--fr--1", "base": "tiny", "revision": "1"},
        {"tenant_id": "tenant_b", "name": "law", "engine": "tenant_b--law--1", "base": "tiny", "revision": "1"},
    ],
    "tiers": {"paid": {"priority": -5}, "free": {"priority": 10, "may_be_shed": True}},
    "limits": {"body_bytes": 20_000, "prompts": 4, "n": 4, "max_tokens": 500, "seconds": 60.0},
}


@dataclass
class Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: int = 0
    whole: bool = False


class Served:
    """An engine double behind the middleware, and how to ask it."""

    def __init__(self, replica: Replica, step: float) -> None:
        self.app = engine_app(step)
        self.replica = replica
        self.middleware = Middleware(self.app, replica)

    @property
    def engine(self) -> EngineClient:
        client: EngineClient = self.app.state.engine_client
        return client

    def signed(self, tenant: str = "tenant_a", **more: Any) -> dict[str, str]:
        now = self.replica.clock.now_ns() // 10**9
        return {"x-tollbook-caller": sign(Caller(tenant_id=tenant, **more), "k1", KEY, now=now)}

    async def ask(
        self,
        body: Any,
        path: str = "/v1/completions",
        *,
        method: str = "POST",
        tenant: str = "tenant_a",
        headers: dict[str, str] | None = None,
        leave_after: int | None = None,
        leave_when: Callable[[], Awaitable[Any]] | None = None,
        client: str = "10.0.0.9",
        **caller: Any,
    ) -> Answer:
        """`leave_after`: the client is gone after so many pieces; 0 with the request still being sent."""
        sent = self.signed(tenant, **caller) if headers is None else headers
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer, gone, asked = Answer(), asyncio.Event(), False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked and leave_after != 0:
                asked = True
                return {"type": "http.request", "body": payload, "more_body": False}
            if leave_when is not None:
                await leave_when()
            elif leave_after != 0:
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
                return
            answer.body += message.get("body", b"")
            answer.pieces += bool(message.get("body"))
            answer.whole = not message.get("more_body", False)
            if answer.whole or answer.pieces == leave_after:
                gone.set()

        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in sent.items()], "client": (client, 1),
            "app": self.app, "http_version": "1.1", "scheme": "http", "root_path": "", "server": ("replica", 80),
        }  # fmt: skip
        await self.middleware(scope, receive, send)
        return answer

    async def told(self, least: int = 1) -> list[UsageEvent]:
        """The events, once there are so many, nothing is open, and all of them are on disk."""
        journal = self.replica.journal
        while (now := journal.standing()).open or len(events(journal.folder)) < max(least, now.last_seq):
            await asyncio.sleep(0.002)
        return events(journal.folder)


@pytest.fixture
def adapter_settings(tmp_path: Path) -> AdapterSettings:
    def secret(name: str, text: bytes) -> str:
        (tmp_path / name).write_bytes(text)
        os.chmod(tmp_path / name, 0o600)
        return str(tmp_path / name)

    return AdapterSettings(
        replica_id="r1", spool=SpoolSection(folder=str(tmp_path / "spool")), region="eu", pool="h100",
        salt_key=secret("salt", b"s" * 32), gateway_keys=secret("keys", b"k1 " + KEY), ready_after_probe=False,
        rules=msgspec.convert(RULES, Rules),
    )  # fmt: skip


@asynccontextmanager
async def serving(settings: AdapterSettings, step: float = 0.0005) -> AsyncIterator[Served]:
    served = Served(Replica(settings), step)
    try:
        yield served
    finally:
        await served.replica.stop()


def check_conservation(served: Served, found: list[UsageEvent]) -> None:
    """Σ `engine_*` of events = the engine's counters, exactly."""
    counters = served.engine.output_processor.counters
    assert sum(e.output_tokens for e in found) == counters["generation"]
    assert (
        sum(e.input_tokens if e.engine_input_tokens is None else e.engine_input_tokens for e in found)
        == (counters["prompt"])
    )
    assert (
        sum(e.cache_hit_tokens if e.engine_cached_tokens is None else e.engine_cached_tokens for e in found)
        == (counters["cached"])
    )
