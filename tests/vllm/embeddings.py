"""Embeddings on a server for them: texts, tokens, conversations, several at once, some refused, some left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from serving_adapter import engine_counters
from serving_adapter.events import UsageEvent
from tests.vllm.server import Server

SERVED_SO: Final = ("--runner", "pooling", "--convert", "embed")
PATH: Final = "/v1/embeddings"
TEXT: Final = "count every token once " * 12
ASKED: Final[list[dict[str, Any]]] = [
    {"input": TEXT},
    {"input": TEXT},
    {"input": [TEXT, "tenants are kept apart", "x"]},
    {"input": [[7, 8, 9], [10]]},
    {"messages": [{"role": "user", "content": "hello"}]},
]
ATTEMPTS: Final = 5
"""Of one whose client leaves at once: on a busy machine it may be over before that is seen."""

Settled = Callable[[Server, int], Awaitable[list[UsageEvent]]]


async def embeddings(server: Server, settled: Settled) -> None:
    """An event for each, with the tokens that its answer states; all together what the engine has counted."""
    stated = []
    for tenant in ("tenant_a", "tenant_b"):
        for body in ASKED:
            status, answer = await server.ask({"model": "tiny", **body}, PATH, tenant=tenant)
            assert status == 200, answer
            stated.append(json.loads(answer)["usage"]["prompt_tokens"])
    found = await settled(server, len(stated))
    assert [(event.status, event.input_tokens, event.output_tokens) for event in found] == [
        ("ok", tokens, 0) for tokens in stated
    ]
    again = [event.cache_hit_tokens for event in found]
    status, _ = await server.ask({"model": "tiny", "input": "x " * 40_000}, PATH)
    assert status == 400
    refused = (await settled(server, len(stated) + 1))[-1]
    for attempt in range(1, ATTEMPTS + 1):  # so much that whoever leaves leaves work, and none of it read before
        texts = [f"{attempt} {number} prefix caches know whose blocks they hold " * 80 for number in range(64)]
        await server.ask({"model": "tiny", "input": texts}, PATH, leave_after=(0, 0.0))
        found = await settled(server, len(stated) + 1 + attempt)
        left = found[-1]
        if left.status != "ok":
            break
    assert (refused.status, refused.finish_reason, refused.input_tokens) == ("rejected", "http_400", 0)
    assert (left.status, left.finish_reason) == ("aborted", "client_gone")
    page = (await server.ask(None, "/metrics", method="GET"))[1].decode()
    (engine,) = engine_counters.read(page).models
    sums = (
        sum(e.input_tokens if e.engine_input_tokens is None else e.engine_input_tokens for e in found), 0,
        sum(e.cache_hit_tokens if e.engine_cached_tokens is None else e.engine_cached_tokens for e in found),
    )  # fmt: skip
    assert sums == (engine.prompt_tokens, engine.generation_tokens, engine.cached_tokens), (sums, engine)
    print(f"  {dict(Counter(event.status for event in found))}, cached {again}; left with {left.input_tokens} read;"
          f" events = engine: {sums[0]} prompt, {sums[2]} cached tokens", flush=True)  # fmt: skip
