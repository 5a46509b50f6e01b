"""`POST /v1/events`: usage events over HTTP, for emitters without Kafka (docs/spec/metering.md 5).

An answer of 202 says that every accepted event is in Kafka, acknowledged by all in-sync replicas. Whatever else is
answered, or not answered at all, the emitter may repeat the request: events have identities. Nothing is kept here.

Everything is bounded: bytes of a body, events of a request, connections, the time for a head and for a body; requests,
bytes and events in flight, of all emitters and of each. What comes beyond is refused with 429 or 503 and Retry-After.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving_adapter.errors import DeliveryFailed
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams.errors import CannotServe, KeysUnknown, QueueFull
from streams.http import event_openapi
from streams.http.access_keys import AccessKey
from streams.http.event_delivery import DELIVER_WITHIN_S, QUEUED_MESSAGES, EventDelivery
from streams.http.event_metrics import EventMetrics
from streams.http.http_connections import BoundedConnection
from streams.http.http_events import Accepted, BadRequest, Refused, Result, answer_of, read_request, status_of
from streams.http.in_flight import InFlight, Load, NoRoom, Place
from streams.http.key_ring import STALE_S, KeyRing
from streams.http.listening import listen, url_of
from streams.http.plain_answers import json_answer, metrics_answer, to_json
from streams.settings import DatabaseSettings

PATH: Final = "/v1/events"
MAX_BODY_BYTES: Final = 4 * 1024 * 1024
"""1,000 events of 300 bytes in their envelopes are half a megabyte."""
MAX_IN_FLIGHT: Final = Load(requests=512, size=64 * 1024 * 1024, events=QUEUED_MESSAGES)
MAX_OF_ONE_KEY: Final = Load(*(whole // 4 for whole in MAX_IN_FLIGHT))
"""An emitter's share: a quarter, so that the slowest and the busiest leave room for the others."""
MAX_CONNECTIONS: Final = 2048
READ_WITHIN_S: Final = 10.0
KEEP_ALIVE_S: Final = 30
STOP_WITHIN_S: Final = int(DELIVER_WITHIN_S) + 5
"""Longer than a delivery may take: a request that was accepted gets its answer."""
PROBE_EVERY_S: Final = 2.0
PROBE_WITHIN_S: Final = 2.0
RETRY_BUSY_S: Final = 1
RETRY_AWAY_S: Final = 5


class EventServer:
    """The ASGI application. `/v1/events` is answered here, without a framework in between; the rest is Starlette's."""

    def __init__(self, delivery: EventDelivery, keys: KeyRing) -> None:
        self._delivery = delivery
        self._keys = keys
        self._metrics = EventMetrics()
        self._in_flight = InFlight(MAX_IN_FLIGHT, MAX_OF_ONE_KEY)
        self._kafka_failed_at: float | None = None
        """When the last look at Kafka began, if it failed."""
        self.on_broken: Callable[[], None] = lambda: None
        """Called once the producer can send nothing any more."""
        self._others = Starlette(
            routes=[
                Route("/healthz", self._healthz),
                Route("/readyz", self._readyz),
                Route("/metrics", self._show_metrics),
                Route("/openapi.json", self._openapi),
            ],
            lifespan=self._lifespan,
        )
        gauge, in_flight = self._metrics.gauge, self._in_flight
        gauge("tollbook_event_requests_in_flight", "Requests that are being answered.", lambda: in_flight.load.requests)
        gauge("tollbook_event_bytes_in_flight", "Bytes of their bodies.", lambda: in_flight.load.size)
        gauge("tollbook_events_waiting", "Events that Kafka has not acknowledged yet.", lambda: delivery.waiting)
        gauge("tollbook_emitter_keys", "Emitter keys in force.", lambda: len(keys))
        gauge("tollbook_emitter_keys_age_seconds", "Since the keys were read.", lambda: keys.age_s)
        gauge("tollbook_kafka_reachable", "1 if Kafka answers.", lambda: float(not self.kafka_is_away))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http" and scope["path"] == PATH:
            await self._events(scope, receive, send)
        else:
            await self._others(scope, receive, send)

    @property
    def kafka_is_away(self) -> bool:
        """Whether Kafka did not answer when last looked at, nor acknowledged anything since."""
        failed_at = self._kafka_failed_at
        return failed_at is not None and self._delivery.acknowledged_at < failed_at

    async def _events(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = time.monotonic()
        try:
            status, body, headers = await self._answered(scope, receive)
        except Refusal as refusal:
            status, headers = refusal.status, refusal.headers
            body = to_json({"error": {"code": refusal.code, "message": str(refusal)}})
        self._metrics.request(status, time.monotonic() - begun)
        length = (b"content-length", b"%d" % len(body))
        headers = [(b"content-type", b"application/json"), length, *headers]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answered(self, scope: Scope, receive: Receive) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
        """Status, body and further headers of a request that was judged. Raises Refusal."""
        if scope["method"] != "POST":
            raise Refusal(405, "method_not_allowed", "POST only", [(b"allow", b"POST")])
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        key = await self._key_of(headers)
        _refuse_too_large(headers)
        try:
            with self._in_flight.request(key.key_id) as place:
                body = await read_body(receive, place)
                results = await self._sent(headers, body, key, place)
        except NoRoom as error:
            raise _busy(str(error)) from None
        return status_of(results), to_json(answer_of(results)), []

    async def _key_of(self, headers: list[tuple[bytes, bytes]]) -> AccessKey:
        """The emitter's key; it is asked for before anything of the body is read."""
        given = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, secret = given.decode("latin-1").partition(" ")
        try:
            key = await self._keys.find(secret.strip()) if scheme.lower() == "bearer" else None
        except KeysUnknown as error:
            raise _away("keys_unknown", str(error)) from None
        if key is None:
            challenge = [(b"www-authenticate", b'Bearer realm="tollbook"')]
            raise Refusal(401, "unauthorized", "an emitter's key is needed: Authorization: Bearer …", challenge)
        return key

    async def _sent(
        self, headers: list[tuple[bytes, bytes]], body: bytes, key: AccessKey, place: Place
    ) -> list[Result]:
        """Send what is good of a request and wait for Kafka; the result of each event. Raises Refusal, NoRoom."""
        try:
            found = read_request(
                headers, body, emitter=key.name, may_speak_for=key.may_speak_for, may_number_as=key.may_number_as
            )
        except BadRequest as bad:
            raise Refusal(bad.status, bad.code, str(bad)) from None
        submissions = [each for each in found if not isinstance(each, Refused)]
        if submissions:
            if self.kafka_is_away or self._delivery.broken:
                raise _away("kafka_away", "Kafka does not answer: repeat the request later, nothing is lost")
            place.take(events=len(submissions))
            try:
                await self._delivery.send(submissions, key.key_id)
            except QueueFull as error:
                raise _busy(str(error)) from None
            except DeliveryFailed as error:
                raise _away("not_acknowledged", f"{error}; repeating all of them is safe") from None
            finally:
                if self._delivery.broken:
                    self.on_broken()
        results = [each if isinstance(each, Refused) else Accepted(each.index, each.event_id) for each in found]
        self._metrics.events("accepted", len(submissions))
        for each in found:
            if isinstance(each, Refused):
                self._metrics.events(each.reason)
        return results

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._keys.keep_fresh()), asyncio.create_task(self._look_at_kafka())]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_at_kafka(self) -> None:
        """Find out soon that Kafka is away, so that requests are told at once instead of after a long wait."""
        while True:
            began = time.monotonic()
            answers = await asyncio.to_thread(self._delivery.reaches_kafka, PROBE_WITHIN_S)
            self._kafka_failed_at = None if answers else began
            await asyncio.sleep(PROBE_EVERY_S)

    async def _healthz(self, _request: Request) -> Response:
        """Whether this process is of use, or should be started anew."""
        broken = self._delivery.broken
        return json_answer(500 if broken else 200, {"healthy": not broken, "reason": broken or ""})

    async def _readyz(self, _request: Request) -> Response:
        """Whether events can be taken now."""
        parts = {
            "kafka": not self.kafka_is_away and not self._delivery.broken,
            "keys": self._keys.age_s < STALE_S and self._keys.refused_because is None,
        }
        ready = all(parts.values())
        return json_answer(200 if ready else 503, {"ready": ready, **parts})

    async def _show_metrics(self, _request: Request) -> Response:
        return metrics_answer(self._metrics.text())

    async def _openapi(self, _request: Request) -> Response:
        return json_answer(200, event_openapi.document())


