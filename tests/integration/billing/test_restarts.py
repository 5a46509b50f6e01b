"""Where sending cannot go on by itself a person lets it begin anew; what somebody made in Stripe stays as it is."""

from __future__ import annotations

from typing import Any

import pytest

from billing.commands.correct_invoice import find_invoice, reissue
from billing.commands.restart_sending import restart_sending
from billing.commands.send_invoices import InvoiceSent, Outcome
from billing.commands.show_returns import returns_shown
from billing.database import raw, transaction
from billing.errors import CorrectionRefused
from billing.stripe import stripe_request_store
from billing.stripe.stripe_gateway import StripeGateway
from streams import audit
from tests.billing_builders import NOW
from tests.fixtures_stripe_twin import StripeTwin, act, control
from tests.integration.billing.conftest import World
from tests.integration.billing.stripe_months import books, sync
from tests.integration.billing.test_send import drafted, in_stripe, reconcile
from tests.integration.billing.test_send_crashes import crash


def one(world: World, gateway: StripeGateway, account: str) -> InvoiceSent:
    """Send an account's invoice; its outcome. A refusal of before is asked again under another key."""
    (sent,) = world.send(gateway, billing_accounts=[account]).invoices
    return sent


def parked(sent: InvoiceSent) -> str:
    assert sent.outcome is Outcome.PARKED, sent
    return str(sent.reason)


def test_what_was_deleted_or_finalized_in_stripe_by_hand_is_parked_and_begins_anew_once_a_person_says_so(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, customer=1000, other=1000, draft=1000, final=1000)
    client = stripe_twin.client()
    ids = {}
    for account in ("customer", "other", "draft", "final"):
        crash(world, gateway, account, "stored customer_known" if account == "customer" else "stored compared")
        ids[account] = str(one_invoice(world, account)[0])
    theirs = {str(i.metadata["billing_account"]): i for i in in_stripe(stripe_twin) if i.metadata}
    customers = {str(c.name): c.id for c in client.v1.customers.list({"limit": 100}).data}

    def restart(account: str, **changed: str) -> str:
        world.age_requests(hours=1)
        return restart_sending(world.engine, ids[account], gateway=gateway, reason="r", now=NOW, actor="ada", **changed)

    with pytest.raises(CorrectionRefused, match="delete it there first"):
        restart("draft")
    # What a person does in Stripe's dashboard.
    client.v1.customers.delete(customers["customer"])
    client.v1.customers.delete(customers["other"])
    client.v1.invoices.delete(theirs["draft"].id)
    client.v1.invoices.finalize_invoice(theirs["final"].id)
    told = {account: parked(one(world, gateway, account)) for account in ids}
    assert told == {
        "customer": f"customer {customers['customer']} was deleted in Stripe: `tollbook invoice restart"
        f" {ids['customer']}` bills another customer",
        "other": f"customer {customers['other']} was deleted in Stripe: delete its draft {theirs['other'].id} there,"
        " too, then `tollbook invoice restart INV-000001` bills another customer",
        "draft": f"its draft {theirs['draft'].id} was deleted in Stripe by hand: `tollbook invoice restart INV-000002`"
        " builds it again",
        "final": f"its draft {theirs['final'].id} was finalized in Stripe by hand (open, number"
        f" {client.v1.invoices.retrieve(theirs['final'].id).number}): void it there, then"
        " `tollbook invoice restart INV-000003`",
    }
    sync(world, gateway)
    problems = returns_shown(world.engine, NOW).problems
    assert {p.split(":")[0].split()[0] for p in problems} >= {customers["customer"], theirs["draft"].id}, problems
    # Nothing that is there is overwritten: it goes first.
    for account, why in (("other", "delete it there first"), ("final", "is open in Stripe: void it there first")):
        with pytest.raises(CorrectionRefused, match=why):
            restart(account)
    client.v1.invoices.delete(theirs["other"].id)
    client.v1.invoices.void_invoice(theirs["final"].id)
    mine = client.v1.customers.create({"name": "made by hand", "email": "ap@other.example"}).id
    with pytest.raises(CorrectionRefused, match="is or was the customer of draft"):
        restart("other", customer=customers["draft"])
    for account in ids:
        restart(account, **({"customer": mine} if account == "other" else {}))
    assert {each.outcome for each in world.send(gateway).invoices} == {Outcome.FINALIZED}
    final = {str(i.metadata["billing_account"]): i for i in in_stripe(stripe_twin) if i.metadata and i.status == "open"}
    assert {(i.total, len(i.lines.data)) for i in final.values()} == {(200, 1)}
    assert sorted(str(i.number) for i in final.values()) == [f"INV-00000{n}" for n in range(1, 5)]
    assert final["other"].customer == mine
    assert final["draft"].customer == customers["draft"]
    assert (final["customer"].customer in customers.values(), len(in_stripe(stripe_twin))) == (False, 5)
    with transaction(world.engine) as connection:
        acts = [entry.subject for entry in audit.entries(raw(connection)) if entry.action == "invoice.restart"]
    assert sorted(acts) == sorted(ids.values())
    sync(world, gateway)
    assert returns_shown(world.engine, NOW).problems == ()
    assert (sync(world, gateway).waiting, books(world)[1100]) == (0, 8)
    with pytest.raises(CorrectionRefused, match="only what is not finalized yet"):
        restart("final")


