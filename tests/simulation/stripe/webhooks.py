"""Each handler of events × what can go wrong with webhooks: twice, in any order, lost, late. All come to the same.

Each cell is an account to which something happens at Stripe, and whose events arrive in one of these ways; in the last
one the twin delivers them to a receiver, over HTTP. At the end all events are asked for; then the account must stand
as it does where they arrive as they are told.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import uvicorn

from billing.commands.dispute_evidence import dispute_list
from billing.commands.show_invoices import invoice_list
from billing.database import transaction
from billing.stripe import returns, returns_store
from billing.stripe.stripe_gateway import StripeGateway
from console.stripe_receiver import PATH, build_app
from tests.billing_builders import NOVEMBER
from tests.fixtures_stripe_twin import StripeTwin, act, control
from tests.integration.billing.conftest import World
from tests.integration.billing.stripe_months import finalized, sync

Events = list[dict[str, Any]]
MISHAPS: Final[dict[str, Callable[[Events], Iterable[Events]]]] = {
    "as told": lambda events: [events],
    "twice": lambda events: [[*events, *events], events],
    "backwards": lambda events: [[event] for event in reversed(events)],
    "every second lost": lambda events: [events[::2]],
    "late, one by one": lambda events: [[], *([event] for event in events)],
}
"""How an account's events arrive: batches, after each of which they are handled. At the end all are asked for."""
OVER_HTTP: Final = "over HTTP"
"""From the twin to a receiver: some lost, some twice, none in order."""
WITHIN_S: Final = 60.0
STORIES: Final = (
    "part", "refunded", "won", "lost", "regained", "inquiry", "overpaid", "credited", "by hand", "cash",
)  # fmt: skip
HANDLED: Final = {
    "invoice.paid", "invoice.payment_failed", "invoice.updated", "invoice.voided", "credit_note.created",
    "charge.dispute.created", "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated",
    "charge.dispute.closed", "charge.succeeded", "charge.failed", "charge.refunded", "refund.created",
    "customer_cash_balance_transaction.created", "cash_balance.funds_available",
}  # fmt: skip


def happen(twin: StripeTwin, story: str, invoice: str) -> None:
    """What payers, banks and people do to one invoice."""
    client = twin.client()
    if story == "by hand":
        client.v1.invoices.void_invoice(invoice)
        return
    if story == "cash":
        customer = str(client.v1.invoices.retrieve(invoice).customer)
        client.v1.test_helpers.customers.fund_cash_balance(customer, {"amount": 2300, "currency": "usd"})
        return
    if story == "part":
        act(twin, "pay", invoice=invoice, fails=True)
    if story == "credited":
        client.v1.credit_notes.create({"invoice": invoice, "amount": 100})
    amount = {"part": 700, "overpaid": 2300}.get(story)
    charge = act(twin, "pay", invoice=invoice, **({"amount": amount, "overpay": True} if amount else {}))["id"]
    if story == "refunded":
        client.v1.refunds.create({"charge": charge, "amount": 500})
    if story in ("won", "lost", "regained", "inquiry"):
        amount = 900 if story == "regained" else None
        dispute = act(twin, "dispute", charge=charge, inquiry=story == "inquiry", amount=amount)["id"]
        act(twin, "decide", dispute=dispute, won=story not in ("lost", "regained"))
        if story == "regained":
            act(twin, "reinstate", dispute=dispute)


def stands(world: World, name: str) -> tuple[Any, ...]:
    """All that the events and the money of an account have left here."""
    (invoice,) = invoice_list(world.engine, billing_account=name, today=NOVEMBER.end.date())
    rows = world.rows(
        "select a.code, sum(p.amount) from ledger.postings p join ledger.accounts a using (account_id)"
        " where a.subledger = :name group by 1 having sum(p.amount) <> 0 order by 1",
        name=name,
    )
    moved = world.rows(
        "select reporting_category, sum(net) from ledger.stripe_balance_transactions join ledger.stripe_customers"
        " using (stripe_customer_id) where billing_account = :name group by 1 order by 1",
        name=name,
    )
    disputes = [(d["status"], d["amount"]) for d in dispute_list(world.engine) if d["billing_account"] == name]
    by_hand = world.rows(
        "select kind, amount, over from ledger.stripe_by_hand where invoice_id = :id", id=invoice["invoice_id"]
    )
    told = (invoice["state"], invoice["dunning"], invoice["paid"], invoice["remaining"])
    return *told, rows, moved, disputes, by_hand


@dataclass
class Result:
    """How many cells ended right, by mishap and story; what did not, in words; the types of the events that came, and
    how many of them a receiver took over HTTP."""

    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    received: int = 0


def run(world: World, gateway: StripeGateway, twin: StripeTwin, seed: int = 7) -> Result:
    """Let every cell happen, and check it."""
    cells = list(itertools.product((*MISHAPS, OVER_HTTP), STORIES))
    names = {cell: f"m{number:03d}" for number, cell in enumerate(cells)}
    sent = finalized(world, gateway, *names.values())
    sync(world, gateway)
    arriving: dict[str, list[Events]] = {}
    for mishap, story in itertools.product(MISHAPS, STORIES):
        known = {event["id"] for event in _events(gateway)}
        happen(twin, story, sent[names[mishap, story]])
        new = [event for event in _events(gateway)[:20] if event["id"] not in known]
        arriving[names[mishap, story]] = list(MISHAPS[mishap](new[::-1]))
    for batch in itertools.zip_longest(*arriving.values(), fillvalue=[]):
        with transaction(world.engine) as connection:
            for event in itertools.chain.from_iterable(batch):
                returns_store.keep_event(connection, returns.event_of(event), received_as="webhook")
        sync(world, gateway, poll=False)
    before = world.count("ledger.stripe_events")
    with _received(world, gateway, twin, seed):
        for story in STORIES:
            happen(twin, story, sent[names[OVER_HTTP, story]])
    received = world.count("ledger.stripe_events") - before
    sync(world, gateway)
    kinds = {row[0] for row in world.rows("select distinct type from ledger.stripe_events")}
    result = Result(kinds=kinds, received=received)
    if waiting := sync(world, gateway).waiting:
        result.wrong.append(f"{waiting} events wait")
    found = {cell: stands(world, name) for cell, name in names.items()}
    for mishap, story in cells:
        if found[mishap, story] == found["as told", story]:
            result.right[mishap, story] += 1
        else:
            result.wrong.append(f"{story}, {mishap}: {found[mishap, story]}, not {found['as told', story]}")
    if len({repr(found["as told", story]) for story in STORIES}) != len(STORIES):
        result.wrong.append("two stories end the same")
    return result


@contextmanager
def _received(world: World, gateway: StripeGateway, twin: StripeTwin, seed: int) -> Iterator[None]:
    """A receiver to which the twin delivers badly all that happens within; at the end nothing is on its way."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
    webhooks = twin.client().v1.webhook_endpoints
    endpoint = webhooks.create({"url": url, "enabled_events": ["*"]})
    app = build_app(world.engine, gateway, str(endpoint.secret), every_s=3600, poll_first=False)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    control(twin, "webhooks", lose=0.3, repeat=0.5, delay_s=0.3, seed=seed)
    try:
        yield
        until = time.monotonic() + WITHIN_S
        while twin.call("GET", "/_twin/webhooks")[2]["under_way"] and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        control(twin, "webhooks")
        webhooks.delete(endpoint.id)
        server.should_exit = True
        thread.join()
        listener.close()


def _events(gateway: StripeGateway) -> Events:
    """The newest events, the newest first."""
    page = gateway.get("/v1/events", limit=100)
    return list(page["data"])
