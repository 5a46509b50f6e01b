"""What is done to invoices after they were finalized: in Stripe and in the books, once, and told to the last cent."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing.commands.correct_invoice import credit_invoice, find_invoice, reissue, void_invoice
from billing.commands.decide_proposal import decide, propose
from billing.commands.issue_credit_notes import issue_credit_notes
from billing.commands.keep_note_untold import keep_note_untold
from billing.commands.refund_invoice import refund_invoice
from billing.commands.send_corrections import send_corrections
from billing.commands.show_invoices import invoice_document, invoice_list
from billing.commands.show_returns import returns_shown
from billing.commands.take_over_note import take_over_note
from billing.errors import CorrectionRefused
from billing.invoicing.sending import Operation, Request
from billing.periods import accounting_month, parse_period
from billing.posting.proposal_store import ProposalKind
from billing.settings import StripeSettings
from billing.stripe import request_sender, returns
from billing.stripe.sender_lock import account_held
from billing.stripe.stripe_gateway import Json, StripeGateway
from devstack.stripe_twin.faults import FaultKind
from tests.billing_builders import NOVEMBER, OCTOBER
from tests.fixtures_stripe_twin import StripeTwin, act, control
from tests.integration.billing.conftest import Crash, World, crash_at
from tests.integration.billing.late_months import Arrivals, correction, used
from tests.integration.billing.stripe_months import books, finalized, sync
from tests.integration.billing.test_send import reconcile
from tests.integration.billing.test_stripe_returns import changed_in

NOW = datetime(2026, 12, 3, tzinfo=UTC)


@pytest.fixture
def sent(world: World, gateway: StripeGateway) -> dict[str, str]:
    """Finalized invoices of 20.00 by account: their ids in Stripe."""
    return finalized(world, gateway, "acme", "bolt")


def note_over(world: World, invoice: str, amount: str | None, **changed: Any) -> str:
    """Issue a credit note over an amount, or all; its number."""
    amounts = None if amount is None else {"std": Decimal(amount)}
    made = credit_invoice(world.engine, invoice, amounts, reason="too slow", now=NOW, actor="ada", **changed)
    assert made.number is not None
    return made.number


def shown(world: World, reference: str) -> dict[str, Any]:
    return invoice_document(world.engine, reference, today=NOW.date())


def audited(world: World, action: str) -> int:
    return int(world.rows("select count(*) from usage.audit_log where action = :a", a=action)[0][0])


def in_stripe(twin: StripeTwin, invoice: str) -> tuple[str, int, int]:
    theirs = twin.client().v1.invoices.retrieve(invoice)
    return str(theirs.status), theirs.amount_due, theirs.amount_remaining


def agrees(world: World, gateway: StripeGateway) -> None:
    """What is taken in twice changes nothing, nothing needs a person, and the books balance."""
    assert sync(world, gateway).problems == ()
    before = world.count("ledger.journal_entries")
    again = sync(world, gateway)
    assert (again.booked, again.waiting, again.corrected, again.problems) == (0, 0, 0, ())
    assert world.count("ledger.journal_entries") == before


def test_a_credit_note_before_payment_lowers_what_is_due_in_stripe_and_here(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    number = note_over(world, sent["acme"], "5")
    assert shown(world, number)["state"] == "issued_locally"
    assert sync(world, gateway).corrected == 1
    note = shown(world, number)
    assert (note["state"], note["total"], note["reason_not_in_stripe"]) == ("issued", -500, None)
    (theirs,) = stripe_twin.client().v1.credit_notes.list({"invoice": sent["acme"]}).data
    assert (theirs.id, theirs.total, theirs.pre_payment_amount) == (note["stripe_invoice_id"], 500, 500)
    assert (theirs.memo, theirs.lines.data[0].unit_amount) == (number, 500)
    assert in_stripe(stripe_twin, sent["acme"]) == ("open", 1500, 1500)
    assert (books(world)[1100], books(world)[4900]) == (35, 5)
    act(stripe_twin, "pay", invoice=sent["acme"])
    agrees(world, gateway)
    assert (shown(world, sent["acme"])["state"], books(world)[1100]) == ("paid", 20)
    assert audited(world, "credit_note.issue") == 1


def test_a_credit_note_after_payment_is_unapplied_cash_until_it_is_given_back(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    act(stripe_twin, "pay", invoice=sent["acme"], amount=1800)
    sync(world, gateway)
    numbers: list[str] = []
    with monkeypatch.context() as patch:
        # While a refund of all that was paid looks at the payments, somebody else issues a credit note.
        asked = returns.payments
        patch.setattr(
            returns, "payments", lambda *of: (numbers.append(note_over(world, sent["acme"], "5")), asked(*of))[1]
        )
        refused = r"credit note CN-.* is not told to Stripe yet: `tollbook stripe sync` first"
        with pytest.raises(CorrectionRefused, match=refused):
            refund_invoice(world.engine, sent["acme"], None, gateway=gateway, reason="r", actor="ada")
    with pytest.raises(CorrectionRefused, match=refused):
        refund_invoice(world.engine, sent["acme"], None, gateway=gateway, reason="r", actor="ada")
    (number,) = numbers
    sync(world, gateway)
    (theirs,) = stripe_twin.client().v1.credit_notes.list({"invoice": sent["acme"]}).data
    assert (theirs.pre_payment_amount, theirs.out_of_band_amount) == (200, 300)
    assert stripe_twin.client().v1.customers.retrieve(str(theirs.customer)).balance == 0
    now = books(world)
    assert (now[1100], now[2150], now[4900]) == (20, -3, 5)
    agrees(world, gateway)
    with pytest.raises(CorrectionRefused, match="3 USD left"):
        refund_invoice(
            world.engine, sent["acme"], Decimal("3.01"), gateway=gateway, reason="r", actor="ada", note=number
        )
    with pytest.raises(CorrectionRefused, match=f"^15 USD .*not more: 3 is unapplied cash.*`--credit-note {number}`$"):
        refund_invoice(world.engine, sent["acme"], Decimal("15.01"), gateway=gateway, reason="r", actor="ada")
    refund_invoice(world.engine, sent["acme"], None, gateway=gateway, reason="r", actor="ada")
    agrees(world, gateway)
    assert (books(world)[2150], books(world)[4920]) == (-3, 15), "what the note left is not given back without it"
    refund_invoice(world.engine, sent["acme"], None, gateway=gateway, reason="r", actor="ada", note=number)
    agrees(world, gateway)
    refund, _ = stripe_twin.client().v1.refunds.list().data
    assert (refund.amount, (refund.metadata or {})["credit_note"]) == (300, number)
    assert (books(world).get(2150, 0), books(world)[4920]) == (0, 15)
    assert world.reports_tie(OCTOBER, NOVEMBER, parse_period(accounting_month(NOW)))
    with pytest.raises(CorrectionRefused, match="0 USD left"):
        refund_invoice(world.engine, sent["acme"], None, gateway=gateway, reason="r", actor="ada", note=number)


def test_a_credit_note_can_give_back_at_once_what_was_paid_of_it(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    act(stripe_twin, "pay", invoice=sent["acme"], amount=1200)
    act(stripe_twin, "pay", invoice=sent["acme"])
    sync(world, gateway)
    note_over(world, sent["acme"], "15", refund_from=gateway)
    agrees(world, gateway)
    (note,) = stripe_twin.client().v1.credit_notes.list().data
    assert sorted(each.amount_refunded for each in note.refunds) == [700, 800]
    assert note.out_of_band_amount is None
    now = books(world)
    assert (now[1100], now.get(2150, 0), now[4900]) == (20, 0, 15)
    with pytest.raises(CorrectionRefused, match="more than what is left"):
        note_over(world, sent["acme"], "5.01")


def test_what_stripe_did_not_give_back_of_a_credit_note_can_be_given_back_later(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    charge = act(stripe_twin, "pay", invoice=sent["acme"])["id"]
    sync(world, gateway)
    number = note_over(world, sent["acme"], "5", refund_from=gateway)
    dispute = act(stripe_twin, "dispute", charge=charge)["id"]
    agrees(world, gateway)
    assert (shown(world, number)["state"], books(world)[2150]) == ("issued", -5), "a disputed charge is not given back"
    act(stripe_twin, "decide", dispute=dispute, won=True)
    give: Callable[..., Any] = lambda: refund_invoice(  # noqa: E731
        world.engine, sent["acme"], None, gateway=gateway, reason="r", actor="ada", note=number
    )
    give()
    agrees(world, gateway)
    assert books(world).get(2150, 0) == 0
    # The payer's bank does not take it; and of the next one the answer is lost, and then it fails.
    (first,) = stripe_twin.client().v1.refunds.list().data
    act(stripe_twin, "fail_refund", refund=first.id)
    agrees(world, gateway)
    assert books(world)[2150] == -5
    made = give()
    with pytest.raises(Crash):
        send_corrections(world.engine, gateway=gateway, now=NOW, checkpoint=crash_at("unrecorded refund 0"))
    act(stripe_twin, "fail_refund", refund=stripe_twin.client().v1.refunds.list().data[0].id)
    world.age_requests(hours=24)
    (done,) = send_corrections(world.engine, gateway=gateway, now=NOW)
    assert (done.correction.correction_no, done.correction.state.value) == (made.correction_no, "refused")
    assert "is failed" in str(done.reason)
    give()
    agrees(world, gateway)
    assert books(world).get(2150, 0) == 0


def test_a_payment_on_the_way_changes_how_a_credit_note_is_split(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    number = note_over(world, sent["acme"], "5")
    paid = []

    def pay_before_it_is_sent(_: object, name: str) -> None:
        if name == "sending credit_note 0" and not paid:
            paid.append(act(stripe_twin, "pay", invoice=sent["acme"], amount=1900))

    given: dict[str, Any] = {"now": NOW, "checkpoint": pay_before_it_is_sent, "pause_s": 0.01}
    (first,) = send_corrections(world.engine, gateway=gateway, **given)
    assert "must equal the post payment amount (400)" in str(first.reason)
    assert "must equal" in shown(world, number)["parked_because"]
    (then,) = send_corrections(world.engine, gateway=gateway, **given)
    assert (then.done, then.reason) == (True, None)
    (theirs,) = stripe_twin.client().v1.credit_notes.list().data
    assert (theirs.pre_payment_amount, theirs.out_of_band_amount) == (100, 400)
    assert (shown(world, number)["state"], shown(world, number)["parked_because"]) == ("issued", None)
    agrees(world, gateway)


def test_a_credit_note_that_stripe_never_takes_is_parked_and_a_person_can_keep_it_here_alone(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    given: dict[str, Any] = {"gateway": gateway, "now": NOW, "actor": "ada", "reason": "refunded by hand"}
    act(stripe_twin, "pay", invoice=sent["acme"], amount=1900)
    number = note_over(world, sent["acme"], "5")
    charge = act(stripe_twin, "pay", invoice=sent["acme"])["id"]
    for part in (charge, stripe_twin.client().v1.charges.list().data[1].id):
        stripe_twin.client().v1.refunds.create({"charge": part})
    with pytest.raises(CorrectionRefused, match="no credit note that Stripe has refused"):
        keep_note_untold(world.engine, number, **given)
    for _ in range(2):
        (told,) = sync(world, gateway).problems
    assert f"or `tollbook invoice note-untold {number}` where its invoice is paid or void there" in told
    assert shown(world, number)["parked_because"] in told
    keep_note_untold(world.engine, number, **given, dry_run=True)
    assert keep_note_untold(world.engine, number, **given).parked_because is None
    assert sync(world, gateway).problems == ()
    now = books(world)
    assert (now[1100], now[2150], now[4920]) == (20, -5, 20), "bolt's, unapplied cash, what was refunded by hand"
    assert (audited(world, "invoice.note_untold"), shown(world, number)["state"]) == (1, "issued_locally")


def test_what_stripe_refuses_is_asked_again_in_time_or_when_a_person_asks_however_often_it_was_refused(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_sender, "EPOCH_LIMIT", 3)
    refused = {"kind": FaultKind.REFUSED, "key": stripe_twin.key, "method": "POST", "times": 99}
    control(stripe_twin, "faults", path="/v1/credit_notes", **refused)
    number = note_over(world, sent["acme"], "5")

    def keys() -> int:
        return int(world.rows("select count(*) from ledger.stripe_requests where step = 'credit_note'")[0][0])

    told = {sync(world, gateway).problems for _ in range(3)}
    assert (len(told), keys()) == (1, 1), "nobody has asked, and nothing has changed"
    assert "`tollbook stripe sync --again` tells it again" in str(told)
    assert number in str(told)
    for hours, expected in ((1, 2), (1, 2), (1, 3)):
        world.age_requests(hours=hours)
        sync(world, gateway)
        assert keys() == expected
    for _ in range(4):
        assert sync(world, gateway, again=True).corrected == 0
    assert keys() == 7
    stripe_twin.call("DELETE", "/_twin/faults")
    assert sync(world, gateway).corrected == 0
    assert sync(world, gateway, again=True).corrected == 1
    agrees(world, gateway)


def test_an_error_that_nobody_thought_of_hinders_its_correction_alone(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    class Odd(StripeGateway):
        """Whose replies to credit notes have another shape."""

        def change(self, request: Request) -> Json:
            found = super().change(request)
            return {} if request.operation is Operation.CREDIT_NOTE else found

    note_over(world, sent["acme"], "5")
    act(stripe_twin, "pay", invoice=sent["bolt"])
    found = sync(world, Odd(StripeSettings(stripe_twin.key, stripe_twin.url)))
    assert (found.booked, found.paid, found.corrected) == (1, 1, 0)
    assert [problem.partition(": ")[2] for problem in found.problems] == ["KeyError: 'total'"]
    assert sync(world, gateway).corrected == 1
    agrees(world, gateway)


def test_a_void_invoice_is_void_in_stripe_and_what_it_billed_is_billed_anew(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    before = books(world)
    made = void_invoice(world.engine, sent["acme"], reason="wrong address", now=NOW, actor="ada")
    assert shown(world, sent["acme"])["state"] == "finalized"
    with pytest.raises(CorrectionRefused, match=r"void of .* is under way"):
        note_over(world, sent["acme"], "5")
    (done,) = send_corrections(world.engine, gateway=gateway, now=NOW, correction_nos=[made.correction_no])
    assert done.done
    agrees(world, gateway)
    assert (shown(world, sent["acme"])["state"], in_stripe(stripe_twin, sent["acme"])[0]) == ("void", "void")
    assert (books(world)[1100], books(world)[1150]) == (20, 20)
    assert stripe_twin.client().v1.credit_notes.list().data == []
    (drawn,) = reissue(world.engine, find_invoice(world.engine, sent["acme"]), now=NOW, actor="ada")
    assert (drawn.identity.kind.value, drawn.total_minor) == ("adjustment", 2000)
    again = {i.billing_account: i for i in world.send(gateway, now=NOW).invoices if i.changed}
    assert again["acme"].number == "INV-000003", "the number of a void invoice stays used"
    assert books(world) == before
    assert audited(world, "invoice.void") == 1


def test_a_delivered_or_partly_paid_invoice_is_credited_and_not_voided(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    client = stripe_twin.client()
    act(stripe_twin, "pay", invoice=sent["bolt"], amount=100)
    sync(world, gateway)
    # Somebody sends it from the dashboard, and its event did not come in.
    client.v1.invoices.send_invoice(sent["acme"])
    with pytest.raises(CorrectionRefused, match=r"was delivered: `tollbook invoice credit-note .* --reissue` instead"):
        void_invoice(world.engine, sent["acme"], reason="r", now=NOW, actor="ada", gateway=gateway)
    with pytest.raises(CorrectionRefused, match="was delivered"):
        void_invoice(world.engine, sent["acme"], reason="r", now=NOW, actor="ada")
    with pytest.raises(CorrectionRefused, match="paid or credited in part"):
        void_invoice(world.engine, sent["bolt"], reason="r", now=NOW, actor="ada")
    note_over(world, sent["bolt"], None)
    agrees(world, gateway)
    (note,) = client.v1.credit_notes.list().data
    assert (note.total, note.pre_payment_amount, note.out_of_band_amount) == (2000, 1900, 100)
    now = books(world)
    assert (now[1100], now[1150], now[2150]) == (20, 20, -1)
    (drawn,) = reissue(world.engine, find_invoice(world.engine, sent["bolt"]), now=NOW, actor="ada")
    assert drawn.total_minor == 2000


def two_people(world: World, kind: ProposalKind, invoice: str) -> None:
    number = propose(world.engine, kind, invoice, {}, document="letter", now=NOW, actor="ada")
    decide(world.engine, number, approved=True, now=NOW, actor="bob")


def test_a_write_off_takes_two_people_and_comes_back_when_it_is_paid_after_all(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    act(stripe_twin, "pay", invoice=sent["acme"], amount=500)
    two_people(world, ProposalKind.WRITE_OFF, sent["acme"])
    agrees(world, gateway)
    written = shown(world, sent["acme"])
    assert (written["state"], written["dunning"]) == ("uncollectible", "uncollectible")
    assert in_stripe(stripe_twin, sent["acme"])[0] == "uncollectible"
    assert (books(world)[1100], books(world)[5200]) == (20, 15)
    act(stripe_twin, "pay", invoice=sent["acme"])
    agrees(world, gateway)
    assert shown(world, sent["acme"])["state"] == "paid"
    assert (books(world)[1100], books(world).get(5200, 0)) == (20, 0)
    # Paid before we know that Stripe has done it: nothing is written off.
    two_people(world, ProposalKind.WRITE_OFF, sent["bolt"])
    with pytest.raises(Crash):
        send_corrections(world.engine, gateway=gateway, now=NOW, checkpoint=crash_at("unrecorded mark_uncollectible 0"))
    act(stripe_twin, "pay", invoice=sent["bolt"])
    with world.engine.connect() as other, account_held(other, "bolt"):
        assert sync(world, gateway).paid == 1
    (told,) = sync(world, gateway).problems
    assert "was made uncollectible, and is paid by now" in told
    agrees(world, gateway)
    assert shown(world, sent["bolt"])["state"] == "paid"
    assert (books(world)[1100], books(world).get(5200, 0)) == (0, 0)


def test_what_is_made_uncollectible_in_stripe_while_a_credit_note_waits_is_written_off_and_the_note_with_it(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    note = note_over(world, sent["acme"], "5")
    stripe_twin.client().v1.invoices.mark_uncollectible(sent["acme"])
    by_hand, refused = sync(world, gateway).problems
    assert "write-off" in by_hand
    assert "note-untold" in refused
    with pytest.raises(CorrectionRefused, match=r"write-off .* takes that over, and the note with it"):
        keep_note_untold(world.engine, note, gateway=gateway, reason="r", now=NOW, actor="ada")
    two_people(world, ProposalKind.WRITE_OFF, sent["acme"])
    sync(world, gateway)
    agrees(world, gateway)
    assert shown(world, sent["acme"])["state"] == "uncollectible"
    assert shown(world, note)["parked_because"] is None
    assert (books(world)[1100], books(world)[5200]) == (20, 15)
    # Stripe knows nothing of the note: what is paid of it after all is unapplied cash.
    act(stripe_twin, "pay", invoice=sent["acme"])
    agrees(world, gateway)
    assert (books(world)[1100], books(world).get(5200, 0), books(world)[2150]) == (20, 0, -5)
    # What is paid elsewhere waits for a note that was made there by hand, which can be taken over beside it.
    made = stripe_twin.client().v1.credit_notes.create({"invoice": sent["bolt"], "amount": 100}).id
    two_people(world, ProposalKind.PAID_ELSEWHERE, sent["bolt"])
    assert any("take that over first" in problem for problem in sync(world, gateway).problems)
    take_over_note(
        world.engine, sent["bolt"], made, {"std": Decimal(1)}, gateway=gateway, reason="r", now=NOW, actor="ada"
    )
    agrees(world, gateway)
    assert shown(world, sent["bolt"])["state"] == "paid"
    assert (books(world).get(1100, 0), books(world)[1020]) == (0, 19)


def test_what_was_paid_elsewhere_takes_two_people_and_is_refused_where_it_was_paid_in_stripe_meanwhile(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    for invoice in sent.values():
        two_people(world, ProposalKind.PAID_ELSEWHERE, invoice)
    act(stripe_twin, "pay", invoice=sent["bolt"])
    found = sync(world, gateway)
    assert (found.corrected, [p.partition(":")[0] for p in found.problems]) == (
        1,
        [f"paid_elsewhere of invoice {iid(world, sent['bolt'])}"],
    )
    now = books(world)
    assert (now.get(1100, 0), now[1020]) == (0, 20)
    assert {i["state"] for i in invoice_list(world.engine)} == {"paid"}
    agrees(world, gateway)


def test_what_was_written_off_and_is_paid_outside_stripe_after_all_comes_back(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    for invoice in sent.values():
        two_people(world, ProposalKind.WRITE_OFF, invoice)
    agrees(world, gateway)
    act(stripe_twin, "pay", invoice=sent["acme"], amount=500)
    stripe_twin.client().v1.invoices.pay(sent["bolt"], {"paid_out_of_band": True})
    (by_hand,) = sync(world, gateway).problems
    assert "--out-of-band --document" in by_hand
    for invoice in sent.values():
        two_people(world, ProposalKind.PAID_ELSEWHERE, invoice)
    agrees(world, gateway)
    assert {i["state"] for i in invoice_list(world.engine)} == {"paid"}
    now = books(world)
    assert (now.get(1100, 0), now.get(5200, 0), now[1020]) == (0, 0, 15 + 20)


def test_a_note_that_was_made_in_stripe_before_a_write_off_is_taken_over_after_it(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    made = stripe_twin.client().v1.credit_notes.create({"invoice": sent["acme"], "amount": 100}).id
    two_people(world, ProposalKind.WRITE_OFF, sent["acme"])
    sync(world, gateway)
    act(stripe_twin, "pay", invoice=sent["acme"])
    assert any("take that over first" in problem for problem in sync(world, gateway).problems)
    take_over_note(
        world.engine, sent["acme"], made, {"std": Decimal(1)}, gateway=gateway, reason="r", now=NOW, actor="ada"
    )
    agrees(world, gateway)
    assert shown(world, sent["acme"])["state"] == "paid"
    assert (books(world)[1100], books(world).get(5200, 0)) == (20, 0)


def iid(world: World, reference: str) -> str:
    return str(shown(world, reference)["invoice_id"])


def test_refunds_are_booked_from_stripes_balance_and_not_more_than_was_paid(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, stripe_twin_data: Path, sent: dict[str, str]
) -> None:
    act(stripe_twin, "pay", invoice=sent["acme"], amount=1200)
    act(stripe_twin, "pay", invoice=sent["acme"])
    sync(world, gateway)
    give: Callable[..., Any] = lambda amount: refund_invoice(  # noqa: E731
        world.engine, sent["acme"], amount, gateway=gateway, reason="r", actor="ada"
    )
    give(Decimal(10))
    with pytest.raises(CorrectionRefused, match="under way"):
        give(Decimal(1))
    agrees(world, gateway)
    assert sorted(r.amount for r in stripe_twin.client().v1.refunds.list().data) == [200, 800]
    assert books(world)[4920] == 10
    with pytest.raises(CorrectionRefused, match="10 USD of its payments"):
        give(Decimal("10.01"))
    before = [world.count(f"ledger.{table}") for table in ("corrections", "credit_grants", "invoices")]
    for nothing in ("0", "-5"):
        for refused in (lambda: give(Decimal(nothing)), lambda: note_over(world, sent["acme"], nothing)):  # noqa: B023
            with pytest.raises(CorrectionRefused, match=f"{nothing} is no amount"):
                refused()
    assert [world.count(f"ledger.{table}") for table in ("corrections", "credit_grants", "invoices")] == before
    give(None)
    agrees(world, gateway)
    assert books(world)[4920] == 20
    with pytest.raises(CorrectionRefused, match="nothing was paid"):
        give(None)
    # One of two payments is given back by hand meanwhile: the rest goes back, and it is over.
    intents = {}
    for amount in (1200, 800):
        intents[amount] = act(stripe_twin, "pay", invoice=sent["bolt"], amount=amount)["payment_intent"]
    sync(world, gateway)
    refund_invoice(world.engine, sent["bolt"], Decimal(15), gateway=gateway, reason="r", actor="ada")
    stripe_twin.client().v1.refunds.create({"payment_intent": intents[800]})
    number = note_over(world, sent["bolt"], "1")
    found = sync(world, gateway)
    assert found.corrected == 2, "what comes after it is told"
    (problem,) = found.problems
    assert f"8 USD of {intents[800]} is not given back: " in problem
    assert (shown(world, number)["state"], audited(world, "invoice.refund.refused")) == ("issued", 1)
    agrees(world, gateway)
    assert (books(world)[4920], books(world)[2150]) == (20 + 8 + 7, -1)
    for paid in stripe_twin.client().v1.invoice_payments.list({"invoice": sent["bolt"]}).data:
        changed_in(stripe_twin_data, paid.id, payment={"type": "payment_record", "payment_record": "pr_1"})
    with pytest.raises(CorrectionRefused, match="nothing was paid"):
        refund_invoice(world.engine, sent["bolt"], None, gateway=gateway, reason="r", actor="ada")


def test_what_is_paid_too_much_is_unapplied_cash_and_leaves_stripes_balance_of_the_customer(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    act(stripe_twin, "pay", invoice=sent["acme"], amount=2600, overpay=True)
    customer = str(stripe_twin.client().v1.invoices.retrieve(sent["acme"]).customer)
    assert stripe_twin.client().v1.customers.retrieve(customer).balance == -600
    agrees(world, gateway)
    assert stripe_twin.client().v1.customers.retrieve(customer).balance == 0
    assert (books(world)[1100], books(world)[2150]) == (20, -6)
    act(stripe_twin, "pay", invoice=sent["acme"], amount=2000, overpay=True)
    agrees(world, gateway)
    assert stripe_twin.client().v1.customers.retrieve(customer).balance == 0
    assert (books(world)[1100], books(world)[2150]) == (20, -26)
    with pytest.raises(CorrectionRefused, match=r"^20 USD .* not more: 26 is unapplied cash, which goes back by hand$"):
        refund_invoice(world.engine, sent["acme"], Decimal(21), gateway=gateway, reason="r", actor="ada")
    # One that Stripe refuses waits for a person, and holds up nothing else of the invoice.
    act(stripe_twin, "pay", invoice=sent["acme"], amount=100, overpay=True)
    stripe_twin.client().v1.customers.delete(customer)
    number = note_over(world, sent["acme"], "1")
    assert [problem.partition(" ")[0] for problem in sync(world, gateway).problems] == ["overpayment"]
    assert (shown(world, number)["state"], books(world)[2150]) == ("issued", -27)


def test_what_somebody_credits_or_gives_back_in_stripe_is_told_never_taken_over_and_cannot_be_credited_again(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    client = stripe_twin.client()
    by_hand = client.v1.credit_notes.create({"invoice": sent["acme"], "amount": 100})
    (problem,) = sync(world, gateway).problems
    assert "was made in Stripe by hand; our books have none" in problem
    assert books(world)[1100] == 40
    with pytest.raises(CorrectionRefused, match=r"^19 USD of INV-.* can still be credited, and not 20"):
        note_over(world, sent["acme"], "20")
    client.v1.credit_notes.void_credit_note(by_hand.id)
    agrees(world, gateway)
    assert returns_shown(world.engine, NOW).problems == (), "once it is void, it needs nobody"
    note_over(world, sent["acme"], "20")
    act(stripe_twin, "pay", invoice=sent["bolt"])
    back = client.v1.refunds.create({"charge": client.v1.charges.list().data[0].id, "amount": 500})
    agrees(world, gateway)
    with pytest.raises(CorrectionRefused, match=r"^15 USD of INV-.* can still be credited, and not 16"):
        note_over(world, sent["bolt"], "16")
    act(stripe_twin, "fail_refund", refund=back.id)
    agrees(world, gateway)
    note_over(world, sent["bolt"], "16")
    agrees(world, gateway)


def test_what_a_credit_note_by_hand_leaves_nothing_to_pay_of_is_paid_here_once_that_note_is_taken_over(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    client = stripe_twin.client()
    all_of = client.v1.credit_notes.create({"invoice": sent["acme"], "amount": 2000}).id
    part = client.v1.credit_notes.create({"invoice": sent["bolt"], "amount": 100}).id
    act(stripe_twin, "pay", invoice=sent["bolt"])
    payments = "payments in Stripe are booked"
    (untaken,) = [d for each in reconcile(world, gateway) if each.name == payments for d in each.differences]
    assert (untaken.key, untaken.left, untaken.right) == ("bolt/USD", 19, None)
    told = sync(world, gateway).problems
    assert sum("is paid in Stripe, but" in problem and "--made-in-stripe" in problem for problem in told) == 2
    assert {i["state"] for i in invoice_list(world.engine)} == {"finalized"}
    differ = {each.name: [d.key for d in each.differences] for each in reconcile(world, gateway) if not each.agrees}
    assert differ["credit notes are in Stripe"] == sorted([f"{sent['acme']}/{all_of}", f"{sent['bolt']}/{part}"])
    take: Callable[..., Any] = lambda of, made, amount, **changed: take_over_note(  # noqa: E731
        world.engine, sent[of], made, amount and {"std": Decimal(amount)}, gateway=gateway, reason="r", now=NOW,
        actor="ada", **changed,
    )  # fmt: skip
    for amount, why in (("19", "comes to 19 USD .* to 20"), ("21", "more than what is left of it")):
        with pytest.raises(CorrectionRefused, match=why):
            take("acme", all_of, amount)
    with pytest.raises(CorrectionRefused, match=f"is a credit note on {sent['acme']}"):
        take("bolt", all_of, "20")
    take("bolt", part, "1", dry_run=True)
    note = take("bolt", part, "1")
    assert (shown(world, sent["bolt"])["state"], books(world)[1100]) == ("paid", 20)
    assert (shown(world, str(note.number))["state"], audited(world, "invoice.credit_note")) == ("issued", 1)
    take("acme", all_of, None)
    assert (shown(world, sent["acme"])["state"], books(world).get(1100, 0)) == ("paid", 0)
    with pytest.raises(CorrectionRefused, match="one of ours already"):
        take("acme", all_of, "20")
    agrees(world, gateway)
    assert returns_shown(world.engine, NOW).problems == ()
    assert not {"credit notes are in Stripe", payments} & {c.name for c in reconcile(world, gateway) if not c.agrees}


def test_what_somebody_voids_in_stripe_is_taken_over_whatever_was_paid_or_credited_or_written_off_of_it(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin
) -> None:
    client = stripe_twin.client()
    names = ("credited", "lost", "paid", "part", "untold")
    sent = finalized(world, gateway, *names)
    said: dict[str, Any] = {"reason": "r", "now": NOW, "actor": "ada"}
    notes = {name: note_over(world, sent[name], "3") for name in ("credited", "paid")}
    two_people(world, ProposalKind.WRITE_OFF, sent["lost"])
    sync(world, gateway)
    (told,) = client.v1.credit_notes.list({"invoice": sent["paid"]}).data
    client.v1.credit_notes.void_credit_note(told.id)
    for name in ("credited", "part"):
        act(stripe_twin, "pay", invoice=sent[name], amount=500)
        client.v1.invoices.send_invoice(sent[name])
    notes["untold"] = note_over(world, sent["untold"], "3")
    for name in ("credited", "lost", "part", "untold"):
        client.v1.invoices.void_invoice(sent[name])
    problems = sync(world, gateway).problems
    numbers = {name: shown(world, sent[name])["number"] for name in names}
    for name, number in numbers.items():
        state = "uncollectible" if name == "lost" else "finalized"
        verb = f"made void in Stripe by hand; our books have it as {state}: `tollbook invoice void {number} "
        assert [p for p in problems if verb in p] or name == "paid", (name, problems)
    assert [p for p in problems if f"note-untold {notes['untold']}` where its invoice is paid or void there" in p]
    assert [p for p in problems if f"{notes['paid']} on {numbers['paid']} was voided in Stripe by hand" in p]
    keep: Callable[[str], Any] = lambda name: keep_note_untold(  # noqa: E731
        world.engine, notes[name], gateway=gateway, **said
    )
    with pytest.raises(CorrectionRefused, match="is open in Stripe, and 20 USD of it remain to be paid"):
        keep("paid")
    act(stripe_twin, "pay", invoice=sent["paid"])
    sync(world, gateway)
    keep("untold")
    keep("paid")
    with pytest.raises(CorrectionRefused, match="no credit note that Stripe has refused"):
        keep("paid")
    for name in ("lost", "part"):
        void_invoice(world.engine, sent[name], **said)
    for name in ("credited", "untold"):
        with pytest.raises(CorrectionRefused, match="cannot be billed anew"):
            void_invoice(world.engine, sent[name], **said)
        two_people(world, ProposalKind.WRITE_OFF, sent[name])
    agrees(world, gateway)
    states = {name: shown(world, of)["state"] for name, of in sent.items()}
    assert states == dict.fromkeys(names, "void") | {"paid": "paid"}
    now = books(world)
    assert (now.get(1100, 0), now[1150]) == (0, 20), "what nothing else was done to is billed anew"
    assert (now[2150], now[5200]) == (-5 - 3, 20 + 12 + 17), "paid of what is void, or credited; lost"
    assert returns_shown(world.engine, NOW).problems == ()
    wrong = {c.name: c.differences for c in reconcile(world, gateway) if not c.agrees}
    assert not {"credit notes are in Stripe", "finalized invoices are in Stripe"} & wrong.keys(), wrong


def test_how_collection_stands_is_shown(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, sent: dict[str, str]
) -> None:
    act(stripe_twin, "pay", invoice=sent["acme"], amount=500)
    act(stripe_twin, "pay", invoice=sent["bolt"], fails=True)
    sync(world, gateway)
    listed = invoice_list(world.engine, today=NOW.date())
    found = {i["billing_account"]: (i["dunning"], i["paid"], i["remaining"]) for i in listed}
    assert found == {"acme": ("due", 500, 1500), "bolt": ("retrying", 0, 2000)}, "both are due in January"


def test_what_comes_to_less_is_credited_where_it_is_billed_and_stripe_can_take_it(
    world: World, gateway: StripeGateway, stripe_twin: StripeTwin, own_database_url: str
) -> None:
    first = {
        name: used(f"first-{name}", OCTOBER.start, 10_000, name)
        for name in ("again", "given", "good", "later", "lost", "void")
    }
    arrive = Arrivals(own_database_url)
    world.customers(*first)
    arrive.apply(*first.values())
    world.rate()
    world.draft()
    sent = {i.billing_account: str(i.stripe_invoice_id) for i in world.send(gateway).invoices}
    said: dict[str, Any] = {"reason": "r", "now": NOW, "actor": "ada"}
    # Void, or credited whole, and billed anew by an adjustment invoice.
    void_invoice(world.engine, sent["void"], **said)
    credit_invoice(world.engine, sent["again"], None, **said)
    # Given back, given, written off.
    for name in ("given", "lost"):
        act(stripe_twin, "pay", invoice=sent[name], amount=1200)
    sync(world, gateway)
    refund_invoice(world.engine, sent["given"], Decimal(10), gateway=gateway, reason="r", actor="ada")
    note_over(world, sent["good"], "15")
    two_people(world, ProposalKind.WRITE_OFF, sent["lost"])
    agrees(world, gateway)
    with pytest.raises(CorrectionRefused, match=r"10 USD of INV-.* can still be credited, and not 20"):
        credit_invoice(world.engine, sent["given"], None, **said)
    for name in ("void", "again"):
        reissue(world.engine, find_invoice(world.engine, sent[name]), now=NOW, actor="ada")
    world.send(gateway, now=NOW)
    # More comes late: it is on November's invoice.
    arrive.apply(used("late", OCTOBER.start, 10_000, "later"))
    world.rate()
    world.rate(NOVEMBER, now=NOW)
    world.draft(NOVEMBER, now=NOW)
    world.send(gateway, NOVEMBER, now=NOW)
    before = books(world)[1100]

    less = {"again": 5, "given": 4, "good": 10, "later": 30, "lost": 10, "void": 5}
    arrive.apply(
        correction(used("late", OCTOBER.start, 10_000, "later"), -10_000),
        *(correction(of, -500 * (less[name] - 20 * (name == "later"))) for name, of in first.items()),
    )
    world.rate()
    found = issue_credit_notes(world.engine, up_to=OCTOBER.end, now=NOW, actor="ada")
    assert [name for name, _ in found.blocked] == ["good"]
    assert [(n.invoice.identity.billing_account, n.invoice.total_minor) for n in found.notes] == [
        ("again", -500), ("given", -400), ("later", -2000), ("later", -1000), ("lost", -1000), ("void", -500),
    ]  # fmt: skip
    agrees(world, gateway)
    remaining = sum(i.amount_remaining for i in gateway.invoices() if i.seen.status == "open")
    assert (books(world)[1100], remaining) == (before - 5 - 4 - 30 - 5, int(before - 44) * 100)
    assert (books(world).get(5200, 0), books(world)[2150]) == (0, -2), "of 20, 12 were paid and 10 are credited"
    told = [(d["billing_account"], d["state"]) for d in invoice_list(world.engine) if d["kind"] == "credit_note"]
    assert sorted(name for name, state in told if state != "issued") == ["lost", "void"]
    # The rest of what was written off is paid after all: as far as it was credited, it is that note's unapplied cash.
    for amount, held in ((300, -5), (500, -10)):
        act(stripe_twin, "pay", invoice=sent["lost"], amount=amount)
        agrees(world, gateway)
        assert (books(world).get(5200, 0), books(world)[2150], books(world)[1100]) == (0, held, before - 44)
    (number,) = (n.number for n in found.notes if n.invoice.identity.billing_account == "lost")
    refund_invoice(world.engine, sent["lost"], None, gateway=gateway, reason="r", actor="ada", note=number)
    agrees(world, gateway)
    assert books(world).get(2150, 0) == 0
    again = issue_credit_notes(world.engine, up_to=OCTOBER.end, now=NOW, actor="ada")
    assert (again.notes, [name for name, _ in again.blocked]) == ((), ["good"])
