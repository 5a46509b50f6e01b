"""`kill -9` at random on a real vLLM with its shipper, to the database: each request that began is there, once.

In each boot the shipper is killed while requests go on, then the engine's process, the server with the adapter in it,
or both; or the engine ends by an error of its own. What the killed boots leave is recovered and shipped by the next
shipper; what the engine counted and no event has is listed for each boot. The replica's supervisor is played here: what
is left of its process group is killed too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serving_adapter.clock import ReplicaClock
from serving_adapter.events import UsageEvent
from serving_adapter.report_sender import ReportSender
from serving_adapter.request_ids import uuid7
from serving_adapter.scrape import Scraper, Target
from serving_adapter.settings import KafkaSettings
from serving_adapter.spool.folders import boots
from serving_adapter.spool.recovery import recover, replay
from streams.database import connect
from tests.adapter_builders import events
from tests.vllm.environment import REPOSITORY
from tests.vllm.failing import ENDS_ENGINE, FAILING
from tests.vllm.server import Server

AT_ONCE: Final = 12
KINDS: Final = ("engine", "server", "both", "by itself")
"""What ends: `by itself` is an engine that raises."""
OF_THE_ENGINE: Final = ("engine", "by itself")
"""After which the server ends by itself."""
OWN: Final = {"tenant_a": "fr", "tenant_b": "law"}
COLUMNS: Final = ("killed", "started", "ended", "lost", "standing", "engine − events (prompt, generated, cached)")


class Killing:
    """Traffic, and what is killed meanwhile."""

    def __init__(self, home: Path, environ: Mapping[str, str], seed: int) -> None:
        self.server = Server(home)
        self.answered: dict[str, bool] = {}
        """Requests that were sent: whether a whole answer came."""
        self.killed: list[str] = []
        """For each boot."""
        self.shippers_killed = 0
        self._environ = dict(environ)
        self._reports = ReportSender(KafkaSettings.from_environment(environ))
        self._chance = random.Random(seed)
        self._shipper: subprocess.Popen[bytes] | None = None

    def boot(self, what: str) -> None:
        """From a start of the server to the end of its last process."""
        self.server.start(*FAILING, TOLLBOOK_KAFKA=self._environ["TOLLBOOK_KAFKA"])
        self._ship()
        url = f"http://127.0.0.1:{self.server.port}/metrics"
        Scraper(Target(url, "r1"), self._reports.send).scrape()  # one at least, however soon the kill comes
        scraper = self._adapter("scrape", "--url", url, "--replica", "r1", "--interval", "1")
        try:
            asyncio.run(self._traffic(what))
        finally:
            self.server.kill()
            scraper.terminate()
            scraper.wait(120)
        self.killed.append(what)

    def finish(self) -> None:
        """Recover and ship the rest."""
        self.close()
        done = self._adapter("ship", "--spool", str(self.server.spool), "--dev", "--once")
        assert done.wait(300) == 0

    def close(self) -> None:
        """No shipper any more."""
        if self._shipper is not None:
            self._shipper.kill()
            self._shipper.wait()
            self._shipper = None

    def _ship(self) -> None:
        self.close()
        self._shipper = self._adapter("ship", "--spool", str(self.server.spool), "--dev")

    def _adapter(self, *words: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "serving_adapter.command_line", *words]
        with (self.server.home / "beside.log").open("ab") as log:
            return subprocess.Popen(command, env=self._environ, cwd=REPOSITORY, stdout=log, stderr=log)

    async def _traffic(self, what: str) -> None:
        over = asyncio.Event()
        lanes = [asyncio.create_task(self._lane(over)) for _ in range(AT_ONCE)]
        for _ in range(2):
            await asyncio.sleep(self._chance.uniform(0.5, 2.5))
            self._ship()
            self.shippers_killed += 1
        await asyncio.sleep(self._chance.uniform(0.5, 2.5))
        if what == "by itself":
            await self._end_engine()
        await asyncio.to_thread(self._kill, what)
        over.set()
        await asyncio.gather(*lanes)

    async def _lane(self, over: asyncio.Event) -> None:
        """One request after another, as long as there is somebody to ask."""
        while not over.is_set():
            request_id, tenant = uuid7(time.time_ns()), self._chance.choice(["tenant_a", "tenant_b", "tenant_c"])
            body: dict[str, Any] = {
                "model": self._chance.choice(["tiny", OWN.get(tenant, "tiny")]),
                "max_tokens": self._chance.randint(5, 150),
                "prompt": "count tokens " * self._chance.randint(1, 30), "n": self._chance.choice([1, 1, 2]),
                "ignore_eos": True, "stream": self._chance.random() < 0.5,
            }  # fmt: skip
            leave = (self._chance.randint(500, 9000), 60.0) if self._chance.random() < 0.2 else None
            self.answered[request_id] = False
            try:
                status, answer = await self.server.ask(body, tenant=tenant, request_id=request_id, leave_after=leave)
            except ConnectionRefusedError:
                del self.answered[request_id]
                await asyncio.sleep(0.05)
                continue
            except OSError:
                continue
            whole = b"data: [DONE]" in answer if body["stream"] else answer.endswith(b"}")
            self.answered[request_id] = status == 200 and whole and b'"error"' not in answer

    async def _end_engine(self) -> None:
        """A request at which the engine raises, which ends it for all."""
        request_id = uuid7(time.time_ns())
        self.answered[request_id] = False
        body = {"model": "tiny", "prompt": "the end", "max_tokens": 9, "ignore_eos": True, "seed": ENDS_ENGINE}
        with contextlib.suppress(OSError):
            assert (await self.server.ask(body, request_id=request_id))[0] in (0, 500)

    def _kill(self, what: str) -> None:
        """`kill -9`; what is left of the group goes a moment later, as a supervisor would see to it."""
        if what != "by itself":
            server, others = self.server.processes()
            (engine,) = (process for process, command in others.items() if b"EngineCore" in command)
            for process, killed in ((server, what != "engine"), (engine, what != "server")):
                if killed:
                    os.kill(process, signal.SIGKILL)
        if what in OF_THE_ENGINE:
            self.server.wait_for_end()
        else:
            time.sleep(0.5)
        self.server.kill()


def random_kills(home: Path, environ: Mapping[str, str], seed: int, number: int) -> None:
    """Boots that are killed, and what is known of them in the end. Raises AssertionError."""
    killing = Killing(home, environ, seed)
    order = [KINDS[at % len(KINDS)] for at in range(number)]
    random.Random(seed).shuffle(order)
    _tollbook(environ, "db", "upgrade")
    _tollbook(environ, "tenant", "add", "tenant_a", "tenant_b", "tenant_c")
    try:
        for what in order:
            killing.boot(what)
        killing.finish()
    finally:
        killing.server.kill()
        killing.close()
    _tollbook(environ, "streams", "run", "--drain")
    stored = _stored(environ)
    spooled = Counter(_key(event) for boot in boots(killing.server.spool) for event in events(boot))
    twice = [key for key, times in spooled.items() if times > 1]
    assert not twice, f"twice in the spool: {twice}"
    assert stored == spooled, ((stored - spooled), (spooled - stored))
    _check_requests(killing, stored)
    _list_boots(killing, json.loads(_tollbook(environ, "streams", "status", "--json")))
    print(f"  {len(stored)} events stored, none twice; {killing.shippers_killed} shippers killed", flush=True)


def _check_requests(killing: Killing, stored: Counter[tuple[Any, ...]]) -> None:
    """Nothing that was not sent is there, and all that was answered is: ok, or lost where its end was not on disk yet.

    An answer does not wait for its end's sync: what a kill between the two leaves is known by its start and progress.
    """
    statuses = {request: status for tenant, request, kind, status, *_ in stored if kind == "usage" and tenant[0] != "_"}
    assert len(statuses) == sum(1 for tenant, _, kind, *_ in stored if kind == "usage" and tenant[0] != "_")
    assert set(statuses) <= set(killing.answered), "an event of a request that nobody sent"
    told = Counter(statuses.get(request) for request, whole in killing.answered.items() if whole)
    assert set(told) <= {"ok", "lost"}, told
    print(f"  {len(killing.answered)} requests sent, {told['ok'] + told['lost']} answered whole, {told['lost']} of them"
          " lost before their ends were on disk", flush=True)  # fmt: skip


def _list_boots(killing: Killing, status: dict[str, Any]) -> None:
    """Started = ended + lost for each boot; how its engine's counters differ is shown."""
    engines = status["engines"]
    assert engines["unaccounted_requests"] == [], engines["unaccounted_requests"]
    print("  " + " | ".join(COLUMNS))
    for what, boot in zip(killing.killed, boots(killing.server.spool), strict=True):
        assert recover(boot, ReplicaClock().now_ns) is None, "the shipper has recovered it"
        state, _, damage = replay(boot)
        lost = sum(event.status == "lost" for event in events(boot))
        assert (state.started, damage) == (state.ended + lost, []), (state.started, state.ended, lost, damage)
        failed = [event for event in events(boot) if event.finish_reason == "engine_error"]
        assert what not in OF_THE_ENGINE or failed, "nothing was at work in the engine that was killed"
        assert all((event.status, event.fault) == ("error", "platform") for event in failed)
        (found,) = [told for told in engines["boots"] if told["boot_id"] == boot.boot_id and told["model"] == "tiny"]
        assert found["standing"] in ("equal", "cut_off"), found
        difference = tuple(found["difference"].values())
        print("  " + " | ".join(map(str, (what, state.started, state.ended, lost, found["standing"], difference))))


def _key(event: UsageEvent) -> tuple[Any, ...]:
    return (
        event.tenant_id, event.request_id, event.kind, event.status, event.correction_no, event.input_tokens,
        event.output_tokens, event.gpu_us,
    )  # fmt: skip


def _stored(environ: Mapping[str, str]) -> Counter[tuple[Any, ...]]:
    """The database's events."""
    with connect(environ["TOLLBOOK_DATABASE_URL"]) as connection, contextlib.closing(connection.cursor()) as cursor:
        rows = cursor.execute(
            "select tenant_id, request_id, kind, status, correction_no, input_tokens, output_tokens, gpu_us"
            " from usage.events"
        )
        return Counter(tuple(row) for row in rows)


def _tollbook(environ: Mapping[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "console.main", *words]
    done = subprocess.run(command, env=dict(environ), cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout
