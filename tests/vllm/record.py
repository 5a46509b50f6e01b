"""`python -m tests.vllm.record`: what a bare vLLM answers, and how its sequences live, for the doubles of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from serving_adapter import engine_counters
from tests import engine_trace
from tests.engine_trace import DIES, EMBEDDED, GENERATED, asked, habits
from tests.recorded_engine import RECORDED, key_of, unchunked
from tests.vllm.embeddings import SERVED_SO
from tests.vllm.environment import REPOSITORY
from tests.vllm.server import Server
from tests.vllm.tracer import VARIABLE

COMPLETION: Final = {"model": "tiny", "prompt": "count every token once", "max_tokens": 4}
CHAT: Final = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
RESPONSE: Final = {"model": "tiny", "input": "hello there", "max_output_tokens": 4}
MODES: Final[list[dict[str, Any]]] = [
    {},
    {"stream": True},
    {"stream": True, "stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
]
ASKED: Final = [
    *(("/v1/completions", {**COMPLETION, **mode}) for mode in MODES),
    ("/v1/completions", {**COMPLETION, "n": 2, **MODES[3]}),
    ("/v1/completions", {**COMPLETION, "temperature": -1}),
    *(("/v1/chat/completions", {**CHAT, **mode}) for mode in MODES),
    *(("/v1/responses", {**RESPONSE, **mode}) for mode in MODES[:2]),
]


async def record(server: Server) -> dict[str, Any]:
    """Status, type and body of each answer; a stream's body by its pieces."""
    found = {}
    for path, body in ASKED:
        status, answer = await server.ask(body, path)
        streamed = bool(body.get("stream"))
        text = (unchunked(answer) if streamed else answer).decode()
        pieces = [piece + "\n\n" for piece in text.split("\n\n") if piece.strip()] if streamed else [text]
        kind = "text/event-stream; charset=utf-8" if streamed else "application/json"
        found[key_of(path, body)] = {"status": status, "type": kind, "pieces": pieces}
    return found


class Traced:
    """A server whose sequences are looked at."""

    def __init__(self, home: Path, *flags: str) -> None:
        self.server = Server(home)
        self._file = home / "steps.jsonl"
        self._file.touch()
        more = {VARIABLE: str(self._file)}
        self.server.start("--middleware", "tests.vllm.tracer.FileTracer", *flags, metered=False, **more)

    async def case(self, name: str) -> dict[str, Any]:
        """What it does when it is asked this."""
        path, body = asked(name)
        before, begun = await self._counters(), len(self._steps())
        if name == "left before its answer":
            asking = asyncio.create_task(self.server.ask(body, path))
            await self._until(lambda: any(step[3] > 0 for step in self._steps()[begun:]))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            status = 0
        else:
            leave = (400, 60.0) if name.startswith("left") else None
            status, _ = await self.server.ask(body, path, leave_after=leave)
        await self._until(lambda: all(not step[-1] for step in _last(self._steps()[begun:])))
        await asyncio.sleep(1.0)  # the counters follow the states
        after, steps = await self._counters(), self._steps()[begun:]
        return {"status": status, **habits(steps, {name: after[name] - before[name] for name in after})}

    async def death(self) -> dict[str, Any]:
        """What is seen of an engine that is killed while it streams."""
        path, body = asked(DIES)
        begun = len(self._steps())
        asking = asyncio.create_task(self.server.ask(body, path))
        await self._until(lambda: any(step[3] > 0 for step in self._steps()[begun:]))
        _, others = self.server.processes()
        for process, words in others.items():
            if b"EngineCore" in words:
                os.kill(process, signal.SIGKILL)
        status, answer = await asking
        return {
            "status": status,
            "is told in the stream": b'"error"' in answer,
            "is done": b"[DONE]" in answer,
            "lives": habits(self._steps()[begun:], dict.fromkeys(("prompt", "generation", "cached"), 0))["lives"],
        }

    async def _counters(self) -> dict[str, int]:
        page = (await self.server.ask(None, "/metrics", method="GET"))[1].decode()
        (engine,) = engine_counters.read(page).models
        return {"prompt": engine.prompt_tokens, "generation": engine.generation_tokens,
                "cached": engine.cached_tokens or 0}  # fmt: skip

    def _steps(self) -> list[list[Any]]:
        return [json.loads(line) for line in self._file.read_text().splitlines()]

    @staticmethod
    async def _until(holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(120):
            while not holds():
                await asyncio.sleep(0.05)


def _last(steps: list[list[Any]]) -> list[list[Any]]:
    """Each sequence's."""
    return list({step[1]: step for step in steps if step[0] != "abort"}.values())


async def lives(home: Path) -> dict[str, Any]:
    """Of each case, by its name."""
    found = {}
    for flags, cases in (((), GENERATED), (SERVED_SO, EMBEDDED)):
        (home / str(len(found))).mkdir()
        traced = await asyncio.to_thread(Traced, home / str(len(found)), *flags)
        try:
            for name in cases:
                found[name] = await traced.case(name)
            if not flags:
                found[DIES] = await traced.death()
        finally:
            traced.server.kill()
    return found


def main() -> None:
    """Writes the files that `tests/recorded_engine.py` and `tests/engine_trace.py` read."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        found = asyncio.run(lives(Path(name)))
        engine_trace.RECORDED.write_text(json.dumps(found, indent=1) + "\n")
        if "--states" in sys.argv:
            return
        server = Server(Path(name))
        try:
            server.start(metered=False)
            RECORDED.write_text(json.dumps(asyncio.run(record(server)), indent=1) + "\n")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
