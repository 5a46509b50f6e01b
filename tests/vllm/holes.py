"""What is open between the tenants of a bare vLLM, each hole with what opens it and what the adapter makes of it.

`opened` runs on a bare server, where anybody is everybody; `closed` on one with the adapter. Both raise AssertionError.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from serving_adapter import engine_counters
from serving_adapter.isolation.rules import salt
from serving_adapter.prometheus_text import samples
from tests.vllm.environment import folder
from tests.vllm.server import SALT_KEY, Server

SLOTS: Final = 16
"""`--max-num-seqs` of the server."""
WAITING: Final = 24
ASKED: Final = {"model": "tiny", "prompt": "x", "max_tokens": 1}
CHAT_OF_PARTS: Final = {
    "model": "tiny", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "max_tokens": 2,
}  # fmt: skip
UPLOADED: Final = "tenant_b--law--1"
PATHS: Final = (f"../adapters/{UPLOADED}", str(folder() / "model" / "adapters" / UPLOADED))
"""As names of a model; where vLLM's resolver looks, below the model's own folder."""
ROUTES: Final[dict[str, dict[str, Any]]] = {
    "/invocations": ASKED,
    "/tokenize": {"model": "tiny", "prompt": "x"},
    "/generative_scoring": {"model": "tiny", "query": "a", "items": ["b"], "label_token_ids": [1]},
    "/v1/load_lora_adapter": {"lora_name": "anything", "lora_path": PATHS[1]},
    "/v1/unload_lora_adapter": {"lora_name": "anything"},
}
CLOSED: Final = (
    *ROUTES, "/adapters", "/v1/rerank", "/v1/messages", "/v1/responses/resp_1/cancel", "/inference/v1/generate",
)  # fmt: skip


class Hole(NamedTuple):
    """One of them. `closed` gives what to print, if there is anything to say."""

    what: str
    opened: Callable[[Server], Awaitable[str | None]]
    closed: Callable[[Server], Awaitable[str | None]]


async def asked(server: Server, body: Any, path: str = "/v1/completions", *, expect: int = 200, **how: Any) -> Any:
    """The answer, of the status that is expected."""
    status, answer = await server.ask(body, path, method="GET" if body is None else "POST", **how)
    assert status == expect, (path, body, status, answer)
    return json.loads(answer) if answer.startswith(b"{") else answer


def cached(answer: Any) -> int:
    """Tokens of the prompt that were in the cache."""
    return int((answer["usage"]["prompt_tokens_details"] or {}).get("cached_tokens") or 0)


async def _timed(server: Server, words: str, tenant: str) -> tuple[int, float]:
    """Of a prompt of some 1,900 tokens: those that were cached, and the milliseconds."""
    body = {"model": "tiny", "prompt": words, "max_tokens": 1}
    begun = time.perf_counter()
    answer = await asked(server, body, tenant=tenant)
    return cached(answer), (time.perf_counter() - begun) * 1000


def _words(number: int) -> str:
    return f"{number:04} of another tenant's own words; " + "count every token once " * 360


async def _cache_opened(server: Server) -> str:
    fresh, seen = [await _timed(server, _words(n // 2), "anybody") for n in range(6)][2:4]
    assert fresh[0] < 32, fresh
    assert seen[0] > 1000, seen
    return f"1,900 tokens take {fresh[1]:.0f} ms, and {seen[1]:.0f} ms if another has asked for them"


async def _cache_closed(server: Server) -> str:
    await _timed(server, _words(10), "tenant_a")
    fresh = await _timed(server, _words(11), "tenant_a")
    own = await _timed(server, _words(11), "tenant_a")
    foreign = await _timed(server, _words(11), "tenant_b")
    assert (own[0] > 1000, foreign[0]) == (True, 0), (own, foreign)
    return f"{fresh[1]:.0f} ms, its own again {own[1]:.0f} ms, another tenant's {foreign[1]:.0f} ms"


async def _salt_opened(server: Server) -> None:
    body = ASKED | {"prompt": "under a salt " * 20, "cache_salt": "of somebody"}
    assert cached(await asked(server, body)) == 0
    assert cached(await asked(server, body)) > 0


async def _salt_closed(server: Server) -> None:
    body = ASKED | {"prompt": "under a salt " * 20}
    for told in (body, body | {"cache_salt": salt(SALT_KEY, "tenant_b")}, body | {"cache_salt": None}):
        await asked(server, told, tenant="tenant_a")
    stolen = body | {"cache_salt": salt(SALT_KEY, "tenant_a")}
    assert cached(await asked(server, stolen, tenant="tenant_b")) == 0


async def _told_opened(server: Server) -> None:
    lie = {"do_remote_prefill": True, "remote_prefill_cached_tokens": 60}
    assert cached(await asked(server, ASKED | {"prompt": "z " * 70, "kv_transfer_params": lie})) == 60


async def _told_closed(server: Server) -> None:
    lie = {"do_remote_prefill": True, "remote_prefill_cached_tokens": 60}
    assert cached(await asked(server, ASKED | {"prompt": "z " * 70, "kv_transfer_params": lie})) == 0


async def _routes_opened(server: Server) -> str:
    for path, body in ROUTES.items():
        await asked(server, body, path)
    return ", ".join(ROUTES)


async def _routes_closed(server: Server) -> None:
    for path in CLOSED:
        await asked(server, ROUTES.get(path, ASKED), path, expect=404)


async def _answers_opened(server: Server) -> None:
    body = {"model": "tiny", "input": "mine", "max_output_tokens": 2, "store": True}
    answer = await asked(server, body, "/v1/responses")
    assert (await asked(server, None, f"/v1/responses/{answer['id']}"))["output"] == answer["output"]
    await asked(server, body | {"input": "go on", "previous_response_id": answer["id"]}, "/v1/responses")


async def _answers_closed(server: Server) -> None:
    body = {"model": "tiny", "input": "mine", "max_output_tokens": 2, "store": True}
    answer = await asked(server, body, "/v1/responses", tenant="tenant_a")
    for tenant in ("tenant_a", "tenant_b"):
        await asked(server, None, f"/v1/responses/{answer['id']}", tenant=tenant, expect=404)
        further = body | {"previous_response_id": answer["id"]}
        await asked(server, further, "/v1/responses", tenant=tenant, expect=400)


async def _ids_opened(server: Server) -> None:
    answers = [await asked(server, ASKED, headers={"x-request-id": "same"}) for _ in range(2)]
    assert [answer["id"] for answer in answers] == ["cmpl-same"] * 2
    await asked(server, ASKED, headers={"x-data-parallel-rank": "7"}, expect=400)


async def _ids_closed(server: Server) -> None:
    answers = [await asked(server, ASKED, headers={"x-request-id": "same"}) for _ in range(2)]
    assert len({answer["id"] for answer in answers} - {"cmpl-same"}) == 2
    await asked(server, ASKED, headers={"x-data-parallel-rank": "7"})


async def _beams_opened(server: Server) -> str:
    before = await _engine(server)
    answer = await asked(server, ASKED | {"max_tokens": 6, "n": 3, "use_beam_search": True})
    told, found = answer["usage"]["prompt_tokens"], await _engine(server) - before
    assert found > told, (told, found)
    return f"{told} prompt tokens are stated, {found} were worked on"


async def _beams_closed(server: Server) -> None:
    await asked(server, ASKED | {"max_tokens": 6, "n": 3, "use_beam_search": True}, expect=400)


async def _engine(server: Server) -> int:
    (model,) = engine_counters.read((await asked(server, None, "/metrics")).decode()).models
    return model.prompt_tokens


async def _priority_opened(server: Server) -> None:
    assert await _overtakes(server, priority=-999)
    assert await _overtakes(server, {"x-vllm-priority": "-999"})


async def _priority_closed(server: Server) -> None:
    assert not await _overtakes(server, {"x-vllm-priority": "-999"}, priority=-999)


async def _overtakes(server: Server, headers: dict[str, str] | None = None, **more: Any) -> bool:
    """Whether a request that says it is urgent passes those that came before it, in an engine that is full."""
    order: list[str] = []

    async def one(name: str, tokens: int, headers: dict[str, str] | None = None, **more: Any) -> None:
        await asked(server, ASKED | {"max_tokens": tokens, "ignore_eos": True, **more}, headers=headers)
        order.append(name)

    running = [asyncio.create_task(one("running", 32_000)) for _ in range(SLOTS)]
    await _queued(server, SLOTS, 0)
    tasks = [asyncio.create_task(one("waiting", 30)) for _ in range(WAITING)]
    await _queued(server, SLOTS, WAITING)
    tasks.append(asyncio.create_task(one("urgent", 30, headers, **more)))
    await _queued(server, SLOTS, WAITING + 1)
    for task in running:  # their clients leave
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    await asyncio.gather(*tasks)
    return len(order) - 1 - order.index("urgent") > WAITING - SLOTS


async def _queued(server: Server, running: int, waiting: int) -> None:
    """Return once so many requests run in the engine, and so many wait."""
    names = {"vllm:num_requests_running": running, "vllm:num_requests_waiting": waiting}
    for _ in range(2400):
        page = (await asked(server, None, "/metrics")).decode()
        found = {sample.name: float(sample.value) for sample in samples(page, set(names))}
        if found == names:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{found} is not {names}")


async def _caller_opened(server: Server) -> None:
    await asked(server, ASKED, headers={"x-tollbook-caller": "v1.k1.e30.AAAA"})


async def _caller_closed(server: Server) -> None:
    await asked(server, ASKED, headers={"x-tollbook-caller": "v1.k1.e30.AAAA"}, expect=401)


FORWARDED: Final = {"x-forwarded-for": "203.0.113.7"}
"""What a proxy on this machine says of a client from elsewhere."""


async def _figures_opened(server: Server) -> None:
    page = await asked(server, None, "/metrics", headers=FORWARDED)
    assert b"vllm:prompt_tokens_total" in page


async def _figures_closed(server: Server) -> None:
    refused = await asked(server, None, "/metrics", headers=FORWARDED, expect=403)
    assert refused["error"]["code"] == "metrics_closed"
    assert b"tenant_requests_total" in await asked(server, None, "/metrics")


HOLES: Final = (
    Hole("anybody may ask, in anybody's name", _caller_opened, _caller_closed),
    Hole("another's prompt is known by its time in the prefix cache", _cache_opened, _cache_closed),
    Hole("a salt that is known opens what lies under it", _salt_opened, _salt_closed),
    Hole("cached tokens are those that the request names", _told_opened, _told_closed),
    Hole("routes that nobody asked for", _routes_opened, _routes_closed),
    Hole("stored responses are everybody's by their id", _answers_opened, _answers_closed),
    Hole("the figures of all tenants are anybody's", _figures_opened, _figures_closed),
    Hole("a request's id and its engine are the client's to say", _ids_opened, _ids_closed),
    Hole("beam search states less than it works", _beams_opened, _beams_closed),
    Hole("a priority in body or header overtakes", _priority_opened, _priority_closed),
)
