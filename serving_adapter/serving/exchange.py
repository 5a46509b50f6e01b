"""One metered request: checked, admitted, started on disk, passed on to the engine, and ended in any way it may end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Final, TypeVar

from serving_adapter.asgi import Message, Receive, Scope, Send
from serving_adapter.engine.attempts import CURRENT, Attempt
from serving_adapter.isolation.body import parse, rewritten
from serving_adapter.isolation.callers import Caller
from serving_adapter.isolation.refusal import Refusal, going_down
from serving_adapter.isolation.routes import Route
from serving_adapter.isolation.rules import Resolved, Tier
from serving_adapter.metering.outcome import Ending
from serving_adapter.request_ids import uuid7
from serving_adapter.serving.admission import Admitting
from serving_adapter.serving.answering import Answering
from serving_adapter.serving.attempt_events import lost_event
from serving_adapter.serving.dispatched import AttemptId
from serving_adapter.serving.replica import Replica
from serving_adapter.spool.journal import NoRoom

STRIPPED: Final = frozenset(
    {
        b"x-request-id", b"x-data-parallel-rank", b"x-vllm-priority", b"x-session-id", b"x-tollbook-caller",
        b"authorization", b"content-length", b"content-encoding", b"transfer-encoding",
    }
)  # fmt: skip
"""Headers that vLLM obeys, or that are for us alone."""
JSON: Final = b"application/json"
_NO_TIER: Final = Tier()
T = TypeVar("T")


class Exchange:
    """A request and its answer."""

    def __init__(
        self, replica: Replica, app: Any, route: Route, caller: Caller, headers: dict[bytes, bytes],
        resolved: Resolved | None = None,
    ) -> None:  # fmt: skip
        """`resolved`: what the request's model means, where the platform itself asks; else the rules say it."""
        self._resolved = resolved
        self._replica = replica
        self._app = app
        self._route = route
        self._caller = caller
        self._headers = headers
        self._extra: list[tuple[bytes, bytes]] = []
        self._admitting = Admitting(replica, caller, route)
        self._begun = False
        """Whether the attempt has an event, or will have one."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises Refusal for what never reaches the engine."""
        caller, replica = self._caller, self._replica
        body = await _read(receive, self._headers, replica.rules.limits.body_bytes)
        if body is None:
            return  # gone before it had asked
        came_at = time.monotonic()
        if not self._admitting.attempt_is_given:
            await self._serve(body, uuid7(replica.clock.now_ns()), came_at, scope, receive, send)
            return
        attempt = AttemptId(caller.tenant_id, caller.request_id or "", caller.attempt or 1)
        if not replica.dispatched.claim(attempt, came_at):
            raise Refusal(409, "attempt_twice", "This attempt of the request was begun before: count a further one.")
        try:
            await self._serve(body, attempt.request_id, came_at, scope, receive, send)
        finally:
            replica.dispatched.let_go(attempt, begun=self._begun)

    async def _serve(
        self, body: bytes, request_id: str, came_at: float, scope: Scope, receive: Receive, send: Send
    ) -> None:
        caller, replica = self._caller, self._replica
        asked = parse(body, self._route, replica.limits(self._route), replica.rules.media, replica.known_fields)
        model = self._resolved or replica.resolver.resolve(caller.tenant_id, asked.model, request_id)
        tier = replica.rules.tiers.get(caller.tier, _NO_TIER)
        admission = await self._admitting.ask(asked, model, request_id)
        priority = tier.priority + (admission.priority if admission is not None else 0)
        bound = admission.max_tokens if admission is not None else None
        salt = replica.salt_of(caller.tenant_id) if replica.engine_fields else None
        sent_on = rewritten(
            asked, self._route, model, cache_salt=salt, priority=priority, max_tokens=bound,
            under_all_names=replica.settings.proxy is not None,
        )  # fmt: skip
        is_shorter = bound is not None and (asked.max_tokens is None or bound < asked.max_tokens)
        if is_shorter and self._route is not Route.EMBEDDINGS:
            self._extra.append((b"x-tollbook-max-tokens", str(bound).encode()))
        self._extra.append((b"x-request-id", request_id.encode()))
        async with self._admitting.place(request_id):
            attempt = await self._begin(request_id, model, tier, came_at)
            await self._pass_on(attempt, model, sent_on, request_id, scope, receive, send)

    async def _begin(self, request_id: str, model: Resolved, tier: Tier, came_at: float) -> Attempt:
        caller, replica = self._caller, self._replica
        own_id = self._headers.get(b"x-request-id", b"").decode("utf-8", "replace")[:128].replace("\0", "") or None
        lost = lost_event(
            caller, model, request_id, own_id, now_ns=replica.clock.now_ns(), region=replica.settings.region,
            pool=replica.settings.pool,
        )  # fmt: skip
        self._begun = True
        try:
            return await replica.begin(
                lost, came_at=came_at, adapter=model.adapter or None, engine_model=model.engine,
                may_be_shed=tier.may_be_shed, may_be_followed=self._admitting.attempt_is_given,
            )  # fmt: skip
        except NoRoom as error:
            self._begun = False
            self._admitting.withdraw(request_id)
            raise Refusal(503, "no_room", f"This request could not be metered: {error}") from None

    async def _pass_on(
        self, attempt: Attempt, model: Resolved, body: bytes, request_id: str, scope: Scope, receive: Receive,
        send: Send,
    ) -> None:  # fmt: skip
        """Have the engine answer. Ends the attempt's exchange, whatever happens."""
        seen = attempt.seen
        answering = Answering(attempt, model, self._extra, send)
        asked_for_body = False
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(self._replica.longest_request_s, _expire, over, seen)
        attempt.let_go = partial(_end, over, seen)

        async def receive_on() -> Message:
            nonlocal asked_for_body
            if not asked_for_body:
                asked_for_body = True
                return {"type": "http.request", "body": body, "more_body": False}
            message = await _before(over, receive)
            if message is None:  # the engine's server lets go of a request whose client is gone, and of no other
                return {"type": "http.disconnect"}
            if message["type"] == "http.disconnect" and not seen.answered:
                seen.client_gone = True
                if attempt.read_on is not None:  # an engine that is let go before it has stated its counts never will
                    await _before(over, attempt.read_on)
            return message

        passed = [(name, value) for name, value in scope["headers"] if name.lower() not in STRIPPED]
        passed += [(b"content-length", str(len(body)).encode()), (b"x-request-id", request_id.encode())]
        token = CURRENT.set(attempt)
        try:
            await self._app({**scope, "headers": passed}, receive_on, answering.send)
            if answering.is_ours:
                refusal = going_down() if seen.shut_down else Refusal(504, "timeout", "The request took too long.")
                seen.http_status = refusal.status
                await refuse(send, refusal)
        except asyncio.CancelledError:
            seen.shut_down = True
            raise
        except Exception:
            seen.failed = True
            raise
        finally:
            timer.cancel()
            CURRENT.reset(token)
            attempt.close()


