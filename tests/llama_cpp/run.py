"""`python -m tests.llama_cpp.run`: the proxy before a real llama.cpp, with a tiny random model.

Not in the suite: it fetches the engine (some 30 MB, once, below `build/`). What it prints is in docs/other-engines.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from devstack.locations import VENV
from serving_adapter.events import UsageEvent
from serving_adapter.prometheus_text import samples
from serving_adapter.spool.recovery import replay
from tests.adapter_builders import events
from tests.recorded_engine import unchunked
from tests.vllm.server import Server, free_port

HERE: Final = Path(__file__).parent
REPOSITORY: Final = HERE.parents[1]
ENGINE: Final = ("xllamacpp==2026.10.11549", "gguf==0.19.0")
SPECIAL: Final = ["<|begin|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
TEXT: Final = ["count every token once", "tenants are kept apart", "prefix caches know whose blocks they hold"] * 50
CONFIG: Final = """
replica_id = "r1"
ready_after_probe = false
salt_key = "{home}/salt"
gateway_keys = "{home}/keys"
spool = {{ folder = "{home}/spool" }}
rules.models.tiny = [{{ engine = "tiny" }}]
rules.tiers.paid = {{ priority = 0 }}
[proxy]
upstream = "http://127.0.0.1:{engine}"
listen = "127.0.0.1:{port}"
engine_fields = false
tokenizer = "{home}/tokenizer.json"
"""
PROMPT: Final = {"model": "tiny", "prompt": "count every token once, tenants are kept apart", "max_tokens": 20}
RESPONSE: Final = {"model": "tiny", "input": "hello", "max_output_tokens": 20}
CHAT: Final = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20}
STREAM: Final = {"stream": True}
USAGE: Final = {"stream": True, "stream_options": {"include_usage": True}}
ASKED: Final[list[tuple[str, dict[str, Any]]]] = [
    (path, body | more)
    for path, body in (("/v1/completions", PROMPT), ("/v1/chat/completions", CHAT), ("/v1/responses", RESPONSE))
    for more in ({}, STREAM, USAGE)
]
COUNTERS: Final = tuple(
    f"llamacpp:{name}_total" for name in ("prompt_tokens", "prompt_tokens_cached", "tokens_predicted")
)
LONG: Final = {"model": "tiny", "prompt": "z", "max_tokens": 6000, "ignore_eos": True}


def main() -> None:
    """Installs, starts, asks, compares."""
    python = install()
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as name:
        home, engine, port = Path(name), free_port(), free_port()
        make_tokenizer(home / "tokenizer.json")
        server = Server.at(home, port, home / "spool")
        (home / "adapter.toml").write_text(CONFIG.format(home=home, engine=engine, port=port))
        model = str(home / "tiny.gguf")
        subprocess.run([python, HERE / "make_model.py", home / "tokenizer.json", model], check=True)
        proxy_command = [sys.executable, "-m", "serving_adapter.command_line"]
        environ = {**os.environ, "TOLLBOOK_ADAPTER_CONFIG": str(home / "adapter.toml")}
        with (home / "engine.log").open("wb") as log:
            started = [
                subprocess.Popen([python, HERE / "serve.py", model, str(engine)], stdout=log, stderr=log),
                subprocess.Popen([*proxy_command, "proxy"], env=environ, cwd=REPOSITORY),
            ]
        try:
            probe = [*proxy_command, "probe", "--url", f"http://127.0.0.1:{port}", "--model", "tiny"]
            asyncio.run(compare(server, engine))
            assert subprocess.call(probe, env=environ, cwd=REPOSITORY) == 0
        except BaseException:
            print((home / "engine.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            for process in reversed(started):
                process.terminate()
            for process in started:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()


def install() -> str:
    """The engine's environment; its Python."""
    env = REPOSITORY / "build/llama-cpp"
    python = env / "bin/python"
    uv = str(VENV / "bin/uv")
    subprocess.run([uv, "venv", "-q", "--allow-existing", "--python", sys.executable, env], check=True)
    subprocess.run([uv, "pip", "install", "-q", "--python", python, *ENGINE], check=True)
    return str(python)


