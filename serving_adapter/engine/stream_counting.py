"""Counting from what an engine's server answers, for engines whose insides are not known: `usage_source` is `stream`.

An ASGI app around the engine's: usage is asked of every stream, read as it passes, and kept from tenants who had not
asked for it. An abort is counted as far as the answer had come; who leaves before it has stated anything is let go once
it has, or after a while (docs/decisions/0055-who-leaves-before-anything-is-stated.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import Any, Final

import msgspec

from serving_adapter.asgi import App, Message, Receive, Scope, Send
from serving_adapter.engine.attempts import CURRENT, Attempt
from serving_adapter.engine.token_check import MOST_CHARS, MOST_WAITING, TokenCheck, TokenChecks
from serving_adapter.metering.stated_usage import MOST_HELD_BYTES, SEQUENCE, EventStream, Hidden, StatedUsage

READ_ON_S: Final = 30.0
"""So long an engine is read from that has stated no usage when its client left, where no file says another time."""
TAKE_OPTIONS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Where a stream states its usage if `stream_options` say so; elsewhere it does without."""

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode


class StreamCounting:
    """Reads the usage of each metered request's answer into its attempt."""

    def __init__(
        self, app: App, *, continuous: bool, check: TokenCheck | None = None, read_on_s: float = READ_ON_S
    ) -> None:
        """`continuous`: ask for usage in each piece of a stream, as vLLM and SGLang can.

        `check`: count whole answers once more, after they were given. `read_on_s`: after a client has left that nothing
        was stated to yet.
        """
        self._app = app
        self._read_on_s = read_on_s
        self._continuous = continuous
        self._check = check
        self._checking: set[asyncio.Task[None]] = set()
        self.checks = TokenChecks()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        attempt = CURRENT.get()
        if attempt is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first: Message | None = await receive()
        assert first is not None
        body, hidden, n = first["body"], Hidden(), 1
        if scope["path"] in TAKE_OPTIONS:
            body, hidden, n = asking_for_usage(body, continuous=self._continuous)
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        first = {**first, "body": body}

        async def receive_on() -> Message:
            nonlocal first
            message, first = first, None
            return message if message is not None else await receive()

        counted = _Counted(attempt, send, hidden, n, self._read_on_s)
        if self._check is not None and scope["path"] in TAKE_OPTIONS:
            counted.usage.texts = {}
        try:
            await self._app({**scope, "headers": headers}, receive_on, counted.send)
        finally:
            counted.close()
            if self._check is None or not counted.usage.texts or not counted.usage.final:
                pass
            elif len(self._checking) >= MOST_WAITING:
                self.checks.answers["not_checked"] += 1
            else:
                task = asyncio.get_running_loop().create_task(self._check_again(self._check, counted.usage))
                self._checking.add(task)
                task.add_done_callback(self._checking.discard)

    async def _check_again(self, check: TokenCheck, usage: StatedUsage) -> None:
        texts = ["".join(pieces) for pieces in (usage.texts or {}).values()]
        stated = usage.look().output_tokens
        if sum(map(len, texts)) <= MOST_CHARS:
            own = await asyncio.to_thread(check.count, texts)
            if not self.checks.add(stated, own, len(texts)):
                print(f"tollbook: an answer states {stated} tokens; its text has {own}", file=sys.stderr, flush=True)


class _Counted:
    """One answer on its way."""

    def __init__(self, attempt: Attempt, send: Send, hidden: Hidden, n: int, read_on_s: float) -> None:
        self._attempt = attempt
        self._send = send
        self.usage = StatedUsage(time.monotonic, attempt.on_gap, n)
        self._hidden = hidden
        self._stream: EventStream | None = None
        self._whole: bytearray | None = bytearray()
        attempt.await_gpu = None  # what the engine may tell is of sequences that nobody here knows
        attempt.began(SEQUENCE, self.usage.look)
        attempt.read_on = self._read_on
        self._read_on_s = read_on_s
        self._stated = asyncio.Event()

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if message["type"] == "http.response.start":
            types = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            if types and types[0].startswith(b"text/event-stream"):
                self._stream = EventStream(self.usage, self._hidden)
                told = [header for header in message["headers"] if header[0].lower() != b"content-length"]
                message = {**message, "headers": told}  # what is kept from the tenant makes it shorter
        elif message["type"] == "http.response.body":
            body, last = message.get("body", b""), not message.get("more_body", False)
            if self._stream is not None:
                body = self._stream.feed(body)
                if last:
                    body += self._stream.rest()
                self._tell(last)
                if not body and not last:
                    return
                message = {**message, "body": body}
            elif self._whole is not None:
                self._whole += body
                if len(self._whole) > MOST_HELD_BYTES:
                    self._whole = None
                elif last:
                    self.usage.whole(bytes(self._whole))
                self._tell(last)
        await self._send(message)

    def _tell(self, last: bool) -> None:
        """Nobody needs to read on for the counts."""
        if self.usage.stated or last:
            self._stated.set()

    async def _read_on(self) -> None:
        """Until counts are stated, or the answer is whole, or that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._read_on_s):
                await self._stated.wait()

    def close(self) -> None:
        """The counts are final."""
        seen, usage = self._attempt.seen, self.usage
        seen.reasons.update(usage.reasons)
        refused = seen.http_status is not None and seen.http_status >= 400
        self._attempt.source = "stream" if usage.stated or refused else "estimate"
        self._attempt.finished(SEQUENCE)


def asking_for_usage(body: bytes, *, continuous: bool) -> tuple[bytes, Hidden, int]:
    """A body that asks for usage if it asks for a stream, what of it the tenant had not asked for, and its `n`."""
    fields: dict[str, Any] = _fields(body)
    if bytes(fields.get("stream", b"")) != b"true":
        return body, Hidden(), 1
    try:
        options = msgspec.json.decode(fields.get("stream_options", b"null"), type=dict[str, Any] | None) or {}
        n = msgspec.json.decode(fields.get("n", b"null"), type=int | None) or 1
    except msgspec.ValidationError:
        return body, Hidden(), 1  # the engine refuses it
    final = not options.get("include_usage")
    running = final or (continuous and not options.get("continuous_usage_stats"))
    options["include_usage"] = True
    if continuous:
        options["continuous_usage_stats"] = True
    return _encode({**fields, "stream_options": options}), Hidden(final, running), n
