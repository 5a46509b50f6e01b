"""The holes of a bare vLLM that have to do with tenants' LoRA adapters; the last one ends its engine."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any, Final

from serving_adapter.adapters.registry_folder import RegistryFolder
from serving_adapter.command_line import main as command
from tests.lora_builders import lora
from tests.vllm.environment import folder
from tests.vllm.holes import ASKED, CHAT_OF_PARTS, PATHS, UPLOADED, Hole, asked, cached
from tests.vllm.server import Server

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
MORE_THAN_FIT: Final = 5
"""`--max-cpu-loras 4` of the server: one of so many is no longer in memory."""
LONG: Final = {"prompt": "cached under an adapter " * 20, "max_tokens": 1}


def register(server: Server, upload: Path, tenant: str, name: str, *more: str) -> int:
    """The platform's command; its exit code."""
    registry = ("--registry", str(server.home / "registry"), "--tenant", tenant, "--name", name)
    return command(["register", str(upload), *registry, "--base", "tiny", *more])


async def all_served(server: Server, number: int) -> dict[str, Any]:
    """How the replica serves its adapters, once it has tried so many."""
    registry = RegistryFolder(server.home / "registry")
    for _ in range(900):
        found = {engine: served for status in registry.statuses() for engine, served in status.adapters.items()}
        if len(found) == number and not {"waiting", "trying"} & {served.state for served in found.values()}:
            return found
        await asyncio.sleep(0.1)
    raise SystemExit(f"of {number} adapters the replica has {found}")


async def newest_served(server: Server) -> None:
    """Wait until the replica serves the version that was registered last; the one before it may be gone by then."""
    registry = RegistryFolder(server.home / "registry")
    newest = registry.read().versions[-1].engine
    for _ in range(900):
        standing = [status.adapters[newest].state for status in registry.statuses() if newest in status.adapters]
        if "serving" in standing:
            return
        await asyncio.sleep(0.1)
    raise SystemExit(f"{newest} is not served")


async def removed(server: Server, tenant: str, *names: str) -> None:
    """Take them away, and wait until the replica has none."""
    for name in names:
        assert command(["remove", "--registry", str(server.home / "registry"), "--tenant", tenant, "--name", name]) == 0
    await all_served(server, 0)


async def _name_opened(server: Server) -> None:
    assert (await asked(server, ASKED | {"model": UPLOADED}, tenant="tenant_a"))["model"] == UPLOADED


async def _name_closed(server: Server) -> None:
    for name in ("law", UPLOADED, "t_0--law--1"):
        foreign = await asked(server, ASKED | {"model": name}, tenant="tenant_a", expect=404)
        assert foreign["error"]["message"] == f"The model `{name}` does not exist."
    assert (await asked(server, ASKED | {"model": "law"}, tenant="tenant_b"))["model"] == "law"


async def _list_opened(server: Server) -> None:
    listed = (await asked(server, None, "/v1/models"))["data"]
    assert {"tenant_a--fr--1", UPLOADED} <= {model["id"] for model in listed}
    assert any(str(folder()) in json.dumps(model) for model in listed), "with paths"


async def _list_closed(server: Server) -> None:
    for tenant, names in (("tenant_a", ["tiny", "fr"]), ("tenant_b", ["tiny", "law"]), ("tenant_c", ["tiny"])):
        listed = await asked(server, None, "/v1/models", tenant=tenant)
        assert [model["id"] for model in listed["data"]] == names
        assert str(folder()) not in json.dumps(listed)


async def _path_opened(server: Server) -> None:
    for path in PATHS:
        assert (await asked(server, ASKED | {"model": path}))["model"] == path


async def _path_closed(server: Server) -> None:
    for path in PATHS:
        await asked(server, ASKED | {"model": path}, expect=404)


async def _type_opened(server: Server) -> None:
    await asked(server, {"lora_name": "text", "lora_path": PATHS[1]}, LOAD)
    assert (await asked(server, CHAT_OF_PARTS, "/v1/chat/completions"))["model"] == "text"
    await asked(server, {"lora_name": "text"}, UNLOAD)


async def _type_closed(server: Server) -> None:
    assert register(server, lora(server.home / "text", fill=1), "tenant_c", "text") == 1
    assert (await asked(server, CHAT_OF_PARTS, "/v1/chat/completions"))["model"] == "tiny"


async def _stale_opened(server: Server) -> None:
    upload, body = lora(server.home / "changing", fill=1), LONG | {"model": "changing"}
    about = {"lora_name": "changing", "lora_path": str(upload)}
    await asked(server, about, LOAD)
    assert [cached(await asked(server, body)) > 0 for _ in range(2)] == [False, True]
    lora(upload, fill=2)
    await asked(server, {"lora_name": "changing"}, UNLOAD)
    await asked(server, about, LOAD)
    assert cached(await asked(server, body)) > 0, "what other weights have computed"
    await asked(server, {"lora_name": "changing"}, UNLOAD)


async def _stale_closed(server: Server) -> None:
    upload, body = lora(server.home / "changing", fill=1), LONG | {"model": "changing"}
    assert register(server, upload, "tenant_c", "changing") == 0
    await all_served(server, 1)
    assert [cached(await asked(server, body, tenant="tenant_c")) > 0 for _ in range(2)] == [False, True]
    assert register(server, lora(upload, fill=2), "tenant_c", "changing") == 0
    await newest_served(server)
    assert cached(await asked(server, body, tenant="tenant_c")) == 0
    await removed(server, "tenant_c", "changing")


async def _gone_opened(server: Server) -> str:
    uploads = [lora(server.home / f"gone{number}", fill=number) for number in range(MORE_THAN_FIT)]
    for upload in uploads:
        await asked(server, {"lora_name": upload.name, "lora_path": str(upload)}, LOAD)
        await asked(server, ASKED | {"model": upload.name})
    shutil.rmtree(uploads[0])
    status, answer = await server.ask(ASKED | {"model": uploads[0].name})
    assert status == 500, (status, answer)
    for _ in range(300):
        try:
            status, _ = await server.ask(ASKED | {"model": "tiny"})
        except OSError:
            return "the server is gone"
        if status >= 500:
            return f"everybody gets {status}"
        await asyncio.sleep(0.1)
    raise AssertionError("the engine goes on")


async def _gone_closed(server: Server) -> None:
    names = [f"gone{number}" for number in range(MORE_THAN_FIT)]
    for number, name in enumerate(names):
        assert register(server, lora(server.home / name, fill=number), "tenant_c", name) == 0
        shutil.rmtree(server.home / name)
    await all_served(server, len(names))
    for name in (*names, "tiny"):
        await asked(server, ASKED | {"model": name}, tenant="tenant_c")
    await removed(server, "tenant_c", *names)


ADAPTER_HOLES: Final = (
    Hole("another's adapter by its name", _name_opened, _name_closed),
    Hole("everybody's adapters are listed, with paths", _list_opened, _list_closed),
    Hole("an adapter by any path, where a folder is searched", _path_opened, _path_closed),
    Hole("an adapter called `text` is applied to everybody's messages", _type_opened, _type_closed),
    Hole("an adapter's file that changes leaves what was cached", _stale_opened, _stale_closed),
    Hole("a tenant's missing file ends the engine", _gone_opened, _gone_closed),
)
