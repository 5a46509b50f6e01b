"""A real vLLM server with the adapter in it: started, asked over HTTP, stopped, killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from devstack import ports
from serving_adapter.isolation.callers import Caller, sign
from serving_adapter.spool.folders import BootFolder, boots
from tests.vllm.environment import QUIET, REPOSITORY, adapter_site, folder, prepare

KEY: Final = b"k" * 32
SALT_KEY: Final = b"s" * 32
READY_WITHIN_S: Final = 600.0
TAKEN_UP_S: Final = 5.0
DRAIN_S: Final = 1
"""What SIGTERM leaves to requests in flight: less than the tests' long ones take, however fast the machine."""
CONFIG: Final = """
replica_id = "r1"
region = "eu"
ready_after_probe = false
registry = "{home}/registry"
salt_key = "{home}/salt"
gateway_keys = "{home}/keys"
spool = {{ folder = "{home}/spool" }}
rules.models.tiny = [{{ engine = "tiny", revision = "r1" }}]
rules.tiers.paid = {{ priority = -5 }}
[[rules.adapters]]
tenant_id = "tenant_a"
name = "fr"
engine = "tenant_a--fr--1"
base = "tiny"
[[rules.adapters]]
tenant_id = "tenant_b"
name = "law"
engine = "tenant_b--law--1"
base = "tiny"
"""
METERED: Final = (
    "--middleware", "serving_adapter.Middleware",
    "--scheduler-cls", "serving_adapter.engine.vllm_scheduler.MeteringScheduler",
)  # fmt: skip


