"""`python -m tests.vllm.record`: what a bare vLLM answers, piece by piece, for the double of the proxy's tests."""

from __future__ import annotations

import asyncio
import json
import tempfile
from pathlib import Path
from typing import Any, Final

from tests.recorded_engine import RECORDED, key_of, unchunked
from tests.vllm.environment import REPOSITORY
from tests.vllm.server import Server

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


def main() -> None:
    """Writes the file that `tests/recorded_engine.py` reads."""
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        server = Server(Path(name))
        try:
            server.start(metered=False)
            RECORDED.write_text(json.dumps(asyncio.run(record(server)), indent=1) + "\n")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