def one_invoice(world: World, account: str) -> tuple[object, ...]:
    (row,) = world.rows("select invoice_id from ledger.invoices where billing_account = :a", a=account)
    return row


def test_a_number_that_is_used_up_in_stripe_by_another_document_is_void_here_too_and_its_usage_billed_anew(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, acme=1000)
    client = stripe_twin.client()
    crash(world, gateway, "acme", "stored numbered")
    (draft,) = in_stripe(stripe_twin)
    client.v1.invoices.add_lines(draft.id, {"lines": [{"amount": 5, "description": "by hand"}]})
    client.v1.invoices.finalize_invoice(draft.id)
    assert "and it differs" in parked(one(world, gateway, "acme"))
    client.v1.invoices.void_invoice(draft.id)
    world.age_requests(hours=1)
    done = restart_sending(world.engine, "INV-000001", gateway=gateway, reason="r", now=NOW, actor="ada")
    assert done.startswith("INV-000001 is void, as in Stripe")
    assert sync(world, gateway).problems == ()
    void = find_invoice(world.engine, "INV-000001")
    assert (void.state, books(world).get(1100, 0)) == ("void", 0)
    with transaction(world.engine) as connection:
        assert stripe_request_store.unanswered(connection, [void.invoice.invoice_id]) == []
    (again,) = reissue(world.engine, void, now=NOW, actor="ada")
    assert (again.identity.kind, again.amount_due_minor) == ("adjustment", 200)
    assert one_of(world.send(gateway).invoices, "INV-000002").outcome is Outcome.FINALIZED
    assert {(i.number, i.status) for i in in_stripe(stripe_twin)} == {("INV-000001", "void"), ("INV-000002", "open")}
    assert books(world)[1100] == 2


def test_a_number_that_somebodys_own_invoice_in_stripe_has_stays_used_and_ours_gets_the_next(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, acme=1000)
    invoices, customers = stripe_twin.client().v1.invoices, stripe_twin.client().v1.customers
    stranger = customers.create({"name": "somebody", "email": "ap@other.example"}).id
    terms: dict[str, Any] = {"collection_method": "send_invoice", "days_until_due": 14, "auto_advance": False}
    made = invoices.create({"customer": stranger, "number": "INV-000001", **terms}).id
    invoices.add_lines(made, {"lines": [{"amount": 500, "description": "by hand"}]})
    told = parked(one(world, gateway, "acme"))
    (draft,) = (i.id for i in in_stripe(stripe_twin) if i.id != made)
    assert told.endswith(
        f"where another invoice there has the number INV-000001, delete draft {draft} there, then `tollbook invoice"
        " restart INV-000001 --number-taken in_…` sends it with the next one"
    )
    said: dict[str, Any] = {"gateway": gateway, "reason": "r", "now": NOW, "actor": "ada"}

    def refused(number_taken: str, why: str) -> None:
        with pytest.raises(CorrectionRefused, match=why):
            restart_sending(world.engine, "INV-000001", **said, number_taken=number_taken)

    refused(made, f"its draft {draft} is in Stripe: delete it there first")
    invoices.delete(draft)
    refused(made, "is a draft: give it another number there")
    refused(draft, "is not in Stripe, or its number is not INV-000001")
    invoices.finalize_invoice(made, {"auto_advance": False})
    restart_sending(world.engine, "INV-000001", **said, number_taken=made, dry_run=True)
    done = restart_sending(world.engine, "INV-000001", **said, number_taken=made)
    assert done.endswith("with the next `tollbook invoice send`, as INV-000002")
    assert one(world, gateway, "acme").outcome is Outcome.FINALIZED
    numbers = {(i.number, i.customer == stranger, i.status) for i in in_stripe(stripe_twin)}
    assert numbers == {("INV-000001", True, "open"), ("INV-000002", False, "open")}
    assert next(c for c in reconcile(world, gateway) if c.name == "numbers have no gaps").agrees
    with transaction(world.engine) as connection:
        (act_,) = [entry for entry in audit.entries(raw(connection)) if entry.action == "invoice.restart"]
    assert (act_.detail["number_gone"], act_.detail["number_taken_by"]) == ("INV-000001", made)


