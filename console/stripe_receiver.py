"""Stripe's webhooks over HTTP: checked, kept as they came, answered; a thread beside takes in what they tell of."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from billing.commands.sync_stripe import sync_stripe
from billing.database import transaction
from billing.errors import BillingError, EventRefused
from billing.stripe import returns, returns_store
from billing.stripe.stripe_accounts import Stripe
from streams.errors import StreamsError

BODY_MAX: Final = 2_000_000
"""Ten times the largest event."""
PATH: Final = "/stripe/webhooks"
AGAIN_S: Final = 5.0
"""After a run that failed."""
log = logging.getLogger(__name__)


def build_app(
    engine: Engine, gateway: Stripe, secrets: Mapping[str, str], *, every_s: float, poll_first: bool = True
) -> Starlette:
    """The receiver of all accounts' webhooks.

    `secrets`: by legal entity that of its account's endpoint, by which it is known whose account an event is of.
    `every_s`: seconds between two readings of the list of events, which closes gaps; the first one at once
    (`poll_first`).
    """
    handler = _Handler(engine, gateway, every_s, poll_first)

    async def take(request: Request) -> Response:
        payload = b""
        async for part in request.stream():
            payload += part
            if len(payload) > BODY_MAX:
                return JSONResponse({"error": "too large"}, status_code=413)
        try:
            header = request.headers.get("stripe-signature", "")
            event, whose = _signed(payload, header, secrets)
        except EventRefused as refused:
            return JSONResponse({"error": str(refused)}, status_code=400)
        await run_in_threadpool(_keep, engine, event, whose)
        handler.wake()
        return JSONResponse({"received": True})

    async def health(_: Request) -> Response:
        if handler.failure is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "not taken in", "error": handler.failure}, status_code=503)

    @asynccontextmanager
    async def beside(_: Starlette) -> AsyncIterator[None]:
        handler.start()
        yield
        await run_in_threadpool(handler.stop)

    return Starlette(routes=[Route(PATH, take, methods=["POST"]), Route("/healthz", health)], lifespan=beside)


def _signed(payload: bytes, header: str, secrets: Mapping[str, str]) -> tuple[returns_store.StripeEvent, str]:
    """The event of a webhook, and whose account's secret it is signed with. Raises EventRefused."""
    refused = EventRefused("no account of Stripe's has an endpoint here")
    for entity, secret in secrets.items():
        try:
            return returns.signed_event(payload, header, secret, datetime.now(UTC)), entity
        except EventRefused as error:
            refused = error
    raise refused


def _keep(engine: Engine, event: returns_store.StripeEvent, whose: str) -> None:
    with transaction(engine) as connection:
        returns_store.keep_event(connection, event, received_as="webhook", legal_entity=whose)


class _Handler:
    """Takes in what webhooks brought, as soon as there is something, and all of it every so often."""

    def __init__(self, engine: Engine, gateway: Stripe, every_s: float, poll_first: bool) -> None:
        self._engine = engine
        self._gateway = gateway
        self._every_s = every_s
        self._polled_at = float("-inf") if poll_first else time.monotonic()
        self.failure: str | None = None
        """Why the last run failed; what came is kept, and taken in by the next."""
        self._woken = threading.Event()
        self._ends = False
        self._thread = threading.Thread(target=self._run, name="stripe-events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._woken.set()

    def stop(self) -> None:
        self._ends = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ends:
            poll = time.monotonic() - self._polled_at >= self._every_s
            try:
                sync_stripe(self._engine, gateway=self._gateway, now=datetime.now(UTC), poll=poll)
                self.failure = None
                if poll:
                    self._polled_at = time.monotonic()
            except Exception as error:  # whatever it is, webhooks go on coming, and the next run may go through
                self.failure = str(error) if isinstance(error, (BillingError, StreamsError)) else type(error).__name__
                log.warning("Stripe was not taken in, it is tried again", exc_info=error)
            rest = max(self._polled_at + self._every_s - time.monotonic(), 0)
            self._woken.wait(rest if self.failure is None else min(rest, AGAIN_S))
            self._woken.clear()
