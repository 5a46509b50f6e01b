"""What comes back from Stripe: money into the books, payments onto invoices, in any order, however often."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests
import uvicorn

from billing import money
from billing.commands import sync_stripe as sync_module
from billing.commands.decide_proposal import decide, propose
from billing.commands.dispute_evidence import dispute_list
from billing.commands.send_invoices import Outcome
from billing.commands.show_invoices import invoice_list
from billing.commands.show_returns import returns_shown
from billing.database import transaction
from billing.errors import OpeningRefused, OtherStripeAccount, StripeBusy
from billing.posting.proposal_store import ProposalKind
from billing.settings import StripeSettings
from billing.stripe import returns, returns_store, stripe_gateway
from billing.stripe.stripe_accounts import Stripe
from billing.stripe.stripe_gateway import StripeGateway
from console.stripe_receiver import PATH, build_app
from tests.billing_builders import NOW
from tests.fixtures_stripe_twin import StripeTwin, act, control, new_test_key
from tests.integration.billing.conftest import Crash, World, crash_at
from tests.integration.billing.stripe_months import books, finalized, sync
from tests.integration.billing.test_send import reconcile

SECRET = "whsec_test"


@pytest.fixture
def sent(world: World, gateway: StripeGateway) -> dict[str, str]:
    """Finalized invoices of 20.00 by account: their ids in Stripe."""
    return finalized(world, gateway, "acme", "bolt", "cord")


def test_payments_refunds_disputes_and_payouts_are_booked_from_balance_transactions_once(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    paid = {name: act(stripe_twin, "pay", invoice=invoice)["id"] for name, invoice in sent.items()}
    found = sync(world, gateway)
    assert (found.booked, found.paid, found.waiting, found.problems) == (3, 3, 0, ())
    assert {i["state"] for i in invoice_list(world.engine)} == {"paid"}
    fee = Decimal("0.88")  # 2.9 % of 20.00 and 0.30
    assert (books(world)[1100], books(world)[1010], books(world)[5100]) == (0, 3 * (20 - fee), 3 * fee)

    stripe_twin.client().v1.refunds.create({"charge": paid["acme"], "amount": 500})
    won, lost = (act(stripe_twin, "dispute", charge=paid[name])["id"] for name in ("bolt", "cord"))
    assert sync(world, gateway).booked == 3
    now = books(world)
    assert (now[4920], now[1180], now[5110]) == (5, 40, 30)
    assert differing(world, gateway) == {}
    act(stripe_twin, "decide", dispute=won, won=True)
    act(stripe_twin, "decide", dispute=lost, won=False)
    assert differing(world, gateway) == {"disputes in Stripe are in 1180": [f"{lost}/USD"]}, "not taken in yet"
    sync(world, gateway)
    assert differing(world, gateway) == {}
    now = books(world)
    assert (now[1180], now[4930], now[5110]) == (0, 20, 30)
    # What Stripe holds in reserve is no part of the balance that it shows, and still ours: 1010.
    act(stripe_twin, "reserve", amount=200)
    assert sync(world, gateway).booked == 2
    assert differing(world, gateway) == {}
    out = act(stripe_twin, "payout")["amount"]
    sync(world, gateway)
    assert (books(world)[1010], books(world)[1020]) == (2, Decimal(out) / 100)
    entries = world.count("ledger.journal_entries")
    assert sync(world, gateway).booked == 0
    assert world.count("ledger.journal_entries") == entries
    assert returns_shown(world.engine, datetime.now(UTC)).agrees
    # What two people book past Stripe is found: its balance does not have it, nor has any dispute.
    legs = [(1010, "1"), (1180, "2"), (1020, "-3")]
    entry = {"effective_at": NOW.isoformat(), "memo": "by hand", "legs": [
        {"account": code, "currency": "USD", "amount": amount, "subledger": "acme" if code == 1180 else ""}
        for code, amount in legs
    ]}  # fmt: skip
    number = propose(world.engine, ProposalKind.POST_ENTRY, "default", entry, document="d", now=NOW, actor="ada")
    decide(world.engine, number, approved=True, now=NOW, actor="bob")
    ((by_hand,),) = world.rows("select max(entry_id) from ledger.journal_entries")
    assert differing(world, gateway) == {
        "Stripe's balance is booked": ["default/USD"], "disputes in Stripe are in 1180": [f"entry {by_hand}/USD"],
    }  # fmt: skip


def differing(world: World, gateway: Stripe) -> dict[str, list[str]]:
    """What reconciliation finds of Stripe's money, by check."""
    names = ("money in Stripe is booked once", "Stripe's balance is booked", "disputes in Stripe are in 1180")
    checks = [check for check in reconcile(world, gateway) if check.name in names]
    assert len(checks) == len(names)
    return {check.name: [each.key for each in check.differences] for check in checks if check.differences}