def test_what_was_finalized_under_another_number_and_paid_is_credited_there_and_what_was_paid_is_unapplied_cash(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    drafted(world, acme=1000)
    client = stripe_twin.client()
    crash(world, gateway, "acme", "stored compared")
    (draft,) = in_stripe(stripe_twin)
    client.v1.invoices.finalize_invoice(draft.id)
    act(stripe_twin, "pay", invoice=draft.id)
    assert "(paid, number " in (told := parked(one(world, gateway, "acme")))
    assert "credit all of it there, out of band" in told
    assert sync(world, gateway).waiting > 0
    world.age_requests(hours=1)
    said: dict[str, Any] = {"gateway": gateway, "reason": "r", "now": NOW, "actor": "ada"}
    for amount in (50, 150):
        with pytest.raises(CorrectionRefused, match=f"{draft.id} is paid in Stripe: credit all of it there"):
            restart_sending(world.engine, "INV-000001", **said)
        client.v1.credit_notes.create({"invoice": draft.id, "amount": amount, "out_of_band_amount": amount})
    restart_sending(world.engine, "INV-000001", **said, dry_run=True)
    restart_sending(world.engine, "INV-000001", **said)
    assert one(world, gateway, "acme").outcome is Outcome.FINALIZED
    assert sorted((str(i.status), i.number == "INV-000001") for i in in_stripe(stripe_twin)) == [
        ("open", True), ("paid", False),
    ]  # fmt: skip
    assert (sync(world, gateway).problems, sync(world, gateway).waiting) == ((), 0)
    assert returns_shown(world.engine, NOW).problems == ()
    assert (books(world)[1100], books(world)[2150]) == (2, -2)
    wrong = {check.name: check.differences for check in reconcile(world, gateway) if not check.agrees}
    names = {"finalized invoices are in Stripe", "credit notes are in Stripe", "payments in Stripe are booked"}
    assert not names & wrong.keys(), wrong


def one_of(sent: tuple[InvoiceSent, ...], number: str) -> InvoiceSent:
    return next(each for each in sent if each.number == number)


def test_a_new_key_waits_for_the_last_time_the_old_one_went_out_and_not_for_the_first(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    """An hour after it was frozen a request is sent again: it may still be under way when it is answered."""
    drafted(world, acme=1000)
    crash(world, gateway, "acme", "sending draft 0")
    world.age_requests(hours=1)
    control(stripe_twin, "faults", kind="error_500_stored", key=stripe_twin.key, method="POST", path="/v1/invoices")
    asked = gateway.limiter.calls["GET /v1/invoices"]
    for _ in range(2):
        left = one(world, gateway, "acme")
        assert (left.outcome, gateway.limiter.calls["GET /v1/invoices"]) == (Outcome.LATER, asked)
    assert "in two minutes what it has done is looked up" in str(left.reason)
    world.age_requests(hours=0.1)
    assert one(world, gateway, "acme").outcome is Outcome.FINALIZED
    assert gateway.limiter.calls["GET /v1/invoices"] == asked + 1
    assert [invoice.status for invoice in in_stripe(stripe_twin)] == ["open"]
