"""What a running replica takes up without a restart: rules of its file, names and adapters of the registry.

Once a second it looks whether a file changed. An adapter is loaded through the engine's own route, which nobody else
reaches; its tenant gets it after one request with it was answered here. What is no longer named is unloaded once
nothing of it runs. A file that cannot be read, or contradicts itself, changes nothing, and is said.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from serving_adapter.adapters.registry_folder import RegistryBroken, RegistryFolder, ReplicaStatus, Served
from serving_adapter.asgi import App, Message
from serving_adapter.clock import rfc3339
from serving_adapter.errors import AdapterError
from serving_adapter.isolation.callers import Caller
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.registry import merged
from serving_adapter.isolation.routes import Route
from serving_adapter.isolation.rules import Adapter, Rules
from serving_adapter.serving.adapter_settings import AdapterSettings, config_path
from serving_adapter.serving.exchange import Exchange
from serving_adapter.serving.replica import Replica

LOAD, UNLOAD, SMOKE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
EACH_S: Final = 1.0
TRIED_AGAIN_AFTER_S: Final = 60.0


class NotLoaded(AdapterError):
    """The engine, or a first request, did not take an adapter."""


class AdapterLoading:
    """One replica's. Everything on its event loop."""

    def __init__(self, replica: Replica, app: Callable[[], App], outer: Any = None) -> None:
        """`app`: the engine's; `outer`: what its scopes name as the app."""
        self._replica = replica
        self._app = app
        self._outer = outer
        self._base = replica.rules
        folder = replica.settings.registry
        self._registry = RegistryFolder(Path(folder)) if folder else None
        self._seen: tuple[object, ...] = (self._mark(config_path()),)
        self._served: dict[str, Served] = {}
        self._failed_at: dict[str, float] = {}
        self._said = ""

    async def keep(self) -> None:
        """Look each second, until cancelled."""
        while True:
            try:
                await self.look()
            except Exception as error:  # also what an engine's server may raise: serving goes on as it is
                self._say(f"not taken up: {error}")
            await asyncio.sleep(EACH_S)

    async def look(self) -> None:
        """Take up what changed, load and unload. Raises SettingsError, RegistryBroken; then all stays as it is."""
        seen = (self._mark(config_path()), self._mark(self._registry.file if self._registry else None))
        if seen != self._seen:
            if seen[:1] != self._seen[:1]:
                self._base = AdapterSettings.from_environment().rules
            rules = self._rules()
            for adapter in rules.adapters:
                if adapter.path is not None and adapter.engine not in self._served:
                    self._replica.unready[adapter.engine] = "it is being loaded"
            self._replica.use(rules)
            if len(self._seen) == len(seen):
                self._say("rules and names taken up")
            self._seen = seen
        await self._load_missing()
        await self._unload_rest()

    def _rules(self) -> Rules:
        if self._registry is None:
            return self._base
        registry = self._registry.read()
        paths = {version.engine: str(self._registry.files_of(version.engine)) for version in registry.versions}
        try:
            return merged(self._base, registry, paths)
        except ValueError as error:
            raise RegistryBroken(str(error)) from None

    async def _load_missing(self) -> None:
        now = time.monotonic()
        for adapter in self._replica.rules.adapters:
            served = self._served.get(adapter.engine)
            tried = self._failed_at.get(adapter.engine, -TRIED_AGAIN_AFTER_S)
            if adapter.path is None or (served and served.state == "serving") or now - tried < TRIED_AGAIN_AFTER_S:
                continue
            began = time.monotonic()
            try:
                await self._load(adapter)
                await self._smoke(adapter)
            except NotLoaded as error:
                self._failed_at[adapter.engine] = now
                self._replica.unready[adapter.engine] = str(error)
                self._replica.metrics.adapter_failures += 1
                self._put(adapter, Served(state="failed", why=str(error)))
                self._say(f"ALERT: adapter {adapter.engine} of {adapter.tenant_id} is not served: {error}")
            else:
                self._replica.unready.pop(adapter.engine, None)
                self._put(adapter, Served(state="serving", load_ms=int((time.monotonic() - began) * 1000)))

    async def _unload_rest(self) -> None:
        named = {adapter.engine for adapter in self._replica.rules.adapters}
        for engine in [engine for engine in self._served if engine not in named]:
            if not self._replica.runs(engine):
                status, answer = await self._ask(UNLOAD, {"lora_name": engine})
                if status not in (200, 404):
                    self._say(f"adapter {engine} was not unloaded: {_told(status, answer)}")
                self._replica.unready.pop(engine, None)
                del self._served[engine]
                self._tell()

    async def _load(self, adapter: Adapter) -> None:
        assert adapter.path is not None
        if not Path(adapter.path).is_dir():
            raise NotLoaded("its files are not there")
        status, answer = await self._ask(LOAD, {"lora_name": adapter.engine, "lora_path": adapter.path})
        if status != 200 and b"already been loaded" not in answer:
            raise NotLoaded(f"the engine refused it: {_told(status, answer)}")

    async def _smoke(self, adapter: Adapter) -> None:
        """A request of one token in its tenant's name, metered as `smoke`, which nobody pays."""
        replica = self._replica
        request = {"model": adapter.name, "prompt": "smoke", "max_tokens": 1}
        resolved = replica.resolver.of(adapter)
        caller = Caller(tenant_id=adapter.tenant_id, purpose="smoke")
        answer = _Asked(request)
        exchange = Exchange(replica, self._app(), Route.COMPLETION, caller, {}, resolved)
        try:
            await exchange.serve(self._scope(SMOKE, answer), answer.receive, answer.send)
        except Refusal as refusal:
            raise NotLoaded(f"its first request was refused: {refusal}") from None
        except Exception as error:  # whatever an engine may raise: the replica goes on without this adapter
            raise NotLoaded(f"its first request failed: {error}") from None
        if answer.status != 200:
            raise NotLoaded(f"its first request failed: {_told(answer.status, answer.body)}")

    async def _ask(self, path: str, body: Any) -> tuple[int, bytes]:
        answer = _Asked(body)
        await self._app()(self._scope(path, answer), answer.receive, answer.send)
        return answer.status, answer.body

    def _scope(self, path: str, asked: _Asked) -> dict[str, Any]:
        length = str(len(asked.sent)).encode()
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "state": {},
            "headers": [(b"content-type", b"application/json"), (b"content-length", length)],
            "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), "app": self._outer,
        }  # fmt: skip

    def _put(self, adapter: Adapter, served: Served) -> None:
        self._served[adapter.engine] = served
        self._tell()

    def _tell(self) -> None:
        if self._registry is not None:
            journal = self._replica.journal
            self._registry.say(
                ReplicaStatus(
                    replica_id=journal.replica_id, boot_id=journal.boot_id, at=rfc3339(self._replica.clock.now_ns()),
                    adapters=self._served,
                )
            )  # fmt: skip

    def _say(self, text: str) -> None:
        if text != self._said:
            print(f"tollbook: {text}", file=sys.stderr, flush=True)
        self._said = text

    @staticmethod
    def _mark(path: Path | None) -> object:
        """What changes with a file."""
        try:
            found = path.stat() if path is not None else None
        except OSError:
            return None
        return found and (found.st_mtime_ns, found.st_ino, found.st_size)


class _Asked:
    """A request of our own within the process."""

    def __init__(self, body: Any) -> None:
        self.sent = msgspec.json.encode(body)
        self._taken = False
        self._never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status = 0
        self.body = b""

    async def receive(self) -> Message:
        """ASGI's."""
        if self._taken:
            await self._never
        self._taken = True
        return {"type": "http.request", "body": self.sent, "more_body": False}

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.body += message.get("body", b"")


def _told(status: int, answer: bytes) -> str:
    if status == 404 and b"Not Found" in answer:
        return "it has no such route (VLLM_ALLOW_RUNTIME_LORA_UPDATING=1)"
    return f"{status} {answer[:300].decode('utf-8', 'replace')}"