def test_what_our_own_requests_caused_is_not_asked_for_again_and_all_that_waits_is_handled(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_module, "AT_ONCE", 2)
    before = gateway.limiter.calls["GET /v1/invoices/:id"]
    found = sync(world, gateway)
    # Of each account: customer made, invoice made, filled, numbered, finalized.
    assert (found.events, found.waiting) == (15, 0)
    assert gateway.limiter.calls["GET /v1/invoices/:id"] == before
    for invoice in sent.values():
        act(stripe_twin, "pay", invoice=invoice)
    assert sync(world, gateway).paid == 3
    assert gateway.limiter.calls["GET /v1/invoices/:id"] == before + 3


def test_lists_are_read_page_by_page_and_on_from_where_that_was_broken_off(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripe_gateway, "PAGE", 2)
    listing = "/v1/balance_transactions"
    for invoice in sent.values():
        act(stripe_twin, "pay", invoice=invoice)
    control(stripe_twin, "faults", kind="rate_limit_429", key=stripe_twin.key, method="GET", path=listing, skip=1)
    with pytest.raises(StripeBusy):
        sync(world, gateway)
    assert (world.count("ledger.stripe_balance_transactions"), books(world)[1100]) == (2, 20)
    assert returns_shown(world.engine, datetime.now(UTC)).money_read_to is None, "it is not read to its end"
    # It goes on with the second page, and then with what is new since.
    charge = stripe_twin.client().v1.charges.list().data[0].id
    stripe_twin.client().v1.refunds.create({"charge": charge, "amount": 500})
    asked = gateway.limiter.calls[f"GET {listing}"]
    assert (sync(world, gateway).booked, gateway.limiter.calls[f"GET {listing}"] - asked) == (2, 1 + 2)
    (newest,) = stripe_twin.client().v1.balance_transactions.list({"limit": 1}).data
    shown = returns_shown(world.engine, datetime.now(UTC))
    assert (shown.money_read_to, shown.agrees) == (datetime.fromtimestamp(newest.created, UTC), True)
    # A person lets them be read again from a moment on: what is there is not taken in twice.
    asked = gateway.limiter.calls[f"GET {listing}"]
    assert sync(world, gateway, since=datetime(2020, 1, 1, tzinfo=UTC), actor="ada").booked == 0
    assert gateway.limiter.calls[f"GET {listing}"] - asked == 2, "each page of it"
    # Another account's lists would move the cursors past what is not read of this one's.
    other = new_test_key()
    with pytest.raises(OtherStripeAccount, match=r"follow Stripe's account acct_.* set a key of the former"):
        sync(world, StripeGateway(StripeSettings(other, stripe_twin.url)))
    # Where it was broken off is not there any more: all of it is read again.
    world.execute("insert into ledger.stripe_passes (name, page_after, newest) values ('events', 'evt_gone', now())")
    assert sync(world, gateway).waiting == 0
    assert world.count("ledger.stripe_passes") == 0