class Refusal(Exception):
    """An answer without results."""

    def __init__(self, status: int, code: str, text: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.headers = headers or []


def _busy(text: str) -> Refusal:
    return Refusal(429, "too_busy", text, [(b"retry-after", b"%d" % RETRY_BUSY_S)])


def _away(code: str, text: str) -> Refusal:
    return Refusal(503, code, text, [(b"retry-after", b"%d" % RETRY_AWAY_S)])


def _refuse_too_large(headers: list[tuple[bytes, bytes]]) -> None:
    """Refuse a body that announces that it is too large, before any of it is read. Raises Refusal 413."""
    announced = next((value for name, value in headers if name == b"content-length"), b"")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()


async def read_body(receive: Receive, place: Place, within_s: float = READ_WITHIN_S) -> bytes:
    """A request's body, each part of which takes its room when it comes. Raises Refusal 408 or 413, NoRoom."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(within_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "torn", "the connection ended before the body did")
                part: bytes = message.get("body", b"")
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                place.take(size=len(part))
                parts.append(part)
                if not message.get("more_body"):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise Refusal(408, "too_slow", f"the body did not come within {within_s:.0f} s") from None


def _too_large() -> Refusal:
    return Refusal(413, "too_large", f"the body may have {MAX_BODY_BYTES} bytes at most")


def serve(
    kafka: KafkaSettings, database: DatabaseSettings, *, host: str, port: int, say: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or SIGINT; requests that were accepted are answered first.

    `say` is told the address once the server can be called. Raises KafkaUnavailable, CannotServe.
    """
    signal.signal(signal.SIGTERM, _end)  # uvicorn takes it over, and raises it again when done: a normal end
    listener = listen(host, port, MAX_CONNECTIONS)
    delivery = EventDelivery(kafka, USAGE.name(kafka.topic_prefix))
    keys = KeyRing(database, "emitter")
    app = EventServer(delivery, keys)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            lifespan="on",
            http=BoundedConnection,
            ws="none",
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=STOP_WITHIN_S,
        )
    )

    def stop() -> None:
        server.should_exit = True

    app.on_broken = stop
    say(f"POST {url_of(listener)}{PATH}")
    try:
        server.run(sockets=[listener])
    except (KeyboardInterrupt, SystemExit):
        pass
    finally:
        delivery.close()
        keys.close()
    if delivery.broken:
        raise CannotServe(f"Kafka's client gave up ({delivery.broken}): start the server again; nothing is lost")


def _end(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
