"""What an engine's server does with its sequences while it answers: looked at in a real vLLM, and in its double.

`python -m tests.vllm.record` writes what the real one does (`recorded_states.json`); a test asks the double the same.
Both have `Tracer` as their middleware. Nothing of ours is imported: it runs in vLLM's own environment.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any, Final

RECORDED: Final = Path(__file__).with_name("recorded_states.json")
PROMPT: Final = " ".join(["count every token once"] * 12)
"""Of some blocks in a real cache, and in the double's: all but the first case find it there."""
PATH: Final = "/v1/completions"
LONG: Final = {"max_tokens": 500, "ignore_eos": True}
GENERATED: Final[dict[str, dict[str, Any]]] = {
    "whole": {"max_tokens": 4},
    "streamed": {"max_tokens": 4, "stream": True},
    "n=2": {"max_tokens": 4, "n": 2},
    "streamed, n=2": {"max_tokens": 4, "n": 2, "stream": True},
    "two prompts": {"max_tokens": 4, "prompt": [PROMPT, "tenants are kept apart"]},
    "refused": {"temperature": -1},
    "left while streamed": {**LONG, "stream": True},
    "left while streamed, n=2": {**LONG, "n": 2, "stream": True},
    "left before its answer": LONG,
}
"""By name, what is asked beside the prompt. Who leaves does so after the first piece, or once there are tokens."""
EMBEDDED: Final[dict[str, dict[str, Any]]] = {"embedded": {"input": PROMPT}, "two embedded": {"input": [PROMPT, "x"]}}
DIES: Final = "its engine dies"
"""While it streams. Afterwards nothing is answered."""


def asked(name: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a case."""
    if name in EMBEDDED:
        return "/v1/embeddings", {"model": "tiny", **EMBEDDED[name]}
    return PATH, {"model": "tiny", "prompt": PROMPT, **GENERATED.get(name, {**LONG, "stream": True})}


class Tracer:
    """ASGI middleware: notes each step of each sequence, also in the file `into` (JSON lines), if there is one."""

    def __init__(self, app: Any, into: Path | None = None) -> None:
        self._app = app
        self._into = into
        self.steps: list[list[Any]] = []
        self._numbers: dict[str, int] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI's."""
        client = getattr(getattr(scope.get("app"), "state", None), "engine_client", None)
        if scope["type"] == "http" and client is not None and not hasattr(client, "_traced"):
            client._traced = True
            self._look_at(client, client.output_processor)
        await self._app(scope, receive, send)

    def _look_at(self, client: Any, processor: Any) -> None:
        add, update, finish = processor.add_request, processor._update_stats_from_output, processor._finish_request
        abort, pop = client.abort, processor.abort_requests

        def add_request(request: Any, *args: Any, **kwargs: Any) -> Any:
            result = add(request, *args, **kwargs)
            self._step("add", processor, processor.request_states[request.request_id])
            return result

        def update_stats(state: Any, *args: Any, **kwargs: Any) -> Any:
            before = state.is_prefilling
            result = update(state, *args, **kwargs)
            self._step("update, prefilling" if before else "update", processor, state)
            return result

        def finish_request(state: Any, *args: Any, **kwargs: Any) -> Any:
            result = finish(state, *args, **kwargs)
            self._step("finish", processor, state)
            return result

        def abort_requests(*args: Any, **kwargs: Any) -> Any:
            before = dict(processor.request_states)
            result = pop(*args, **kwargs)
            for name, state in before.items():
                if name not in processor.request_states:
                    self._step("popped", processor, state)
            return result

        async def abort_request(*args: Any, **kwargs: Any) -> Any:
            if processor.request_states:  # what has ended may be aborted again: nobody is told
                self._note(["abort"])
            return await abort(*args, **kwargs)

        processor.add_request, processor._update_stats_from_output = add_request, update_stats
        processor._finish_request, processor.abort_requests = finish_request, abort_requests
        client.abort = abort_request

    def _step(self, what: str, processor: Any, state: Any) -> None:
        number = self._numbers.setdefault(state.request_id, len(self._numbers))
        tokens = state.stats.num_generation_tokens if state.stats is not None else 0
        is_known = state.request_id in processor.request_states
        self._note(
            [what, number, state.prompt_len, tokens, max(state.num_cached_tokens, 0), state.is_prefilling, is_known]
        )

    def _note(self, step: list[Any]) -> None:
        self.steps.append(step)
        if self._into is not None:
            with self._into.open("a") as file:
                file.write(json.dumps(step) + "\n")


def habits(steps: list[list[Any]], counted: dict[str, int]) -> dict[str, Any]:
    """What of a case does not hang on time, lengths or ids: how its sequences live, and what the counters made of it.

    Steps that repeat themselves are one. `counted`: by how much the engine's counters grew.
    """
    lives: dict[int, list[list[Any]]] = {}
    for step in steps:
        if step[0] != "abort":
            lives.setdefault(step[1], []).append(step)
    last = [life[-1] for life in lives.values()]
    read = [step for step in last if step[0] != "add" and any(s[0].startswith("update") for s in lives[step[1]])]
    shapes = [[[s[0], *_shown(s)] for s in life] for life in lives.values()]
    return {
        "lives": sorted([step for step, _ in groupby(shape)] for shape in shapes),
        "aborted": any(step[0] == "abort" for step in steps),
        "counters are the prompts that were read": counted["prompt"] == sum(step[2] for step in read),
        "counters are the tokens of the states": counted["generation"] == sum(step[3] for step in last),
        "counters are the cached tokens of the states": counted["cached"] == sum(step[4] for step in read),
    }


def _shown(step: list[Any]) -> tuple[bool, ...]:
    """Has it tokens, cached ones, is its prompt still read, does the engine's client still know it."""
    _, _, _, tokens, cached, is_prefilling, is_known = step
    return tokens > 0, cached > 0, is_prefilling, is_known
