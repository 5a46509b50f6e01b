"""An engine's answer on its way to the tenant."""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

from serving_adapter.asgi import Message, Send
from serving_adapter.engine.attempts import Attempt
from serving_adapter.isolation.rules import Resolved


class Answering:
    """Passes it on with the tenant's own name for the model, and our headers."""

    def __init__(self, attempt: Attempt, model: Resolved, extra: list[tuple[bytes, bytes]], send: Send) -> None:
        self._attempt = attempt
        self._send = send
        self._extra = extra
        self._names = _names(model.engine, model.asked)
        self._held: Message | None = None
        self._whole = bytearray()
        self.begun = False
        """Whether the tenant has seen, or will see, the beginning of an answer."""

    @property
    def is_ours(self) -> bool:
        """Whether the engine's server was let go before it had begun: what it answers then is for nobody."""
        return self._attempt.seen.let_go and not self.begun

    async def send(self, message: Message) -> None:
        """ASGI's."""
        seen = self._attempt.seen
        if self.is_ours:
            return
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
            if self._held is not None:
                self._whole += body
                if more:
                    return
                message = await self._let_go()
            elif self._names is not None and body:
                message = {**message, "body": self._names.in_own(body)}
            if not more:
                seen.answered = True
        await self._send(message)

    async def _let_go(self) -> Message:
        """The head of an answer of a told length, now that its length is known again."""
        assert self._held is not None
        assert self._names is not None
        body, held, self._held = self._names.in_own(bytes(self._whole)), self._held, None
        headers = [(name, value) for name, value in held["headers"] if name.lower() != b"content-length"]
        await self._send({**held, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        return {"type": "http.response.body", "body": body, "more_body": False}


class _Names:
    """What to replace in answers. Within a JSON text quotes are escaped, so only the field itself can match."""

    def __init__(self, engine: str, asked: str) -> None:
        name, self._own = msgspec.json.encode(engine), b'"model":' + msgspec.json.encode(asked)
        self._tight = b'"model":' + name
        self._spaced = re.compile(rb'"model"\s*:\s*' + re.escape(name))

    def in_own(self, body: bytes) -> bytes:
        """An answer, or a piece of it, with the tenant's name. Engines write no spaces, or some."""
        if self._tight in body or b'"model"' not in body:
            return body.replace(self._tight, self._own)
        return self._spaced.sub(lambda _: self._own, body)


@lru_cache(1024)
def _names(engine: str, asked: str) -> _Names | None:
    return _Names(engine, asked) if engine != asked else None
