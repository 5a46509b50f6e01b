"""What is open in a bare vLLM: all of it works there, and `isolation` of the run sees it closed with the adapter."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from tests.vllm.server import Server

SLOTS: Final = 16
"""`--max-num-seqs` of the server."""
WAITING: Final = 24
CROWD: Final = SLOTS + WAITING + 1
BODY: Final = {"model": "tiny", "prompt": "another tenant's own words " * 20, "max_tokens": 1}


async def open_holes(server: Server) -> None:
    """Anybody reaches anything."""

    async def asked(body: Any, path: str = "/v1/completions", **headers: str) -> Any:
        status, answer = await server.ask(body, path, headers=headers, method="GET" if body is None else "POST")
        assert status == 200, (path, status, answer)
        return json.loads(answer) if answer.startswith(b"{") else answer

    def cached(answer: Any) -> int:
        return int((answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)

    assert cached(await asked(BODY)) == 0
    assert cached(await asked(BODY)) > 0, "one finds in the cache what another has asked"
    salted = BODY | {"cache_salt": "of somebody"}
    assert cached(await asked(salted)) == 0
    assert cached(await asked(salted)) > 0, "whoever knows a salt finds what lies under it"
    await asked(BODY | {"model": "tenant_b--law--1"})
    names = {model["id"] for model in (await asked(None, "/v1/models"))["data"]}
    assert {"tenant_a--fr--1", "tenant_b--law--1"} <= names
    lie = {"do_remote_prefill": True, "remote_prefill_cached_tokens": 60}
    told = await asked(BODY | {"prompt": "z " * 70, "kv_transfer_params": lie})
    assert cached(told) == 60, "what is billed as cached is what the tenant says"
    await asked(BODY, "/invocations")
    await asked({"model": "tiny", "prompt": "x"}, "/tokenize")
    assert await overtakes(server)
    print("  cache, salts, adapters, models, cached tokens, routes, priorities: open", flush=True)


async def overtakes(server: Server) -> bool:
    """Whether a request that says it is urgent passes those that came before it, in an engine that is full."""
    order: list[str] = []

    async def one(name: str, tokens: int, **more: Any) -> None:
        headers = {"x-vllm-priority": "-999"} if more else None
        body = {"model": "tiny", "prompt": "q", "max_tokens": tokens, "ignore_eos": True, **more}
        status, answer = await server.ask(body, headers=headers)
        assert status == 200, answer
        order.append(name)

    tasks = [asyncio.create_task(one("running", 150)) for _ in range(SLOTS)]
    await asyncio.sleep(0.3)
    tasks += [asyncio.create_task(one("waiting", 30)) for _ in range(WAITING)]
    await asyncio.sleep(0.1)
    tasks.append(asyncio.create_task(one("urgent", 30, priority=-999)))
    await asyncio.gather(*tasks)
    behind = len(order) - 1 - order.index("urgent")
    return behind > WAITING - SLOTS
