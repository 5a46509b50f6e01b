"""The double of the engine does with its sequences what a real vLLM 0.32 was seen to do."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from serving_adapter.serving.adapter_settings import AdapterSettings
from tests.engine_trace import DIES, EMBEDDED, GENERATED, RECORDED, Tracer, asked, habits
from tests.fixtures_adapter import Served, serving

SEEN: dict[str, dict[str, Any]] = json.loads(RECORDED.read_text())


async def case(served: Served, tracer: Tracer, name: str) -> dict[str, Any]:
    """What the double does when it is asked this."""
    path, body = asked(name)
    counters, begun = served.engine.output_processor.counters, len(tracer.steps)
    before = dict(counters)

    async def tokens() -> None:
        while not any(step[0] != "abort" and step[3] > 0 for step in tracer.steps[begun:]):
            await asyncio.sleep(0.001)

    if name == DIES:
        asking = asyncio.create_task(served.ask(body, path, headers={}))
        await tokens()
        served.engine.dead = True
        answer = await asking
        done = {"is told in the stream": b'"error"' in answer.body, "is done": b"[DONE]" in answer.body}
        return {
            "status": answer.status,
            **done,
            "lives": habits(tracer.steps[begun:], dict.fromkeys(COUNTED, 0))["lives"],
        }
    if name == "left before its answer":
        answer = await served.ask(body, path, headers={}, leave_when=tokens)
    else:
        answer = await served.ask(body, path, headers={}, leave_after=1 if name.startswith("left") else None)
    grown = {what: counters[what] - before.get(what, 0) for what in COUNTED}
    return {"status": answer.status, **habits(tracer.steps[begun:], grown)}


COUNTED = ("prompt", "generation", "cached")


def comparable(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """Who leaves sees no status; and how many further tokens came until then is chance."""
    if not name.startswith("left") and name != DIES:
        return found
    lives = [[step for step in life if step[0] != "update"] for life in found["lives"]]
    return {**found, "lives": lives, "status": 0 if name != DIES else found["status"]}


@pytest.mark.parametrize("cases", [[*GENERATED, DIES], [*EMBEDDED]], ids=["generated", "embedded"])
def test_the_double_does_with_sequences_what_a_real_engine_does(
    adapter_settings: AdapterSettings, cases: list[str]
) -> None:
    async def run() -> None:
        async with serving(adapter_settings) as served:
            tracer = Tracer(served.app)
            served.middleware = tracer  # type: ignore[assignment]
            for name in cases:
                found = json.loads(json.dumps(await case(served, tracer, name)))
                assert comparable(name, found) == comparable(name, SEEN[name]), name

    asyncio.run(run())
