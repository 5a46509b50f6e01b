"""The demo's duplicate webhook: a payer pays an invoice, and Stripe tells it twice."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from sqlalchemy import Engine
from starlette.types import ASGIApp, Receive, Scope, Send

from billing.commands.show_invoices import invoice_list
from billing.database import transaction
from billing.invoicing.invoice_states import InvoiceState
from billing.periods import parse_period
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.settings import StripeSettings
from billing.stripe import returns, returns_store
from console import session
from console.stripe_receiver import PATH, build_app
from devstack.stack import STRIPE_API
from devstack.twin_control import as_person, ask

EVENTS: Final = ("charge.succeeded", "invoice.paid")
"""What a payment tells of, each twice."""
WITHIN_S: Final = 60.0
LOOKED_AT_EVERY_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Delivered:
    """What came of it: the invoice that was paid, how many webhooks came, how many events were kept of them; how many
    balance transactions Stripe has, and how many of them are booked."""

    number: str
    webhooks: int
    events: int
    moved: int
    booked: int

    @property
    def exact(self) -> bool:
        """Whether each event came twice and was kept once, and all money is booked."""
        return self.events == len(EVENTS) and self.webhooks >= 2 * self.events and self.moved == self.booked > 0


def pay_and_tell_twice(engine: Engine, month: str) -> Delivered | None:
    """Let the largest invoice of a month be paid, with each webhook delivered twice; None where it is paid already.

    Only where Stripe is the local twin: Stripe itself repeats webhooks when it likes.
    """
    invoices = invoice_list(engine, within=parse_period(month), states=[InvoiceState.FINALIZED, InvoiceState.PAID])
    largest = max(invoices, key=lambda invoice: (invoice["total"], invoice["number"]), default=None)
    if STRIPE_API not in os.environ or largest is None or largest["state"] != InvoiceState.FINALIZED:
        return None
    key = StripeSettings.from_environment().key
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
    wanted = [("url", url), *(("enabled_events[]", event) for event in EVENTS)]
    endpoint = as_person("POST", "webhook_endpoints", key, wanted)
    ask("POST", "webhooks", {"repeat": 1.0})
    try:
        with transaction(engine) as connection:
            before = returns_store.kept(connection)
        stripe = session.stripe().of(DEFAULT_LEGAL_ENTITY)
        secrets = {stripe.legal_entity: endpoint["secret"]}
        app = _Counting(build_app(engine, stripe, secrets, every_s=WITHIN_S, poll_first=False))
        with _served(app, listener):
            ask("POST", "acts/pay", {"key": key, "invoice": largest["stripe_invoice_id"]})
            _wait(engine, app, 2 * len(EVENTS))
        moved = [each.transaction_id for page in returns.balance_transactions(stripe, None) for each in page]
        with transaction(engine) as connection:
            events, booked = returns_store.kept(connection) - before, returns_store.booked(connection, moved)
        return Delivered(largest["number"], app.answered, events, len(moved), len(booked))
    finally:
        ask("POST", "webhooks", {})
        as_person("DELETE", f"webhook_endpoints/{endpoint['id']}", key)


class _Counting:
    """Counts what an application answered."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.answered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
        self.answered += scope["type"] == "http"


@contextmanager
def _served(app: _Counting, listener: socket.socket) -> Iterator[None]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _wait(engine: Engine, app: _Counting, webhooks: int) -> None:
    """Until so many webhooks were answered and what they tell of is taken in."""
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        with transaction(engine) as connection:
            waiting: Any = returns_store.waiting(connection)
        if app.answered >= webhooks and not waiting:
            return
        time.sleep(LOOKED_AT_EVERY_S)
