"""What a running replica takes up without a restart: rules of its file, names and adapters of the registry.

Once a second it looks whether a file changed. An adapter is loaded through the engine's own route, which nobody else
reaches, on one replica first (`adapter_trials.py`); its tenant gets it after one request with it was answered here.
What is no longer named is unloaded once nothing of it runs. A file that cannot be read, or contradicts itself, changes
nothing, and is said.
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
from serving_adapter.serving.adapter_trials import AdapterTrials
from serving_adapter.serving.exchange import Exchange
from serving_adapter.serving.replica import Replica

LOAD, UNLOAD, SMOKE = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions"
EACH_S: Final = 1.0
TRIED_AGAIN_AFTER_S: Final = 60.0
ANSWERED_WITHIN_S: Final = 120.0
"""Loading an adapter, or its first request; a large one from a slow disk takes some seconds."""
DIES_WITHIN_S: Final = 2.0
"""After an adapter failed: an engine that ends of it is seen to have ended by then."""


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
        journal = replica.journal
        self._trials: AdapterTrials | None = None
        if self._registry is not None:
            self._trials = AdapterTrials(
                self._registry, journal.replica_id, journal.boot_id, lambda: rfc3339(replica.clock.now_ns())
            )
        self._recalled = False
        self._seen: tuple[object, ...] = (self._mark(config_path()),)
        self._served: dict[str, Served] = {}
        self._failed_at: dict[str, float] = {}
        self._said = ""

    async def keep(self) -> None:
        """Look each second, until cancelled. Loading takes its time beside that: what is removed is gone at once."""
        loading: asyncio.Task[None] | None = None
        try:
            while True:
                try:
                    await self._take_up()
                    if loading is None or loading.done():
                        loading = asyncio.create_task(self._load_and_unload())
                except Exception as error:  # whatever it is: serving goes on as it is
                    self._say(f"not taken up: {error}")
                await asyncio.sleep(EACH_S)
        finally:
            if loading is not None:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)

    async def look(self) -> None:
        """Take up what changed, load and unload. Raises SettingsError, RegistryBroken; then all stays as it is."""
        await self._take_up()
        await self._load_and_unload()

    async def _load_and_unload(self) -> None:
        try:
            await self._load_missing()
            await self._unload_rest()
        except Exception as error:  # also what an engine's server may raise
            self._say(f"not taken up: {error}")

    async def _take_up(self) -> None:
        if self._trials is not None and not self._recalled:
            self._served = await asyncio.to_thread(self._trials.recall)
            self._recalled = True
            for engine, served in self._served.items():
                self._not_served(engine, served)
            if self._served:
                await asyncio.to_thread(self._tell)
        seen = await asyncio.to_thread(self._marks)
        if seen != self._seen:
            if seen[:1] != self._seen[:1]:
                self._base = (await asyncio.to_thread(AdapterSettings.from_environment)).rules
            rules = await asyncio.to_thread(self._rules)
            for adapter in rules.adapters:
                if adapter.path is not None and adapter.engine not in self._served:
                    self._replica.unready[adapter.engine] = "it is being loaded"
            self._replica.use(rules)
            if len(self._seen) == len(seen):
                self._say("rules and names taken up")
            self._seen = seen

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
        for adapter in self._replica.rules.adapters:
            if adapter.engine not in self._named():
                continue  # removed while another one was loaded
            served = self._served.get(adapter.engine)
            tried = self._failed_at.get(adapter.engine, -TRIED_AGAIN_AFTER_S)
            is_served = served is not None and served.state == "serving"
            if adapter.path is None or is_served or time.monotonic() - tried < TRIED_AGAIN_AFTER_S:
                continue
            if self._trials is not None:
                standing = await asyncio.to_thread(self._trials.may_try, adapter.engine, served)
                if standing is not None:
                    if standing != served:
                        self._not_served(adapter.engine, standing, adapter.tenant_id)
                        await self._put(adapter, standing)
                    continue
            await self._put(adapter, Served(state="trying"))
            await self._try(adapter)

    async def _try(self, adapter: Adapter) -> None:
        """Load it, and ask it once. Says how it went."""
        began = time.monotonic()
        try:
            await self._load(adapter)
            await self._smoke(adapter)
        except NotLoaded as error:
            self._failed_at[adapter.engine] = time.monotonic()
            standing = Served(state="failed", why=str(error))
            if self._trials is not None:
                if await self._engine_lives():
                    await asyncio.to_thread(self._trials.failed, adapter.engine)
                else:
                    standing = await asyncio.to_thread(self._trials.died, adapter.engine, str(error))
            self._not_served(adapter.engine, standing, adapter.tenant_id)
            await self._put(adapter, standing)
        except asyncio.CancelledError:
            if self._trials is not None and not self._is_dead():  # the server stops, and not because of this
                self._trials.failed(adapter.engine)
                del self._served[adapter.engine]
                self._tell()
            raise
        else:
            self._replica.unready.pop(adapter.engine, None)
            if self._trials is not None:
                await asyncio.to_thread(self._trials.served, adapter.engine)
            await self._put(adapter, Served(state="serving", load_ms=int((time.monotonic() - began) * 1000)))

    def _not_served(self, engine: str, standing: Served, tenant_id: str = "its tenant") -> None:
        """Its tenant is told why; for the platform it is an alert, except where it only waits."""
        self._replica.unready[engine] = standing.why
        if standing.state != "waiting":
            self._replica.metrics.adapter_failures += 1
            self._say(f"ALERT: adapter {engine} of {tenant_id} is not served: {standing.why}")

    async def _engine_lives(self) -> bool:
        """Whether the engine's server says so, some time after something went wrong."""
        await asyncio.sleep(DIES_WITHIN_S)
        try:
            status, _ = await self._ask("/health", None, method="GET")
        except NotLoaded:
            return False
        return status < 500 and not self._is_dead()  # some have no such page

    def _is_dead(self) -> bool:
        """What vLLM's client knows of its engine; a proxy knows nothing."""
        client = getattr(getattr(self._outer, "state", None), "engine_client", None)
        return bool(getattr(client, "errored", False))

    async def _unload_rest(self) -> None:
        for engine in [engine for engine in self._served if engine not in self._named()]:
            if not self._replica.runs(engine) and engine not in self._named():
                del self._served[engine]  # named again from now on, it is loaded first
                try:
                    status, answer = await self._ask(UNLOAD, {"lora_name": engine})
                    if status not in (200, 404):
                        self._say(f"adapter {engine} was not unloaded: {_told(status, answer)}")
                except NotLoaded as error:
                    self._say(f"adapter {engine} was not unloaded: {error}")
                if engine not in self._named():
                    self._replica.unready.pop(engine, None)
                self._failed_at.pop(engine, None)
                await asyncio.to_thread(self._tell)

    def _named(self) -> set[str]:
        """Adapters that the rules name now."""
        return {adapter.engine for adapter in self._replica.rules.adapters}

    async def _load(self, adapter: Adapter) -> None:
        assert adapter.path is not None
        if not await asyncio.to_thread(Path(adapter.path).is_dir):
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
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                await exchange.serve(self._scope(SMOKE, answer), answer.receive, answer.send)
        except Refusal as refusal:
            raise NotLoaded(f"its first request was refused: {refusal}") from None
        except TimeoutError:
            raise NotLoaded(f"its first request had no answer in {ANSWERED_WITHIN_S:.0f} s") from None
        except Exception as error:  # whatever an engine may raise: the replica goes on without this adapter
            raise NotLoaded(f"its first request failed: {error}") from None
        if answer.status != 200:
            raise NotLoaded(f"its first request failed: {_told(answer.status, answer.body)}")

    async def _ask(self, path: str, body: Any, method: str = "POST") -> tuple[int, bytes]:
        """The engine's own answer. Raises NotLoaded where there is none."""
        answer = _Asked(body)
        try:
            async with asyncio.timeout(ANSWERED_WITHIN_S):
                await self._app()(self._scope(path, answer, method), answer.receive, answer.send)
        except TimeoutError:
            raise NotLoaded(f"the engine did not answer {path} in {ANSWERED_WITHIN_S:.0f} s") from None
        except Exception as error:  # whatever an engine's server may raise
            raise NotLoaded(f"the engine failed at {path}: {error}") from None
        return answer.status, answer.body

    def _scope(self, path: str, asked: _Asked, method: str = "POST") -> dict[str, Any]:
        length = str(len(asked.sent)).encode()
        return {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "state": {},
            "headers": [(b"content-type", b"application/json"), (b"content-length", length)],
            "client": ("127.0.0.1", 0), "server": ("127.0.0.1", 0), "app": self._outer,
        }  # fmt: skip

    async def _put(self, adapter: Adapter, served: Served) -> None:
        self._served[adapter.engine] = served
        await asyncio.to_thread(self._tell)

    def _tell(self) -> None:
        if self._registry is not None:
            journal = self._replica.journal
            self._registry.say(
                ReplicaStatus(
                    replica_id=journal.replica_id, boot_id=journal.boot_id, at=rfc3339(self._replica.clock.now_ns()),
                    adapters=dict(self._served),
                )
            )  # fmt: skip

    def _say(self, text: str) -> None:
        if text != self._said:
            print(f"tollbook: {text}", file=sys.stderr, flush=True)
        self._said = text

    def _marks(self) -> tuple[object, object]:
        """Of the file, and of the registry."""
        return self._mark(config_path()), self._mark(self._registry.file if self._registry else None)

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
