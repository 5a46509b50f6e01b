"""Each handler of events × what can go wrong with webhooks: twice, in any order, lost, late, and with kills.

Each cell is an account to which something happens at Stripe, and whose events arrive in one of these ways; in the last
one the twin delivers them to a receiver, over HTTP. At the end all events are asked for; then the account must stand
as RIGHT says, and to the last detail as it does where they arrive as they are told.
"""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from unittest.mock import patch

import uvicorn
from sqlalchemy import Connection, Engine

from billing.commands.dispute_evidence import dispute_list
from billing.commands.show_invoices import invoice_list
from billing.database import transaction
from billing.stripe import event_handlers, returns, returns_store
from billing.stripe.event_handlers import Handler
from billing.stripe.returns_store import StripeEvent
from billing.stripe.stripe_gateway import StripeGateway
from console.stripe_receiver import PATH, build_app
from tests.billing_builders import NOVEMBER
from tests.fixtures_stripe_twin import StripeTwin, act, control
from tests.integration.billing.conftest import Crash, World
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
KILLED: Final = "killed"
"""Taken in by processes that are killed, each at another point of a handler: after each transaction of it, and before
its events are marked as handled."""
OVER_HTTP: Final = "over HTTP"
"""From the twin to a receiver: some lost, some twice, none in order."""
WITHIN_S: Final = 60.0
WAYS: Final = (*MISHAPS, KILLED, OVER_HTTP)


@dataclass(frozen=True, slots=True)
class Right:
    """How an account stands in the end, by hand: its invoice of 20.00 and what is on its subledgers (debit positive).

    `state` is None where a person has to say what becomes of it.
    """

    state: str | None
    books: Mapping[int, str] = field(default_factory=dict)


RIGHT: Final[Mapping[str, Right]] = {
    "part": Right("finalized", {1100: "13"}),
    "refunded": Right("paid"),
    "refund failed": Right("paid"),
    "won": Right("paid"),
    "lost": Right("paid"),
    "regained": Right("paid"),
    "inquiry": Right("paid"),
    "overpaid": Right("paid", {2150: "-3"}),
    "credited": Right("finalized", {1100: "1"}),
    "note voided": Right("finalized", {1100: "20"}),
    "voided": Right(None, {1100: "20"}),
    "given up": Right(None, {1100: "20"}),
    "cash": Right("paid", {1012: "3", 2150: "-3"}),
    "item": Right("finalized", {1100: "20"}),
    "customer deleted": Right("finalized", {1100: "20"}),
}
"""Refunds go to 4920 and lost disputes to 4930, which belong to no account: they leave 1100 and 1180 at 0. A note, a
void and an uncollectible by hand in Stripe are not in the books."""
STORIES: Final = tuple(RIGHT)
UNTOUCHED: Final = ("item", "customer deleted")
"""What these change is not ours."""
HANDLED: Final = {
    "invoice.paid", "invoice.payment_failed", "invoice.updated", "invoice.voided", "credit_note.created",
    "charge.dispute.created", "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated",
    "charge.dispute.closed", "charge.succeeded", "charge.failed", "charge.refunded", "refund.created",
    "customer_cash_balance_transaction.created", "cash_balance.funds_available", "customer.deleted",
    "invoiceitem.created", "credit_note.voided", "refund.failed", "invoice.marked_uncollectible",
}  # fmt: skip


def happen(twin: StripeTwin, story: str, invoice: str) -> None:
    """What payers, banks and people do to one invoice."""
    client = twin.client()
    customer = str(client.v1.invoices.retrieve(invoice).customer)
    match story:
        case "voided":
            client.v1.invoices.void_invoice(invoice)
        case "given up":
            client.v1.invoices.mark_uncollectible(invoice)
        case "note voided":
            note = client.v1.credit_notes.create({"invoice": invoice, "amount": 100})
            client.v1.credit_notes.void_credit_note(note.id)
        case "cash":
            client.v1.test_helpers.customers.fund_cash_balance(customer, {"amount": 2300, "currency": "usd"})
        case "item":
            client.v1.invoice_items.create({"customer": customer, "amount": 300, "currency": "usd"})
        case "customer deleted":
            client.v1.customers.delete(customer)
        case _:
            _is_paid(twin, story, invoice)


def _is_paid(twin: StripeTwin, story: str, invoice: str) -> None:
    """What begins with a payment."""
    client = twin.client()
    if story == "part":
        act(twin, "pay", invoice=invoice, fails=True)
    if story == "credited":
        client.v1.credit_notes.create({"invoice": invoice, "amount": 100})
    amount = {"part": 700, "overpaid": 2300}.get(story)
    charge = act(twin, "pay", invoice=invoice, **({"amount": amount, "overpay": True} if amount else {}))["id"]
    if story in ("refunded", "refund failed"):
        refund = client.v1.refunds.create({"charge": charge, "amount": 500})
        if story == "refund failed":
            act(twin, "fail_refund", refund=refund.id)
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
    there = world.rows("select status from ledger.stripe_standings where invoice_id = :id", id=invoice["invoice_id"])
    told = (invoice["state"], invoice["dunning"], invoice["paid"], invoice["remaining"])
    return *told, rows, moved, disputes, by_hand, there