def make_tokenizer(path: Path) -> None:
    """Of bytes and a few words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=400, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    ))  # fmt: skip
    tokenizer.save(str(path))


async def compare(server: Server, engine: int) -> None:
    """Each answer's own usage is its event's; who leaves is counted as far as the engine says."""
    while True:
        try:
            if (await server.ask(PROMPT))[0] == 200:
                break
        except OSError:
            pass
        await asyncio.sleep(0.2)
    number = len(await told(server, 1))
    for path, body in ASKED:
        before = counted(engine)
        status, answer = await server.ask(body, path)
        assert status == 200, (body, answer)
        number += 1
        event = (await told(server, number))[-1]
        stated = usage(unchunked(answer) if body.get("stream") else answer)
        grown = [now - then for now, then in zip(counted(engine), before, strict=True)]
        streamed = [*body.get("stream_options", ["stream"] if body.get("stream") else [])]
        print(f"  {path:21} {streamed} {event.status} {event.finish_reason}: {event.input_tokens} /"
              f" {event.output_tokens} tokens, {event.cache_hit_tokens} cached, {event.usage_source}; stated {stated},"
              f" engine {grown}", flush=True)  # fmt: skip
        assert [event.input_tokens, event.output_tokens, event.cache_hit_tokens] == grown, (body, answer)
        assert (event.status, event.usage_source) == ("ok", "stream"), event
        was_asked = not body.get("stream") or "stream_options" in body or "input" in body
        assert (stated is not None) == was_asked, stated
    for several in ({"n": 2}, {"prompt": ["a", "b"]}):
        assert (await server.ask(PROMPT | several))[0] == 400
    for body, leave in ((LONG | STREAM, (20_000, 60.0)), (LONG, (0, 0.2))):
        _, before, _ = counted(engine)
        await server.ask(body, leave_after=leave)
        number += 1
        event = (await told(server, number))[-1]
        await asyncio.sleep(1.0)  # it counts a request when it ends
        print(f"  left, stream={bool(body.get('stream'))!s:5} {event.status} {event.finish_reason}:"
              f" {event.input_tokens} / {event.output_tokens} tokens, {event.usage_source};"
              f" the engine counted {counted(engine)[1] - before}", flush=True)  # fmt: skip
    page = (await server.ask(None, "/metrics", method="GET"))[1].decode()
    for sample in samples(page, {"tollbook_token_check_answers_total", "tollbook_token_check_tokens_total"}):
        print(f"  {sample.name} {sample.labels} {sample.value}")


async def told(server: Server, least: int) -> list[UsageEvent]:
    """The events, once there are so many and nothing is open."""
    while len(found := events(server.boot)) < least or replay(server.boot)[0].open:
        await asyncio.sleep(0.05)
    return found


def usage(answer: bytes) -> tuple[int, int] | None:
    """What an answer, or the last piece of a stream, states."""
    found = None
    for line in answer.decode().splitlines():
        text = line.removeprefix("data: ")
        piece = json.loads(text) if text.startswith("{") else {}
        stated = piece.get("usage") or (piece.get("response") or {}).get("usage")
        if stated:
            found = (
                stated.get("prompt_tokens", stated.get("input_tokens")),
                stated.get("completion_tokens", stated.get("output_tokens")),
            )
    return found


def counted(engine: int) -> tuple[int, int, int]:
    """What the engine's own page says: tokens of prompts, made, and of prompts that were cached."""
    with urllib.request.urlopen(f"http://127.0.0.1:{engine}/metrics") as answer:
        page = answer.read().decode()
    found = {sample.name: int(float(sample.value)) for sample in samples(page, COUNTERS)}
    read, cached, made = (found[name] for name in COUNTERS)
    return read + cached, made, cached


if __name__ == "__main__":
    main()
