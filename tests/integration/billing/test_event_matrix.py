"""Each handler of events × what can go wrong with webhooks: twice, in any order, lost, late. All come to the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, Final

from billing.commands.dispute_evidence import dispute_list
from billing.commands.show_invoices import invoice_list
from billing.database import transaction
from billing.stripe import returns, returns_store
from billing.stripe.stripe_gateway import StripeGateway
from tests.billing_builders import NOVEMBER
from tests.fixtures_stripe_twin import StripeTwin, act
from tests.integration.billing.conftest import World
from tests.integration.billing.stripe_months import finalized, sync
from tests.simulation.stripe import months

Events = list[dict[str, Any]]
MISHAPS: Final[dict[str, Callable[[Events], Iterable[Events]]]] = {
    "as told": lambda events: [events],
    "twice": lambda events: [[*events, *events], events],
    "backwards": lambda events: [[event] for event in reversed(events)],
    "every second lost": lambda events: [events[::2]],
    "late, one by one": lambda events: [[], *([event] for event in events)],
}
"""How an account's events arrive: batches, after each of which they are handled. At the end all are asked for."""
STORIES: Final = ("part", "refunded", "won", "lost", "inquiry", "overpaid", "credited", "by hand")
HANDLED: Final = {
    "invoice.paid", "invoice.payment_failed", "invoice.updated", "invoice.voided", "credit_note.created",
    "charge.dispute.created", "charge.dispute.funds_withdrawn", "charge.dispute.funds_reinstated",
    "charge.dispute.closed", "charge.succeeded", "charge.failed", "charge.refunded", "refund.created",
}  # fmt: skip


def happen(twin: StripeTwin, story: str, invoice: str) -> None:
    """What payers, banks and people do to one invoice."""
    client = twin.client()
    if story == "by hand":
        client.v1.invoices.void_invoice(invoice)
        return
    if story == "part":
        act(twin, "pay", invoice=invoice, fails=True)
    if story == "credited":
        client.v1.credit_notes.create({"invoice": invoice, "amount": 100})
    amount = {"part": 700, "overpaid": 2300}.get(story)
    charge = act(twin, "pay", invoice=invoice, **({"amount": amount, "overpay": True} if amount else {}))["id"]
    if story == "refunded":
        client.v1.refunds.create({"charge": charge, "amount": 500})
    if story in ("won", "lost", "inquiry"):
        dispute = act(twin, "dispute", charge=charge, inquiry=story == "inquiry")["id"]
        act(twin, "decide", dispute=dispute, won=story != "lost")


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
    return invoice["state"], invoice["dunning"], invoice["paid"], invoice["remaining"], rows, moved, disputes


def test_whatever_becomes_of_webhooks_each_account_stands_the_same_in_the_end(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    cells = list(itertools.product(MISHAPS, STORIES))
    names = {cell: f"m{number:03d}" for number, cell in enumerate(cells)}
    sent = finalized(world, gateway, *names.values())
    sync(world, gateway)
    arriving: dict[str, list[Events]] = {}
    for mishap, story in cells:
        known = {event["id"] for event in _events(gateway)[:300]}
        happen(stripe_twin, story, sent[names[mishap, story]])
        new = [event for event in _events(gateway)[:20] if event["id"] not in known]
        arriving[names[mishap, story]] = list(MISHAPS[mishap](new[::-1]))
    for batch in itertools.zip_longest(*arriving.values(), fillvalue=[]):
        with transaction(world.engine) as connection:
            for event in itertools.chain.from_iterable(batch):
                returns_store.keep_event(connection, returns.event_of(event), received_as="webhook")
        sync(world, gateway, poll=False)
    sync(world, gateway)
    assert sync(world, gateway).waiting == 0
    found = {cell: stands(world, name) for cell, name in names.items()}
    for mishap, story in cells:
        assert found[mishap, story] == found["as told", story], (mishap, story)
    assert len({repr(found["as told", story]) for story in STORIES}) == len(STORIES), "no two stories end the same"
    kinds = {row[0] for row in world.rows("select distinct type from ledger.stripe_events")}
    assert kinds >= HANDLED, HANDLED - kinds


def _events(gateway: StripeGateway) -> Events:
    """The newest events, the newest first."""
    page = gateway.get("/v1/events", limit=100)
    return list(page["data"])


def test_in_a_random_month_with_faults_ledger_and_stripe_agree_whenever_all_is_taken_in(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    assert months.run(world, gateway, stripe_twin, seed=2, steps=60) == []
