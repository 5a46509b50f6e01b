"""An engine's answer on its way to the tenant."""

from __future__ import annotations

import time

import msgspec

from serving_adapter.asgi import Message, Send
from serving_adapter.engine.attempts import Attempt
from serving_adapter.isolation.rules import Resolved
from serving_adapter.serving.replica import Replica


class Answering:
    """Passes it on: times, the tenant's own name for the model, our headers."""

    def __init__(
        self, replica: Replica, tenant_id: str, attempt: Attempt, model: Resolved, extra: list[tuple[bytes, bytes]],
        began: float, send: Send,
    ) -> None:  # fmt: skip
        self._attempt = attempt
        self._send = send
        self._began = began
        self._last: float | None = None
        self._extra = extra
        self._first_token = replica.metrics.first_token(tenant_id)
        self._gap = replica.metrics.token_gap(tenant_id)
        self._names = _renaming(model)
        self._held: Message | None = None
        self._whole = b""
        self.begun = False
        """Whether the tenant has seen, or will see, the beginning of an answer."""

    async def send(self, message: Message) -> None:
        """ASGI's."""
        seen = self._attempt.seen
        if seen.timed_out and not self.begun:
            return  # what the engine's server answers to nobody
        if message["type"] == "http.response.start":
            self.begun = True
            seen.http_status = message["status"]
            headers = [*message["headers"], *self._extra]
            message = {**message, "headers": headers}
            if self._names is not None and any(name.lower() == b"content-length" for name, _ in headers):
                self._held = message
                return
        elif message["type"] == "http.response.body":
            body, more = message.get("body", b""), message.get("more_body", False)
            if body:
                self._time()
            if self._held is not None:
                self._whole += body
                if more:
                    return
                message = await self._let_go()
            elif self._names is not None and body:
                message = {**message, "body": body.replace(*self._names)}
            if not more:
                seen.answered = True
        await self._send(message)

    async def _let_go(self) -> Message:
        """The head of an answer of a told length, now that its length is known again."""
        assert self._held is not None
        assert self._names is not None
        body, held, self._held = self._whole.replace(*self._names), self._held, None
        headers = [(name, value) for name, value in held["headers"] if name.lower() != b"content-length"]
        await self._send({**held, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        return {"type": "http.response.body", "body": body, "more_body": False}

    def _time(self) -> None:
        now = time.monotonic()
        if self._last is None:
            self._attempt.ttft_ms = int((now - self._began) * 1000)
            self._first_token.observe(now - self._began)
        else:
            self._gap.observe(now - self._last)
        self._last = now


def _renaming(model: Resolved) -> tuple[bytes, bytes] | None:
    """What to replace in answers. Within a JSON text quotes are escaped, so only the field itself can match."""
    if model.asked == model.engine:
        return None
    return b'"model":' + msgspec.json.encode(model.engine), b'"model":' + msgspec.json.encode(model.asked)