class Server:
    """One after another on the same spool: each start is a boot."""

    def __init__(self, home: Path) -> None:
        self.home = home
        for name, text in (("salt", SALT_KEY), ("keys", b"k1 " + KEY), ("adapter.toml", CONFIG.format(home=home))):
            (home / name).write_bytes(text if isinstance(text, bytes) else text.encode())
            (home / name).chmod(0o600)
        self.port = ports.choose()
        self.spool = home / "spool"
        self.log = home / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def at(home: Path, port: int, spool: Path) -> Server:
        """One that somebody else starts."""
        server = Server(home)
        server.port, server.spool = port, spool
        return server

    @property
    def boot(self) -> BootFolder:
        """The latest boot's spool."""
        return boots(self.spool)[-1]

    @contextlib.contextmanager
    def other_rules(self, lines: str) -> Iterator[None]:
        """Further rules while the block lasts. The replica looks at its file each second."""
        file = self.home / "adapter.toml"
        before = file.read_text()
        file.write_text(before.replace("\nrules.", f"\n{lines}\nrules.", 1))
        time.sleep(TAKEN_UP_S)
        try:
            yield
        finally:
            file.write_text(before)
            time.sleep(TAKEN_UP_S)

    async def answers(self) -> None:
        """Return once it does."""
        while True:
            try:
                if (await self.ask(None, "/health", method="GET"))[0] == 200:
                    return
            except OSError:
                await asyncio.sleep(0.1)

    def start(self, *flags: str, metered: bool = True, sees: bool = False, **more: str) -> None:
        """Return once it answers. `metered` False: a bare vLLM. `flags`, `more`: further flags and variables.

        `sees`: the model that takes images, and has no adapters.
        """
        python, model = prepare(), folder() / "model"
        of_model = ["--model", model / "seeing", "--enable-mm-embeds"] if sees else [
            "--model", model / "model", "--enable-lora", "--max-lora-rank", 8, "--max-loras", 2, "--max-cpu-loras", 4,
            "--lora-modules",
            *(f"{name}={model}/adapters/{name}" for name in ("tenant_a--fr--1", "tenant_b--law--1")),
        ]  # fmt: skip
        command = [
            python, "-m", "vllm.entrypoints.openai.api_server", *of_model, "--served-model-name",
            "tiny", "--host", "127.0.0.1", "--port", self.port, "--dtype", "bfloat16", "--max-model-len", 32768,
            "--max-num-seqs", 16, "--enforce-eager", "--enable-prefix-caching", "--block-size", 32,
            "--scheduling-policy", "priority", "--enable-auto-tool-choice", "--tool-call-parser", "hermes",
            "--generation-config", "vllm", "--shutdown-timeout", DRAIN_S, "--enable-prompt-tokens-details",
            *(METERED if metered else []), *flags,
        ]  # fmt: skip
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TOLLBOOK_")}, **QUIET,
            "PYTHONPATH": f"{adapter_site()}:{REPOSITORY}" if metered else str(REPOSITORY),  # its wheel comes first
            "TOLLBOOK_ADAPTER_CONFIG": str(self.home / "adapter.toml"),
            "VLLM_CACHE_ROOT": str(folder() / "cache"), "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_ENABLE_RESPONSES_API_STORE": "1", "VLLM_LORA_RESOLVER_CACHE_DIR": str(model / "model"),
            **({"TOLLBOOK_GPU_SOCKET": str(self.home / "gpu")} if metered else {}), **more,
        }  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(word) for word in command], stdout=log, stderr=log, env=environ, start_new_session=True,
                cwd=self.home,  # Python looks there first, and there is no second adapter
            )  # fmt: skip
        until = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                if asyncio.run(self.ask(None, "/health", method="GET"))[0] == 200:
                    return
            except OSError:
                pass
            if self._process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"vLLM did not start: {self.log}")
            time.sleep(0.5)

    def stop(self) -> None:
        """SIGTERM, and wait; what is left of its own group after two minutes is killed."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """`kill -9` of the server and the engine's process, which would go on generating."""
        self._end(signal.SIGKILL)

    def processes(self) -> tuple[int, dict[int, bytes]]:
        """The id of the server, which has the adapter in it; and the others of its group, with their command lines."""
        assert self._process is not None
        others = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
                if group == self._process.pid != int(process.name):
                    others[int(process.name)] = (process / "cmdline").read_bytes()
        return self._process.pid, others

    def wait_for_end(self) -> None:
        """Until the server has ended by itself; two minutes at most."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(120)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        if number is signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and nothing of its group is left
                os.killpg(self._process.pid, number)
        else:
            self._process.send_signal(number)
        try:
            self._process.wait(120)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    async def ask(
        self,
        body: Any,
        path: str = "/v1/completions",
        *,
        tenant: str = "tenant_a",
        method: str = "POST",
        leave_after: tuple[int, float] | None = None,
        headers: dict[str, str] | None = None,
        request_id: str | None = None,
        told: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body. `leave_after`: the client is gone after so many bytes, or seconds once it was read.

        `told` gets the answer's headers.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        data = json.dumps(body).encode() if body is not None else b""
        caller = Caller(tenant_id=tenant, tier="paid", request_id=request_id, attempt=1 if request_id else None)
        signed = sign(caller, "k1", KEY, now=int(time.time()))
        sent = {"x-tollbook-caller": signed, "content-type": "application/json"} | (headers or {})
        if leave_after is not None and not leave_after[0]:
            sent["expect"] = "100-continue"  # said once the request is read: who leaves before that has asked nothing
        asked = f"{method} {path} HTTP/1.1\r\nhost: replica\r\nconnection: close\r\n"
        asked += "".join(f"{name}: {value}\r\n" for name, value in sent.items())
        writer.write(f"{asked}content-length: {len(data)}\r\n\r\n".encode() + data)
        try:
            if leave_after is not None:
                size, seconds = leave_after
                if not size:
                    await reader.readuntil(b"\r\n\r\n")
                with contextlib.suppress(asyncio.IncompleteReadError, TimeoutError):
                    await asyncio.wait_for(reader.readexactly(size or 1 << 30), seconds)
                return 0, b""
            got = await reader.read()
            head, _, answer = got.partition(b"\r\n\r\n")
            if told is not None:
                lines = (line.partition(":") for line in head.decode().split("\r\n")[1:])
                told.update({name.lower(): value.strip() for name, _, value in lines})
            return (int(got.split()[1]) if got else 0), answer
        finally:
            writer.close()
