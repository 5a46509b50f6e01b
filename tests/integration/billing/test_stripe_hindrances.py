"""What hinders taking in what comes from Stripe hinders nothing else, and is seen."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from typing import Any

import pytest
from starlette.testclient import TestClient

from billing.commands import sync_stripe as sync_module
from billing.commands.decide_proposal import decide, propose
from billing.commands.show_invoices import invoice_list
from billing.commands.show_returns import returns_shown
from billing.database import transaction
from billing.posting import stripe_money
from billing.posting.proposal_store import ProposalKind
from billing.stripe import returns, returns_store
from billing.stripe.stripe_gateway import StripeGateway
from console import stripe_receiver
from tests.billing_builders import NOW
from tests.fixtures_stripe_twin import StripeTwin, act
from tests.integration.billing.conftest import World
from tests.integration.billing.stripe_months import books, finalized, sync

WITHIN_S = 60.0


def test_money_that_cannot_be_booked_is_told_and_holds_up_no_other(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = finalized(world, gateway, "acme", "bolt")
    odd = {"type": "customer_cash_balance_transaction.created", "data": {"object": {"id": "ccsbtxn_odd"}}}
    upcoming = {"type": "invoice.upcoming", "data": {"object": {"object": "invoice", "id": None}}}
    with transaction(world.engine) as connection:
        for event_id, event in (("evt_odd", odd), ("evt_up", upcoming)):
            came = returns.event_of({"id": event_id, "created": 1, **event})
            returns_store.keep_event(connection, came, received_as="webhook")
    for invoice in sent.values():
        act(stripe_twin, "pay", invoice=invoice)
    first, *_ = reversed(stripe_twin.client().v1.balance_transactions.list({"limit": 100}).data)
    known = stripe_money.currency
    broken = [first.id]

    def currency(code: str, on: Any) -> Any:
        return known("XXQ" if broken else code, on)

    booked = sync_module._book

    def book(connection: Any, whose: str, moved: Any, customer: str | None, now: datetime) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if moved.transaction_id in broken:
                patch.setattr(stripe_money, "currency", currency)
            booked(connection, whose, moved, customer, now)

    monkeypatch.setattr(sync_module, "_book", book)
    found = sync(world, gateway)
    assert (found.booked, found.paid) == (1, 2)
    told, strange = found.problems
    assert told.startswith(f"{first.id} of ")
    assert "XXQ" in told
    assert strange == "ccsbtxn_odd: KeyError: 'customer'", "what nobody thought of waits, and holds up no other"
    assert world.rows("select outcome from ledger.stripe_events where event_id = 'evt_up'") == [("kept",)]
    assert books(world)[1100] == 20
    assert sync(world, gateway).problems == (told, strange), "it is tried again"
    broken.clear()
    assert sync(world, gateway).booked == 1
    assert books(world)[1100] == 0


def test_what_needed_a_person_is_over_once_the_invoice_is(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    sent = finalized(world, gateway, "acme")
    stripe_twin.client().v1.invoices.pay(sent["acme"], {"paid_out_of_band": True})
    (told,) = sync(world, gateway).problems
    assert "`tollbook invoice pay INV-000001 --out-of-band --document" in told
    assert not returns_shown(world.engine, datetime.now(UTC)).agrees
    number = propose(world.engine, ProposalKind.PAID_ELSEWHERE, sent["acme"], {}, document="bank", now=NOW, actor="ada")
    decide(world.engine, number, approved=True, now=NOW, actor="bob")
    assert sync(world, gateway).problems == ()
    assert (books(world)[1020], books(world).get(1100, 0)) == (20, 0), "booked once"
    assert returns_shown(world.engine, datetime.now(UTC)).agrees
    assert {i["state"] for i in invoice_list(world.engine)} == {"paid"}


def test_a_receiver_outlives_any_error_says_so_and_polls_though_webhooks_keep_coming(
    world: World, gateway: StripeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    polled: list[bool] = []
    fails = threading.Event()
    fails.set()

    def sync_stripe(*_: Any, poll: bool, **__: Any) -> None:
        polled.append(poll)
        if fails.is_set():
            raise RuntimeError("something that nobody thought of")

    monkeypatch.setattr(stripe_receiver, "sync_stripe", sync_stripe)
    monkeypatch.setattr(stripe_receiver, "AGAIN_S", 0.01)
    app = stripe_receiver.build_app(world.engine, gateway, {gateway.legal_entity: "whsec_test"}, every_s=0.2)
    with TestClient(app) as client:
        _until(lambda: client.get("/healthz").status_code == 503)
        fails.clear()
        _until(lambda: client.get("/healthz").status_code == 200)
        before = polled.count(True)
        handler = next(t for t in threading.enumerate() if t.name == "stripe-events")
        until = time.monotonic() + WITHIN_S
        while polled.count(True) < before + 3 and time.monotonic() < until:
            handler._target.__self__.wake()  # type: ignore[attr-defined]  # as each webhook does
            time.sleep(0.005)
        assert polled.count(True) >= before + 3


def _until(holds: Any) -> None:
    until = time.monotonic() + WITHIN_S
    while time.monotonic() < until:
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about in time")
