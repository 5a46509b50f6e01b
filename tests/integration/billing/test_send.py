"""Sending invoices with the real SDK to the twin: what arrives, what stays, what is parked, what is left for later."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
import stripe

from billing.commands.correct_invoice import credit_invoice
from billing.commands.keep_accounts import add_account, add_entity
from billing.commands.send_invoices import InvoicesSent, Outcome
from billing.commands.show_invoices import invoice_document, invoice_list
from billing.commands.trial_balance import trial_balance
from billing.database import connection, transaction
from billing.errors import PartyRefused, StripeAccessRefused
from billing.invoicing.sending import Operation, Request
from billing.invoicing.stripe_lines import LINES_MAX
from billing.settings import StripeSettings
from billing.stripe import stripe_gateway, stripe_request_store
from billing.stripe.rate_limits import Limits
from billing.stripe.sender_lock import lock_account, unlock_account
from billing.stripe.stripe_accounts import Stripe
from billing.stripe.stripe_gateway import StripeGateway, StripeInvoice
from reconciliation.agreement import Check
from reconciliation.period import reconcile_period
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, PLAN
from tests.fixtures_stripe_twin import StripeTwin, control
from tests.integration.billing.conftest import Crash, World, all_done, crash_at
from tests.integration.billing.stripe_months import sync

WITHIN_S = 60.0
NOWHERE = StripeGateway(StripeSettings("sk_test_1", "http://127.0.0.1:9"))


def drafted(world: World, **tokens: int) -> None:
    """Accounts with a draft over so many output tokens at 0.002."""
    world.customers(*tokens)
    for tenant, count in tokens.items():
        world.use(tenant, output_tokens=count)
    world.rate()
    world.draft()


def in_stripe(twin: StripeTwin) -> list[stripe.Invoice]:
    return list(twin.client().v1.invoices.list({"limit": 100}).auto_paging_iter())


def outcomes(sent: InvoicesSent) -> dict[str, Outcome]:
    return {invoice.billing_account: invoice.outcome for invoice in sent.invoices}


def reconcile(world: World, gateway: Stripe) -> tuple[Check, ...]:
    return reconcile_period(world.engine, period=OCTOBER, now=NOW, gateway=gateway, log=None).checks


def balance(world: World) -> dict[int, Decimal]:
    return {row.code: row.debit - row.credit for row in trial_balance(world.engine).rows}


def test_an_invoice_arrives_finalized_with_our_number_lines_and_total(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    world.customers("acme")
    world.use("acme", input_tokens=1000, cache_hit_tokens=400, output_tokens=2502)
    world.rate()
    world.draft()
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.changed, sent.number, sent.amount_due_minor) == (
        Outcome.FINALIZED,
        True,
        "INV-000001",
        580,
    )
    (invoice,) = in_stripe(stripe_twin)
    assert (invoice.id, invoice.status, invoice.number, invoice.total, invoice.amount_due, invoice.currency) == (
        sent.stripe_invoice_id, "open", "INV-000001", 580, 580, "usd",
    )  # fmt: skip
    assert (invoice.auto_advance, invoice.collection_method, invoice.starting_balance) == (False, "send_invoice", 0)
    assert invoice.metadata is not None
    assert invoice.metadata["billing_account"] == "acme"
    lines = {line.metadata["line_key"]: line.amount for line in invoice.lines.data}
    assert lines == {"cached": 20, "in": 60, "out": 500}
    document = invoice_document(world.engine, "INV-000001")
    assert (document["state"], document["issue_date"], document["due_date"]) == (
        "finalized",
        "2026-12-02",
        "2027-01-01",
    )
    assert document["stripe_invoice_id"] == invoice.id
    assert document["hosted_invoice_url"] == invoice.hosted_invoice_url is not None
    (customer,) = stripe_twin.client().v1.customers.list().data
    assert (customer.name, document["stripe_customer_id"]) == ("acme", customer.id)


def test_sending_books_the_receivable_clears_what_was_unbilled_and_keeps_the_residue(
    world: World, gateway: StripeGateway
) -> None:
    drafted(world, acme=1001, bolt=1003)  # 2.002 → 2.00, 2.006 → 2.01
    assert balance(world) == {1150: Decimal("4.008"), 4000: Decimal("-4.008")}
    world.send(gateway)
    assert balance(world) == {1100: Decimal("4.01"), 1150: 0, 4000: Decimal("-4.008"), 5900: Decimal("-0.002")}
    assert trial_balance(world.engine).balanced


def test_zero_and_below_the_minimum_stay_local_and_are_settled_in_the_books(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, zero=2, small=245, least=250)  # 0.004 → 0.00, 0.49 < 0.50, 0.50
    sent = world.send(gateway)
    assert outcomes(sent) == {"zero": Outcome.ZERO, "small": Outcome.CARRIED, "least": Outcome.FINALIZED}
    assert all_done(sent)
    assert [invoice.total for invoice in in_stripe(stripe_twin)] == [50]
    assert balance(world) == {1100: Decimal("0.99"), 1150: 0, 4000: Decimal("-0.994"), 5900: Decimal("0.004")}
    documents = {d["billing_account"]: d for d in invoice_list(world.engine)}
    assert documents["zero"]["number"] is None
    assert documents["small"]["number"] is not None
    assert documents["small"]["state"] == "carried_below_minimum"
    assert "below the minimum" in documents["small"]["reason_not_in_stripe"]
    assert all_done(world.send(gateway))
    assert world.count("ledger.invoice_transitions") == 7  # three drafts, zero, carried, approved, finalized


def test_sending_again_sends_nothing(world: World, gateway: StripeGateway, stripe_twin: StripeTwin) -> None:
    drafted(world, acme=1000, bolt=2000)
    first = world.send(gateway)
    counts = [world.count(f"ledger.{t}") for t in ("stripe_requests", "journal_entries", "invoice_transitions")]
    again = world.send(NOWHERE)  # not even asked
    assert [(i.number, i.outcome, i.changed) for i in again.invoices] == [
        (i.number, Outcome.FINALIZED, False) for i in first.invoices
    ]
    assert counts == [world.count(f"ledger.{t}") for t in ("stripe_requests", "journal_entries", "invoice_transitions")]
    assert len(in_stripe(stripe_twin)) == 2


def test_a_customer_is_made_once_for_all_invoices_of_an_account_and_not_without_an_email(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    world.tenant("acme")
    world.plan()
    world.subscribe("acme", email="")
    world.use("acme", output_tokens=1000)
    world.rate()
    world.draft()
    (parked,) = world.send(gateway).invoices
    assert parked.outcome is Outcome.PARKED
    assert "`tollbook account add acme --email" in str(parked.reason)
    assert stripe_twin.client().v1.customers.list().data == []
    assert world.count("ledger.stripe_requests") == 0, "nothing was going to be sent"
    party = {"name": "Acme Inc", "street": "1 Main St", "country": "US", "tax_id": "12-3456789"}
    add_account(world.engine, name="acme", actor="ada", values={"email": "ap@acme.example", **party})
    world.send(gateway)
    client = stripe_twin.client()
    (customer,) = client.v1.customers.list().data
    assert (customer.email, customer.name) == ("ap@acme.example", "Acme Inc")
    assert customer.address is not None
    assert (customer.address.line1, customer.address.country) == ("1 Main St", "US")
    world.use("acme", at=NOVEMBER.start, output_tokens=500)
    world.rate(NOVEMBER)
    world.draft(NOVEMBER)
    # What changed is told once, before the invoice is final and has it.
    add_account(world.engine, name="acme", actor="ada", values={"email": "new@acme.example", "name": "Acme Ltd"})
    with pytest.raises(Crash):
        world.send(gateway, NOVEMBER, checkpoint=crash_at("unrecorded customer_update 0"))
    assert outcomes(world.send(gateway, NOVEMBER)) == {"acme": Outcome.FINALIZED}
    assert [(invoice.customer_email, invoice.customer_name) for invoice in in_stripe(stripe_twin)] == [
        ("new@acme.example", "Acme Ltd"), ("ap@acme.example", "Acme Inc"),
    ]  # fmt: skip
    assert [[(f.name, f.value) for f in i.custom_fields or ()] for i in in_stripe(stripe_twin)] == [
        [("Tax ID", "12-3456789")]
    ] * 2
    told = "select step, reply_id is not null from ledger.stripe_requests where step like 'customer%' order by 1"
    assert world.rows(told) == [("customer", True), ("customer_update", True)]
    assert len(client.v1.customers.list().data) == 1
    assert sorted(str(invoice.number) for invoice in in_stripe(stripe_twin)) == ["INV-000001", "INV-000002"]
    # What somebody changes of it in Stripe by hand is found, and stays.
    client.v1.customers.update(customer.id, {"email": "else@where.example", "address": ""})
    (check,) = [each for each in reconcile(world, gateway) if each.name == "customers in Stripe are explained"]
    assert [(d.key, d.left, d.right) for d in check.differences] == [
        (f"acme/{customer.id}/address", "1 Main St, US", ""),
        (f"acme/{customer.id}/email", "new@acme.example", "else@where.example"),
    ]


def test_numbers_have_no_gaps_per_legal_entity_however_many_are_released_at_once(
    world: World, gateway: StripeGateway
) -> None:
    add_entity(world.engine, name="eu", actor="ada", currency="USD", values={})
    for name, taken in (("INV", "INV-"), ("cn", "CN-"), ("eu-cn", "EU-CN-")):
        with pytest.raises(PartyRefused, match=f"would begin with {taken}"):
            add_entity(world.engine, name=name, actor="ada", currency="USD", values={})
    names = [f"t{n:02d}" for n in range(20)]
    world.tenant(*names)
    world.plan()
    for number, name in enumerate(names):
        world.subscribe(name, legal_entity="eu" if number % 2 else "default")
        world.use(name, output_tokens=1000 + number)
    world.rate()
    world.draft()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda half: world.send(gateway, billing_accounts=half), (names[:10], names[10:])))
    written = "select legal_entity, series, number, written from ledger.issued_numbers order by 1, 2 desc, 3"
    invoices = [
        (entity, "invoice", n, f"{prefix}-{n:06d}")
        for entity, prefix in (("default", "INV"), ("eu", "EU"))
        for n in range(1, 11)
    ]
    assert world.rows(written) == invoices
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda of: credited(world, of), ("INV-000001", "EU-000001", "INV-000002", "EU-000002")))
    assert [row[3] for row in world.rows(written) if row[1] == "credit_note"] == [
        "CN-000001", "CN-000002", "EU-CN-000001", "EU-CN-000002",
    ]  # fmt: skip
    # Each entity's books hold its own documents alone.
    for entity, expected in (("default", 2 * sum(range(1000, 1020, 2))), ("eu", 2 * sum(range(1001, 1020, 2)))):
        balances = {row.code: row.debit - row.credit for row in trial_balance(world.engine, legal_entity=entity).rows}
        assert balances[4000] == -Decimal(expected) / 1000


def credited(world: World, reference: str) -> None:
    credit_invoice(world.engine, reference, {"std": Decimal(1)}, reason="late", now=NOW, actor="ada")


def test_two_senders_at_once_send_each_invoice_once(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    names = [f"t{n}" for n in range(6)]
    drafted(world, **dict.fromkeys(names, 1000))
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(world.send, gateway) for _ in range(3)]
        seen = Counter(i.outcome for run in runs for i in run.result().invoices if i.changed)
    final = world.send(gateway)
    assert seen[Outcome.FINALIZED] + sum(i.changed for i in final.invoices) >= 6
    assert set(outcomes(final).values()) == {Outcome.FINALIZED}
    assert len(in_stripe(stripe_twin)) == 6
    assert all(invoice.status == "open" for invoice in in_stripe(stripe_twin))
    assert world.count("ledger.issued_numbers") == 6


def test_an_account_that_another_sender_is_at_is_left_to_it(world: World, gateway: StripeGateway) -> None:
    drafted(world, acme=1000)
    with connection(world.engine) as other:
        assert lock_account(other, "acme")
        (left,) = world.send(gateway).invoices
        assert (left.outcome, left.reason) == (Outcome.LATER, "another sender is at it")
        unlock_account(other, "acme")
    assert outcomes(world.send(gateway)) == {"acme": Outcome.FINALIZED}


def test_without_stripe_everything_is_left_for_later_and_nothing_is_lost(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, **{f"t{n:02d}": 1000 for n in range(30)})
    sent = world.send(NOWHERE, pause_s=0.001)
    assert {i.outcome for i in sent.invoices} == {Outcome.LATER}
    assert not all_done(sent)
    assert any("does not answer" in str(i.reason) for i in sent.invoices)
    assert {i["state"] for i in invoice_list(world.engine)} == {"draft"}
    assert set(outcomes(world.send(gateway)).values()) == {Outcome.FINALIZED}
    assert len(in_stripe(stripe_twin)) == 30


def test_a_key_that_stripe_does_not_accept_stops_everything(world: World, stripe_twin: StripeTwin) -> None:
    drafted(world, acme=1000)
    with pytest.raises(StripeAccessRefused, match="Stripe"):
        world.send(StripeGateway(StripeSettings("nonsense", stripe_twin.url)))


def edit(twin: StripeTwin, change: str) -> None:
    """Somebody edits the draft in Stripe by hand."""
    client = twin.client()
    (draft,) = in_stripe(twin)
    if change == "line":
        client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 5, "description": "by hand"}]})
    elif change == "metadata":
        client.v1.invoices.update(draft.id, {"metadata": {"lines_hash": "0"}})
    else:
        client.v1.invoices.update(draft.id, {"auto_advance": True})


@pytest.mark.parametrize(
    ("when", "change", "told", "shown"),
    [
        ("draft_created", "line", r"line \(without key\) 5 usd is only in Stripe", ("draft", None)),
        ("draft_created", "metadata", "metadata lines_hash", ("draft", None)),
        ("draft_created", "advance", "auto_advance is True, not False", ("draft", None)),
        ("compared", "line", "changed after it was approved: .* 5 usd is only", ("approved", "INV-000001")),
    ],
)
def test_a_draft_edited_by_hand_is_parked_with_the_difference_and_stops_nobody_else(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, when: str, change: str, told: str, shown: object
) -> None:
    drafted(world, acme=1000)

    def checkpoint(_: object, name: str) -> None:
        if name == f"stored {when}":
            edit(stripe_twin, change)

    (sent,) = world.send(gateway, checkpoint=checkpoint, billing_accounts=["acme"]).invoices
    assert sent.outcome is Outcome.PARKED
    assert sent.reason is not None
    assert re.search(told, sent.reason)
    (listed,) = invoice_list(world.engine)
    assert ((listed["state"], listed["number"]), listed["parked_because"]) == (shown, sent.reason)
    assert in_stripe(stripe_twin)[0].status == "draft"
    world.tenant("bolt")
    world.subscribe("bolt")
    world.use("bolt", output_tokens=1000)
    world.rate()
    world.draft()
    assert outcomes(world.send(gateway)) == {"acme": Outcome.PARKED, "bolt": Outcome.FINALIZED}


def test_what_a_person_has_mended_goes_on_where_it_stood(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, acme=1000)

    def checkpoint(_: object, name: str) -> None:
        if name == "stored draft_created":
            edit(stripe_twin, "advance")

    assert not all_done(world.send(gateway, checkpoint=checkpoint))
    stripe_twin.client().v1.invoices.update(in_stripe(stripe_twin)[0].id, {"auto_advance": False})
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.number) == (Outcome.FINALIZED, "INV-000001")
    assert invoice_document(world.engine, "INV-000001")["parked_because"] is None


def test_usage_that_came_after_the_draft_is_drawn_up_before_anything_is_sent(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, acme=1000)
    world.use("acme", output_tokens=500)
    world.rate()
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.reason) == (
        Outcome.PARKED,
        "the draft is over 2 for 2026-10, rated are 3 USD: draw the invoices up again",
    )
    assert in_stripe(stripe_twin) == []
    world.draft()
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.amount_due_minor) == (Outcome.FINALIZED, 300)


def test_a_tenant_with_unpriced_usage_is_not_sent(world: World, gateway: StripeGateway) -> None:
    drafted(world, acme=1000)
    world.execute("update ledger.tenant_periods set problem = 'no price'")
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.reason) == (Outcome.PARKED, "tenant acme: no price")


def plan_with_models(count: int) -> str:
    charges = "\n".join(
        f"      - {{key: m{n:03d}, model: per_unit, metric: output, where: {{model: m{n:03d}}}, price: '0.01'}}"
        for n in range(count)
    )
    return f"plan: p\ncurrency: USD\nversions:\n  - version: v1\n    from: 2026-01-01\n    charges:\n{charges}\n"


def with_lines(world: World, count: int) -> None:
    world.tenant("acme")
    world.plan(plan_with_models(count))
    world.subscribe("acme")
    for n in range(count):
        world.use("acme", model=f"m{n:03d}", output_tokens=n + 1)
    world.rate()
    world.draft()


def test_many_lines_go_in_several_requests_and_are_all_compared(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    with_lines(world, LINES_MAX)
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.amount_due_minor) == (Outcome.FINALIZED, LINES_MAX * (LINES_MAX + 1) // 2)
    (invoice,) = in_stripe(stripe_twin)
    found, lines = gateway.invoice(invoice.id)
    assert found.lines is None, "more than Stripe puts into the invoice itself"
    assert {line.line_key: line.amount for line in lines} == {f"m{n:03d}": n + 1 for n in range(LINES_MAX)}


def test_of_more_lines_than_stripe_takes_the_smallest_are_one(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    with_lines(world, LINES_MAX + 5)
    (sent,) = world.send(gateway).invoices
    assert (sent.outcome, sent.amount_due_minor) == (Outcome.FINALIZED, (LINES_MAX + 5) * (LINES_MAX + 6) // 2)
    (invoice,) = in_stripe(stripe_twin)
    _, lines = gateway.invoice(invoice.id)
    found = {line.line_key: line.amount for line in lines}
    assert (len(found), found.pop("further:6")) == (LINES_MAX, 1 + 2 + 3 + 4 + 5 + 6)
    assert found == {f"m{n:03d}": n + 1 for n in range(6, LINES_MAX + 5)}


def test_an_amount_that_stripe_does_not_take_is_parked_before_anything_is_sent(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, most=499_999_995, over=500_000_000)
    sent = world.send(gateway)
    assert outcomes(sent) == {"most": Outcome.FINALIZED, "over": Outcome.PARKED}
    assert "1000000 USD is more than Stripe takes" in str(sent.having(Outcome.PARKED)[0].reason)
    assert [invoice.total for invoice in in_stripe(stripe_twin)] == [99_999_999]


def test_currencies_of_no_and_of_three_decimals_arrive_as_stripe_counts_them(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    for code in ("ISK", "JPY", "KWD"):
        name = code.lower()
        world.tenant(name)
        world.plan(PLAN.replace("plan: p", f"plan: {name}").replace("USD", code))
        world.subscribe(name, plan=name)
        world.use(name, output_tokens=100_006)  # 200.012
    world.rate()
    world.draft()
    assert set(outcomes(world.send(gateway)).values()) == {Outcome.FINALIZED}
    arrived = {(invoice.currency, invoice.total) for invoice in in_stripe(stripe_twin)}
    assert arrived == {("isk", 20_000), ("jpy", 200), ("kwd", 200_010)}, (
        "hundredths, whole yen, thousandths that end in 0"
    )
    assert trial_balance(world.engine).balanced


def test_a_customer_with_a_balance_or_pending_items_of_its_own_is_billed_ours_alone_or_parked(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    """A pending item is left where it is; a balance would change what is due, so a person takes it away first."""
    drafted(world, item=1000, owes=1000)
    client = stripe_twin.client()

    def checkpoint(_: object, name: str) -> None:
        if name == "stored customer_known":
            for customer in client.v1.customers.list().data:
                if customer.name == "item":
                    client.v1.invoice_items.create({"customer": customer.id, "amount": 700, "currency": "usd"})
                else:
                    client.v1.customers.update(customer.id, {"balance": 300})

    sent = [world.send(gateway, billing_accounts=[a], checkpoint=checkpoint).invoices[0] for a in ("item", "owes")]
    assert [each.outcome for each in sent] == [Outcome.FINALIZED, Outcome.PARKED]
    assert "starting_balance is 300, not 0" in str(sent[1].reason)
    assert sorted((i.status, i.total) for i in in_stripe(stripe_twin)) == [("draft", 200), ("open", 200)]
    sync(world, gateway)
    heard = world.rows("select distinct outcome from ledger.stripe_events where type like 'invoiceitem.%'")
    assert heard == [("left alone",)]
    (check,) = [each for each in reconcile(world, gateway) if each.name == "customers in Stripe are explained"]
    told = {(d.key.split("/")[0], d.left, d.right) for d in check.differences}
    assert told == {("item", None, "700 usd pending"), ("owes", 0, 300)}
    owing = next(c for c in client.v1.customers.list().data if c.name == "owes")
    client.v1.customers.update(owing.id, {"balance": 0})
    assert world.send(gateway, billing_accounts=["owes"]).invoices[0].outcome is Outcome.FINALIZED


def test_what_somebody_finalized_by_hand_and_is_ours_to_the_cent_is_adopted(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, acme=1000, lost=1000)

    def checkpoint(_: object, name: str) -> None:
        if name == "stored numbered":
            stripe_twin.client().v1.invoices.finalize_invoice(in_stripe(stripe_twin)[0].id)

    (sent,) = world.send(gateway, billing_accounts=["acme"], checkpoint=checkpoint).invoices
    assert (sent.outcome, balance(world)[1100]) == (Outcome.FINALIZED, 2)
    # Also where the reply is lost by which it got our number.
    with pytest.raises(Crash):
        world.send(gateway, billing_accounts=["lost"], checkpoint=crash_at("unrecorded number 0"))
    (draft,) = [invoice for invoice in in_stripe(stripe_twin) if invoice.status == "draft"]
    stripe_twin.client().v1.invoices.finalize_invoice(draft.id)
    (lost,) = world.send(gateway, billing_accounts=["lost"]).invoices
    assert (lost.outcome, lost.reason, balance(world)[1100]) == (Outcome.FINALIZED, None, 4)
    with transaction(world.engine) as opened:
        assert stripe_request_store.unanswered(opened, [sent.invoice_id]) == []


def test_a_finalization_that_stripe_refuses_is_parked_with_its_code_and_goes_on_once_it_is_mended(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, acme=1000, bolt=1000)
    path = "/v1/invoices/*/finalize"
    for code in ("account_country_invalid_address", "customer_tax_location_invalid"):
        control(stripe_twin, "faults", kind="refused_400", key=stripe_twin.key, path=path, code=code)
        (sent,) = world.send(gateway, billing_accounts=["acme"]).invoices
        assert sent.outcome is Outcome.PARKED
        assert f"({code}): mend it there, then send it again" in str(sent.reason)
        (draft,) = in_stripe(stripe_twin)
        assert draft.last_finalization_error is not None
        assert (draft.status, draft.last_finalization_error.code) == ("draft", code)
    assert sync(world, gateway).problems == ()
    # What is mended goes on under another key, whatever was refused before; it stops nobody else.
    assert outcomes(world.send(gateway)) == {"acme": Outcome.FINALIZED, "bolt": Outcome.FINALIZED}
    refused = "select epoch, answer from ledger.stripe_requests where step = 'finalize' and billing_account = 'acme'"
    assert world.rows(f"{refused} order by 1") == [(0, "refused"), (1, "refused"), (2, None)]


def test_an_error_that_nobody_thought_of_parks_its_invoice_and_stops_no_other(
    world: World, stripe_twin: StripeTwin
) -> None:
    drafted(world, a=1000, b=1000, c=1000)

    class Odd(StripeGateway):
        """Whose reply to one draft has another shape."""

        def change_invoice(self, request: Request) -> StripeInvoice:
            made = super().change_invoice(request)
            if request.operation is Operation.CREATE_DRAFT and '"billing_account": "a"' in request.parameters:
                raise KeyError("lines")
            return made

    settings = StripeSettings(stripe_twin.key, stripe_twin.url)
    sent = world.send(Odd(settings))
    assert outcomes(sent) == {"a": Outcome.PARKED, "b": Outcome.FINALIZED, "c": Outcome.FINALIZED}
    assert sent.having(Outcome.PARKED)[0].reason == "KeyError: 'lines'"
    assert outcomes(world.send(StripeGateway(settings)))["a"] is Outcome.FINALIZED
    assert len(in_stripe(stripe_twin)) == 3


def test_a_dry_run_tells_and_sends_nothing(world: World, stripe_twin: StripeTwin) -> None:
    drafted(world, zero=2, small=245, acme=1000)
    assert outcomes(world.send(NOWHERE, dry_run=True)) == {
        "zero": Outcome.ZERO, "small": Outcome.CARRIED, "acme": Outcome.WOULD_BE_SENT,
    }  # fmt: skip
    assert world.count("ledger.stripe_requests") == 0
    assert {i["state"] for i in invoice_list(world.engine)} == {"draft"}


def test_progress_counts_the_invoices_and_only_the_named_accounts_are_sent(
    world: World, gateway: StripeGateway
) -> None:
    drafted(world, a=1000, b=1000, c=1000)
    seen: list[tuple[int, int]] = []
    sent = world.send(gateway, billing_accounts=["a", "c"], progress=lambda done, total: seen.append((done, total)))
    assert outcomes(sent) == {"a": Outcome.FINALIZED, "c": Outcome.FINALIZED}
    assert seen == [(1, 2), (2, 2)]


def test_whoever_knows_the_limits_that_a_twin_keeps_gets_there_and_so_does_who_finds_them_out(
    world: World, stripe_twin: StripeTwin
) -> None:
    drafted(world, **{f"t{n}": 1000 for n in range(6)})
    settings = StripeSettings(stripe_twin.key, stripe_twin.url)
    keeps, hurries = (StripeGateway(settings, Limits(each, each)) for each in (20, 10_000))
    control(stripe_twin, "limits", all_per_s=20, endpoint_per_s=20)
    try:
        for gateway, accounts in ((keeps, ["t0", "t1", "t2"]), (hurries, ["t3", "t4", "t5"])):
            for _ in range(20):
                if all_done(world.send(gateway, billing_accounts=accounts, pause_s=0.2)):
                    break
    finally:
        control(stripe_twin, "limits", all_per_s=None, endpoint_per_s=None)
    assert [invoice.status for invoice in in_stripe(stripe_twin)] == ["open"] * 6
    assert {invoice["state"] for invoice in invoice_list(world.engine)} == {"finalized"}


def test_a_slow_reply_does_not_hold_up_the_others(
    world: World, stripe_twin: StripeTwin, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted(world, a=1000, b=1000)
    monkeypatch.setattr(stripe_gateway, "TIMEOUT_S", 10 * WITHIN_S)
    gateway = StripeGateway(StripeSettings(stripe_twin.key, stripe_twin.url))
    with pytest.raises(Crash):
        world.send(gateway, billing_accounts=["a"], checkpoint=crash_at("stored draft_created"))
    hold = stripe_twin.hold("after_commit", "POST", f"/v1/invoices/{in_stripe(stripe_twin)[0].id}/add_lines")
    result: list[Any] = []
    thread = threading.Thread(target=lambda: result.append(world.send(gateway)))
    thread.start()
    try:
        hold.wait()
        until = time.monotonic() + WITHIN_S
        while "open" not in [i.status for i in in_stripe(stripe_twin)] and time.monotonic() < until:
            time.sleep(0.05)
        assert sorted(str(i.status) for i in in_stripe(stripe_twin)) == ["draft", "open"]
    finally:
        hold.release()
        thread.join()
    assert set(outcomes(result[0]).values()) == {Outcome.FINALIZED}