async def answer(
    send: Send,
    status: int,
    body: bytes,
    more: Iterable[tuple[str, str]] = (),
    content_type: bytes = JSON,
) -> None:
    """A whole answer."""
    headers = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode("latin-1")) for name, value in more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, refusal: Refusal) -> None:
    """A refusal's answer."""
    await answer(send, refusal.status, refusal.body, refusal.headers)


async def _read(receive: Receive, headers: dict[bytes, bytes], most: int) -> bytes | None:
    """The whole body; None if the client is gone before. Raises Refusal (400, 413)."""
    if headers.get(b"content-encoding", b"identity").lower() not in (b"", b"identity"):
        raise Refusal(400, "encoded", "Bodies are taken as they are, not encoded.")
    told = headers.get(b"content-length", b"0")
    if told.isdigit() and int(told) > most:
        raise Refusal(413, "too_large", f"The body may have {most} bytes at most.")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        size += len(part)
        if size > most:
            raise Refusal(413, "too_large", f"The body may have {most} bytes at most.")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _expire(over: asyncio.Future[None], seen: Ending) -> None:
    if not seen.answered and not over.done():
        seen.timed_out = seen.let_go = not seen.client_gone
        over.set_result(None)


def _end(over: asyncio.Future[None], seen: Ending) -> None:
    if not seen.answered and not over.done():
        seen.let_go = True
        over.set_result(None)


async def _before(over: asyncio.Future[None], receive: Callable[[], Awaitable[T]]) -> T | None:
    """What comes next; None if the request's time is over first."""
    if over.done():
        return None
    coming = asyncio.ensure_future(receive())
    waiting: set[asyncio.Future[Any]] = {coming, over}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        return coming.result() if coming.done() else None
    finally:
        coming.cancel()
