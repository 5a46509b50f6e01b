"""Counting from what an engine's server answers, for engines whose insides are not known: `usage_source` is `stream`.

An ASGI app around the engine's: usage is asked of every stream, read as it passes, and kept from tenants who had not
asked for it. An abort is counted as far as the answer had come.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from serving_adapter.asgi import App, Message, Receive, Scope, Send
from serving_adapter.engine.attempts import CURRENT, Attempt
from serving_adapter.metering.stated_usage import MOST_HELD_BYTES, SEQUENCE, EventStream, Hidden, StatedUsage

TAKE_OPTIONS: Final = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Where a stream states its usage if `stream_options` say so; elsewhere it does without."""

_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode: Final = msgspec.json.Encoder().encode


class StreamCounting:
    """Reads the usage of each metered request's answer into its attempt."""

    def __init__(self, app: App, *, continuous: bool) -> None:
        """`continuous`: ask for usage in each piece of a stream, as vLLM and SGLang can."""
        self._app = app
        self._continuous = continuous

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's."""
        attempt = CURRENT.get()
        if attempt is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first: Message | None = await receive()
        assert first is not None
        body, hidden = first["body"], Hidden()
        if scope["path"] in TAKE_OPTIONS:
            body, hidden = asking_for_usage(body, continuous=self._continuous)
        headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        first = {**first, "body": body}

        async def receive_on() -> Message:
            nonlocal first
            message, first = first, None
            return message if message is not None else await receive()

        counted = _Counted(attempt, send, hidden)
        try:
            await self._app({**scope, "headers": headers}, receive_on, counted.send)
        finally:
            counted.close()


class _Counted:
    """One answer on its way."""

    def __init__(self, attempt: Attempt, send: Send, hidden: Hidden) -> None:
        self._attempt = attempt
        self._send = send
        self._usage = StatedUsage()
        self._hidden = hidden
        self._stream: EventStream | None = None
        self._whole: bytearray | None = bytearray()
        attempt.began(SEQUENCE, self._usage.look)

    async def send(self, message: Message) -> None:
        """ASGI's."""
        if message["type"] == "http.response.start":
            types = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            if types and types[0].startswith(b"text/event-stream"):
                self._stream = EventStream(self._usage, self._hidden)
        elif message["type"] == "http.response.body":
            body, last = message.get("body", b""), not message.get("more_body", False)
            if self._stream is not None:
                body = self._stream.feed(body)
                if last:
                    body += self._stream.rest()
                if not body and not last:
                    return
                message = {**message, "body": body}
            elif self._whole is not None:
                self._whole += body
                if len(self._whole) > MOST_HELD_BYTES:
                    self._whole = None
                elif last:
                    self._usage.whole(bytes(self._whole))
        await self._send(message)

    def close(self) -> None:
        """The counts are final."""
        seen, usage = self._attempt.seen, self._usage
        seen.reasons.update(usage.reasons)
        refused = seen.http_status is not None and seen.http_status >= 400
        self._attempt.source = "stream" if usage.stated or refused else "estimate"
        self._attempt.finished(SEQUENCE)


def asking_for_usage(body: bytes, *, continuous: bool) -> tuple[bytes, Hidden]:
    """A body that asks for usage if it asks for a stream, and what of it the tenant had not asked for."""
    fields: dict[str, Any] = _fields(body)
    if bytes(fields.get("stream", b"")) != b"true":
        return body, Hidden()
    try:
        options = msgspec.json.decode(fields.get("stream_options", b"null"), type=dict[str, Any] | None) or {}
    except msgspec.ValidationError:
        return body, Hidden()  # the engine refuses it
    final = not options.get("include_usage")
    running = final or (continuous and not options.get("continuous_usage_stats"))
    options["include_usage"] = True
    if continuous:
        options["continuous_usage_stats"] = True
    return _encode({**fields, "stream_options": options}), Hidden(final, running)