def test_a_partial_payment_lowers_what_is_owed_and_the_rest_makes_it_paid(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    act(stripe_twin, "pay", invoice=sent["acme"], amount=700)
    act(stripe_twin, "pay", invoice=sent["bolt"], fails=True)
    assert sync(world, gateway).paid == 0
    assert books(world)[1100] == 53
    act(stripe_twin, "pay", invoice=sent["acme"])
    assert sync(world, gateway).paid == 1
    assert books(world)[1100] == 40
    states = {i["billing_account"]: i["state"] for i in invoice_list(world.engine)}
    assert states == {"acme": "paid", "bolt": "finalized", "cord": "finalized"}


def test_what_somebody_does_by_hand_in_stripe_is_told_and_never_taken_over(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    client = stripe_twin.client()
    client.v1.invoices.void_invoice(sent["acme"])
    client.v1.invoices.pay(sent["bolt"], {"paid_out_of_band": True})
    foreign = client.v1.invoices.create({"customer": client.v1.customers.create({"name": "x"}).id})
    client.v1.invoices.finalize_invoice(foreign.id)
    found = sync(world, gateway)
    assert sorted(problem.partition(": ")[0] for problem in found.problems) == sorted([sent["acme"], sent["bolt"]])
    assert any("made void in Stripe by hand" in problem for problem in found.problems)
    assert {i["state"] for i in invoice_list(world.engine)} == {"finalized"}
    assert books(world)[1100] == 60


def changed_in(folder: Path, object_id: str, **changed: Any) -> None:
    """Change an object in the twin's own file; None takes a field away."""
    with closing(sqlite3.connect(folder / "twin.sqlite3", timeout=30)) as twin, twin:
        ((body,),) = twin.execute("select body from objects where id = ?", (object_id,)).fetchall()
        values = {name: value for name, value in (json.loads(body) | changed).items() if value is not None}
        twin.execute("update objects set body = ? where id = ?", (json.dumps(values), object_id))


def test_entries_that_cannot_be_read_wait_by_themselves_and_the_lists_are_read_on(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str], stripe_twin_data: Path
) -> None:
    for invoice in sent.values():
        act(stripe_twin, "pay", invoice=invoice)
    client = stripe_twin.client()
    moved = client.v1.balance_transactions.list().data[1]
    (paid, *_) = (e for e in client.v1.events.list().data if e.type == "invoice.paid")
    changed_in(stripe_twin_data, moved.id, reporting_category=None)
    changed_in(stripe_twin_data, paid.id, data=None)
    found = sync(world, gateway)
    assert (found.booked, found.waiting, len(found.problems)) == (2, 1, 2)
    assert found.problems[0].startswith(f"{moved.id} of ")
    assert found.problems[1].startswith(f"{paid.id}: this is no event of Stripe")
    shown = returns_shown(world.engine, datetime.now(UTC))
    assert shown.events_read_to is not None, "to its end"
    (told,) = [check for check in reconcile(world, gateway) if check.name == "money in Stripe is booked once"]
    assert [each.key for each in told.differences] == [f"default/{moved.id}"]
    # It is tried again by each run, by its id.
    changed_in(stripe_twin_data, moved.id, reporting_category="charge")
    changed_in(stripe_twin_data, paid.id, data=json.loads(str(paid))["data"])
    found = sync(world, gateway)
    assert (found.booked, found.waiting, found.problems) == (1, 0, ())
    assert {i["state"] for i in invoice_list(world.engine)} == {"paid"}


def paid_by_a_stranger(twin: StripeTwin, currency: str, **settled: str) -> str:
    """An invoice of 9.00 that somebody made in Stripe by hand, to a customer who is none of ours; the charge."""
    client = twin.client()
    customer = client.v1.customers.create({"name": "x"}).id
    invoice = client.v1.invoices.create({"customer": customer, "currency": currency})
    client.v1.invoices.add_lines(invoice.id, {"lines": [{"amount": 900, "description": "by hand"}]})
    client.v1.invoices.finalize_invoice(invoice.id)
    return str(act(twin, "pay", invoice=invoice.id, **settled)["id"])


def test_money_of_nobody_waits_in_suspense_and_what_cannot_be_taken_in_holds_up_nothing_else(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    charge = paid_by_a_stranger(stripe_twin, "hkd")
    paid_by_a_stranger(stripe_twin, "hkd", settle="usd", rate="0.13")
    lost = act(stripe_twin, "dispute", charge=charge)["id"]
    act(stripe_twin, "decide", dispute=lost, won=False)
    paid_by_a_stranger(stripe_twin, "usd")
    for kind, gone in (("charge.dispute.created", "dp_gone"), ("credit_note.created", "cn_gone")):
        event = {"id": f"evt_{gone}", "type": kind, "created": 1, "data": {"object": {"id": gone}}}
        with transaction(world.engine) as connection:
            returns_store.keep_event(connection, returns.event_of(event), received_as="webhook")
    act(stripe_twin, "pay", invoice=sent["acme"])
    found = sync(world, gateway)
    assert (found.paid, found.booked) == (1, 3)
    told = {problem.partition(": ")[0]: problem for problem in found.problems}
    assert {name for name in told if "_gone" in name} == {"cn_gone", "dp_gone"}
    assert "of it cannot be booked" in told[lost]
    assert (found.waiting, len(told)) == (3, 5), "the dispute in HKD waits, and two movements of money"
    assert [(d["status"], d["amount"], d["stripe_amount"]) for d in dispute_list(world.engine)] == [("lost", None, 900)]
    assert books(world)[1090] == Decimal("-10.17"), "9.00, and 9.00 of HKD as it was settled"
    assert "Stripe's balance is booked" not in differing(world, gateway), "what nobody knows ends no comparison"
    shown = returns_shown(world.engine, datetime.now(UTC))
    assert [problem.partition(" ")[2] for problem in shown.problems][:2] == ["is not booked"] * 2
    # What is listed is read on all the same: what cannot be booked is asked for by itself.
    (newest,) = stripe_twin.client().v1.balance_transactions.list({"limit": 1}).data
    assert shown.money_read_to == datetime.fromtimestamp(newest.created, UTC)
    monkeypatch.setattr(sync_module, "OVERLAP", timedelta(seconds=-1))
    again = sync(world, gateway)
    assert gateway.limiter.calls["GET /v1/balance_transactions/:id"] == 2
    assert (again.waiting, {lost} & {problem.partition(": ")[0] for problem in again.problems}) == (3, {lost})
    # Once the currency has its row, all of it is taken in.
    row = money.Currency("HKD", date(2020, 1, 1), Decimal("0.01"), Decimal("0.01"), 1, 400)
    monkeypatch.setattr(money, "CURRENCIES", (*money.CURRENCIES, row))
    world.as_owner("insert into ledger.currencies values ('HKD', '2020-01-01', 0.01)")
    found = sync(world, gateway)
    assert (found.booked, found.waiting, found.problems) == (2, 0, ())
    assert dispute_list(world.engine)[0]["amount"] == "9"


def test_what_happened_before_stripes_events_reach_back_is_looked_at_where_a_person_reads_again_from_then(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, stripe_twin_data: Path, sent: dict[str, str]
) -> None:
    sync(world, gateway)
    act(stripe_twin, "pay", invoice=sent["acme"])
    note = stripe_twin.client().v1.credit_notes.create({"invoice": sent["bolt"], "amount": 100})
    with closing(sqlite3.connect(stripe_twin_data / "twin.sqlite3", timeout=30)) as twin, twin:
        for name in (sent["acme"], note.id):
            twin.execute("update objects set deleted = 1 where type = 'event' and instr(body, ?)", (name,))
    found = sync(world, gateway)
    assert (found.booked, found.paid, found.problems) == (1, 0, ()), "its money came, and no word of what for"
    found = sync(world, gateway, since=datetime.now(UTC) - timedelta(days=29))
    assert (found.paid, found.problems) == (0, ())
    long_ago = datetime.now(UTC) - timedelta(days=40)
    found = sync(world, gateway, since=long_ago)
    assert (found.paid, [problem.partition(":")[0] for problem in found.problems]) == (1, [note.id])
    assert sync(world, gateway, since=long_ago).paid == 0
    assert {i["state"] for i in invoice_list(world.engine) if i["stripe_invoice_id"] == sent["acme"]} == {"paid"}


def test_what_moved_before_the_opening_is_one_sum_that_two_people_post(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, stripe_twin_data: Path, sent: dict[str, str]
) -> None:
    charges = [paid_by_a_stranger(stripe_twin, "usd") for _ in range(2)]
    lost = act(stripe_twin, "dispute", charge=charges[0])["id"]
    act(stripe_twin, "decide", dispute=lost, won=False)
    before = stripe_twin.client().v1.balance_transactions.list({"limit": 100}).data
    for name in (lost, *(moved.id for moved in before)):
        changed_in(stripe_twin_data, name, created=1_700_000_000)
    act(stripe_twin, "pay", invoice=sent["acme"])
    opening = datetime(2024, 1, 1, tzinfo=UTC)
    found = sync(world, gateway, opening=opening)
    assert (found.booked, found.problems) == (4, ())
    now, sum_before = books(world), Decimal(sum(moved.net for moved in before)) / 100
    assert (now[1090], now[1010], now[5100]) == (-sum_before, sum_before + 20 - Decimal("0.88"), Decimal("0.88"))
    assert not {1180, 4930, 5110} & {code for code, amount in now.items() if amount}
    assert differing(world, gateway) == {}
    (told,) = returns_shown(world.engine, datetime.now(UTC)).problems
    assert told.startswith(f"opening_20240101: {-sum_before} USD of default is in 1090")
    assert sync(world, gateway, opening=opening).booked == 0
    with pytest.raises(OpeningRefused, match="and once"):
        sync(world, gateway, opening=opening + timedelta(days=1))
    legs = [(1090, sum_before), (1020, -sum_before)]
    entry = {"effective_at": NOW.isoformat(), "memo": "opening_20240101 of the books before", "legs": [
        {"account": code, "currency": "USD", "amount": str(amount), "subledger": ""} for code, amount in legs
    ]}  # fmt: skip
    number = propose(world.engine, ProposalKind.POST_ENTRY, "default", entry, document="d", now=NOW, actor="ada")
    decide(world.engine, number, approved=True, now=NOW, actor="bob")
    assert returns_shown(world.engine, datetime.now(UTC)).problems == ()


def test_a_cash_balance_is_unapplied_cash_beside_stripes_balance_until_it_is_applied(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    client = stripe_twin.client()
    customer = str(client.v1.invoices.retrieve(sent["acme"]).customer)
    stranger = client.v1.customers.create({"name": "x"}).id
    client.v1.customers.cash_balance.update(customer, {"settings": {"reconciliation_mode": "manual"}})

    def fund(of: str, amount: int) -> None:
        client.v1.test_helpers.customers.fund_cash_balance(of, {"amount": amount, "currency": "usd"})

    def cash(problems: int = 0) -> tuple[Decimal, ...]:
        assert sync(world, gateway).problems == ()
        assert len(returns_shown(world.engine, datetime.now(UTC)).problems) == problems
        return tuple(books(world).get(code, Decimal(0)) for code in (1012, 2150, 1100))

    fund(customer, 1500)
    fund(customer, 1000)
    fund(stranger, 400)
    assert cash() == (25, -25, 60)
    shown = returns_shown(world.engine, datetime.now(UTC)).cash
    assert shown == ({"billing_account": "acme", "currency": "USD", "amount": "25"},)
    act(stripe_twin, "apply_cash", invoice=sent["acme"])
    assert cash() == (5, -5, 40)
    states = {i["billing_account"]: i["state"] for i in invoice_list(world.engine)}
    assert states == {"acme": "paid", "bolt": "finalized", "cord": "finalized"}
    act(stripe_twin, "return_cash", customer=customer, amount=100)
    assert cash() == (4, -4, 40)
    for of in (customer, stranger):
        act(stripe_twin, "transfer_cash", customer=of)
    assert cash(problems=1) == (0, -4, 40)
    assert books(world)[1090] == -4, "of a customer whom we do not know"
    (told,) = returns_shown(world.engine, datetime.now(UTC)).problems
    (unknown,) = [each for each in reconcile(world, gateway) if each.name == "money is somebody's"]
    (found,) = unknown.differences
    txn = found.key.split("/")[1]
    assert txn.startswith("txn_")
    assert txn in told
    entry = {"effective_at": NOW.isoformat(), "memo": f"a stranger's, kept: {txn}", "legs": [
        {"account": 1090, "currency": "USD", "amount": "4", "subledger": ""},
        {"account": 4920, "currency": "USD", "amount": "-4", "subledger": ""},
    ]}  # fmt: skip
    number = propose(world.engine, ProposalKind.POST_ENTRY, "default", entry, document="d", now=NOW, actor="ada")
    assert len(returns_shown(world.engine, datetime.now(UTC)).problems) == 1, "one person is not enough"
    decide(world.engine, number, approved=True, now=NOW, actor="bob")
    assert [each.agrees for each in reconcile(world, gateway) if each.name == unknown.name] == [True]
    # What is not as Stripe says waits, is told, and is tried again.
    fund(customer, 300)
    fund(customer, 500)
    with pytest.MonkeyPatch.context() as patch:
        pages = returns.cash_moves
        patch.setattr(returns, "cash_moves", lambda *of: (page[:1] for page in pages(*of)))
        told = sync(world, gateway)
        assert (told.waiting, {problem.partition(": ")[2] for problem in told.problems}) == (
            2, {"acme has 8 USD of cash in Stripe, and 5 in 1012"},
        )  # fmt: skip
    assert cash() == (8, -12, 40)


def signed(event: dict[str, Any], *, secret: str = SECRET, at: datetime | None = None) -> tuple[bytes, str]:
    payload = json.dumps(event).encode()
    time = str(int((at or datetime.now(UTC)).timestamp()))
    mac = hmac.new(secret.encode(), time.encode() + b"." + payload, hashlib.sha256).hexdigest()
    return payload, f"t={time},v1={mac},v0=ff"


@contextmanager
def receiver(world: World, gateway: StripeGateway) -> Iterator[Callable[[bytes, str], int]]:
    """A receiver over HTTP; gives a function that posts a body with its signature, and returns the status."""
    app = build_app(world.engine, gateway, {gateway.legal_entity: SECRET}, every_s=3600)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}{PATH}"

    def post(payload: bytes, header: str) -> int:
        with requests.Session() as session:
            session.trust_env = False
            return session.post(url, data=payload, headers={"stripe-signature": header}, timeout=60).status_code

    try:
        yield post
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def test_webhooks_in_any_order_repeated_or_lost_come_to_the_same(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    for invoice in sent.values():
        act(stripe_twin, "pay", invoice=invoice)
    status, _, found = stripe_twin.call("GET", "/v1/events?limit=100")
    assert status == 200
    chance = random.Random(3)
    events = [event for event in found["data"] for _ in range(chance.choice([0, 1, 2]))]  # lost, once, twice
    chance.shuffle(events)
    with receiver(world, gateway) as post:
        assert [post(*signed(event)) for event in events] == [200] * len(events)
    assert world.count("ledger.stripe_events") == len(found["data"]), "what was lost was asked for"
    assert sync(world, gateway).waiting == 0
    assert {i["state"] for i in invoice_list(world.engine)} == {"paid"}
    assert world.count("ledger.journal_entries") == 3 + 3 + 3  # accrued, invoiced, paid
    assert world.rows("select count(*) from ledger.stripe_events where handled_at is null") == [(0,)]


def test_a_webhook_that_is_not_stripes_is_refused_and_not_kept(world: World, gateway: StripeGateway) -> None:
    event = {"id": "evt_1", "type": "invoice.paid", "created": 1, "data": {"object": {"id": "in_1"}}}
    now = datetime.now(UTC)
    with receiver(world, gateway) as post:
        for payload, header in (
            signed(event, secret="whsec_other"),
            signed(event, at=now - timedelta(minutes=6)),
            (signed(event)[0] + b" ", signed(event)[1]),
            (b"{}", ""),
            (b"no", "t=1,v1=00"),
            signed({"id": "evt_1"}),
        ):
            assert post(payload, header) == 400
    assert world.count("ledger.stripe_events") == 0


def test_a_payment_told_before_we_have_recorded_the_invoice_waits_for_it(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=10_000)
    world.rate()
    world.draft()
    with pytest.raises(Crash):
        world.send(gateway, checkpoint=crash_at("unrecorded finalize 0"))
    (invoice,) = stripe_twin.client().v1.invoices.list().data
    act(stripe_twin, "pay", invoice=invoice.id)
    found = sync(world, gateway)
    assert (found.booked, found.paid) == (1, 0)
    assert found.waiting > 0
    (done,) = world.send(gateway).invoices
    assert done.outcome is Outcome.FINALIZED
    assert sync(world, gateway).paid == 1
    assert [i["state"] for i in invoice_list(world.engine)] == ["paid"]


def test_an_event_stays_as_it_came(world: World) -> None:
    with transaction(world.engine) as connection:
        assert returns_store.booked(connection, [f"txn_{n}" for n in range(70_000)]) == set()
    about = {"id": "evt_1", "type": "x.y", "created": 1, "data": {"object": {"id": "z"}}, "more": ["\u00e9", 1.50]}
    payload, header = signed(about)
    event = returns.signed_event(payload, header, SECRET, datetime.now(UTC))
    assert event.body.encode() == payload, "blanks, escapes and all"
    with transaction(world.engine) as connection:
        assert returns_store.keep_event(connection, event, received_as="webhook")
        assert not returns_store.keep_event(connection, event, received_as="poll")
        assert [e.body for e in returns_store.unhandled(connection, 10)] == [event.body]
    with pytest.raises(Exception, match=r"permission denied|stays as it came"):
        world.execute("update ledger.stripe_events set body = ''")