@dataclass
class Result:
    """How many cells ended right, by mishap and story; what did not, in words; the types of the events that came, and
    how many of them a receiver took over HTTP; the points of handlers at which a process was killed, by kind of object
    and how many of its transactions were committed (None: all of them)."""

    right: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)
    received: int = 0
    killed: Counter[tuple[str, int | None]] = field(default_factory=Counter)


def run(
    world: World, gateway: StripeGateway, twin: StripeTwin, seed: int = 7, *, mishaps: Collection[str] = tuple(MISHAPS),
    kills_max: int = 1_000_000,
) -> Result:  # fmt: skip
    """Let every cell happen, those of some `mishaps` ("as told" among them), and check it; so many kills at most."""
    cells = list(itertools.product((*mishaps, KILLED, OVER_HTTP), STORIES))
    names = {cell: f"m{number:03d}" for number, cell in enumerate(cells)}
    sent = finalized(world, gateway, *names.values())
    sync(world, gateway)
    arriving: dict[str, list[Events]] = {}
    for mishap, story in itertools.product(mishaps, STORIES):
        new = _happened(gateway, twin, story, sent[names[mishap, story]])
        arriving[names[mishap, story]] = list(MISHAPS[mishap](new))
    for batch in itertools.zip_longest(*arriving.values(), fillvalue=[]):
        _keep(world, itertools.chain.from_iterable(batch))
        sync(world, gateway, poll=False)
    for story in STORIES:
        _keep(world, _happened(gateway, twin, story, sent[names[KILLED, story]]))
    killed = _killed(world, gateway, kills_max)
    before = world.count("ledger.stripe_events")
    with _received(world, gateway, twin, seed):
        for story in STORIES:
            happen(twin, story, sent[names[OVER_HTTP, story]])
    received = world.count("ledger.stripe_events") - before
    sync(world, gateway)
    kinds = {row[0] for row in world.rows("select distinct type from ledger.stripe_events")}
    result = Result(kinds=kinds, received=received, killed=killed)
    if waiting := sync(world, gateway).waiting:
        result.wrong.append(f"{waiting} events wait")
    found = {cell: stands(world, name) for cell, name in names.items()}
    for mishap, story in cells:
        state, books = found[mishap, story][0], found[mishap, story][4]
        right = RIGHT[story]
        if right.state not in (state, None) or dict(books) != {c: Decimal(a) for c, a in right.books.items()}:
            result.wrong.append(f"{story}, {mishap}: {state} with {books}, not {right}")
        elif found[mishap, story] == found["as told", story]:
            result.right[mishap, story] += 1
        else:
            result.wrong.append(f"{story}, {mishap}: {found[mishap, story]}, not {found['as told', story]}")
    touched = [story for story in STORIES if story not in UNTOUCHED]
    if len({repr(found["as told", story]) for story in touched}) != len(touched):
        result.wrong.append("two stories end the same")
    return result


def _happened(gateway: StripeGateway, twin: StripeTwin, story: str, invoice: str) -> Events:
    """Let a story happen; its events, the oldest first."""
    known = {event["id"] for event in _events(gateway)}
    happen(twin, story, invoice)
    return [event for event in _events(gateway)[:20] if event["id"] not in known][::-1]


def _keep(world: World, events: Iterable[dict[str, Any]]) -> None:
    with transaction(world.engine) as connection:
        for event in events:
            returns_store.keep_event(connection, returns.event_of(event), received_as="webhook")


def _killed(world: World, gateway: StripeGateway, kills_max: int) -> Counter[tuple[str, int | None]]:
    """Take in what waits by one process after another, each killed at a point where none was killed before, until one
    gets through: at least once at each kind of point, and at all points as long as it was not `kills_max` times."""
    killed: Counter[tuple[str, int | None]] = Counter()
    seen: set[object] = set()
    place: list[Any] = ["", "", 0]

    def passed(reached: int | None) -> None:
        kind, object_id, _ = place
        point = (kind, object_id, reached)
        new = point not in seen if killed.total() < kills_max else not killed[kind, reached]
        if kind and new:
            seen.add(point)
            killed[kind, reached] += 1
            raise Crash(point)

    @contextmanager
    def counted(engine: Engine) -> Iterator[Connection]:
        with transaction(engine) as connection:
            yield connection
        place[2] += 1
        passed(place[2])

    def watched(kind: str, handle: Handler) -> Handler:
        def handler(
            engine: Engine, gateway: StripeGateway, events: Sequence[StripeEvent], now: datetime, actor: str
        ) -> str:
            place[:] = [kind, events[-1].object_id, 0]
            outcome = handle(engine, gateway, events, now, actor)
            passed(None)
            return outcome

        return handler

    handlers = {kind: watched(kind, handle) for kind, handle in event_handlers.HANDLERS.items()}
    with patch.dict(event_handlers.HANDLERS, handlers), patch.object(event_handlers, "transaction", counted):
        while True:
            try:
                sync(world, gateway, poll=False)
            except Crash:
                continue
            return killed


@contextmanager
def _received(world: World, gateway: StripeGateway, twin: StripeTwin, seed: int) -> Iterator[None]:
    """A receiver to which the twin delivers badly all that happens within; at the end nothing is on its way."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"
    webhooks = twin.client().v1.webhook_endpoints
    endpoint = webhooks.create({"url": url, "enabled_events": ["*"]})
    secrets = {gateway.legal_entity: str(endpoint.secret)}
    app = build_app(world.engine, gateway, secrets, every_s=3600, poll_first=False)
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
