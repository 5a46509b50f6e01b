"""Credit that is bought where it runs low: by rule, once, within its limit; and by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from sqlalchemy.exc import DBAPIError

from billing.bills.credits import Grant, GrantKind
from billing.bills.tax import TaxMode, TaxRules
from billing.bills.top_ups import TopUpRule
from billing.commands.decide_proposal import decide, propose
from billing.commands.grant_credit import grant_credit, invoice_credit, void_credit
from billing.commands.keep_accounts import add_account, add_entity
from billing.commands.set_tax import set_tax
from billing.commands.show_invoices import invoice_list
from billing.commands.top_up_credit import set_top_up, top_up_by_hand, top_up_credits, top_up_rules
from billing.commands.trial_balance import trial_balance
from billing.errors import CreditRefused
from billing.invoicing.credit_store import GivenCredit
from billing.invoicing.invoice_check import check_document
from billing.invoicing.invoice_file import invoice_file
from billing.invoicing.tax_store import DatedTaxRules
from billing.money import plain
from billing.posting.proposal_store import ProposalKind
from billing.presentation.ubl import ubl_of
from billing.presentation.view import view_of
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.period import reconcile_period
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, PLAN, SINCE
from tests.integration.billing.conftest import World
from tests.integration.billing.test_credits import assert_the_liability_is_what_is_left, balance, close
from tests.ubl_rules import broken_rules

LATER = datetime(2026, 10, 20, tzinfo=UTC)
RULE = TopUpRule("acme", "USD", Decimal(20), Decimal(50), Decimal(150), SINCE, 12)


def bought(world: World, now: datetime = LATER) -> list[tuple[Decimal, Decimal]]:
    return [(each.left, each.amount) for each in top_up_credits(world.engine, now=now, actor="timer")]


def settle(world: World, grant_id: str, at: datetime = LATER) -> None:
    number = propose(
        world.engine, ProposalKind.SETTLE_CREDIT, grant_id, {"paid_at": at.isoformat()}, document="bank", now=at,
        actor="ada",
    )  # fmt: skip
    decide(world.engine, number, approved=True, now=at, actor="bob")


def test_credit_is_bought_once_where_it_runs_low_and_never_beyond_the_months_limit(world: World) -> None:
    world.customers("acme", "bolt")
    assert set_top_up(world.engine, RULE, actor="ada")
    assert not set_top_up(world.engine, RULE, actor="ada")
    assert [(r.below, r.amount) for r in top_up_rules(world.engine, at=LATER)] == [(20, 50)]
    assert bought(world, SINCE.replace(year=2020)) == []
    assert bought(world) == [(0, 50)]
    assert bought(world) == []  # the first is not paid yet, and counts
    (grant_id, expires) = world.rows("select grant_id, expires_at from ledger.credit_grants")[0]
    assert expires == LATER.replace(year=2027)
    settle(world, grant_id)
    assert bought(world) == []
    # 25,000 output tokens at 0.002 are 50: nothing of the first 50 is left for what is not invoiced yet.
    world.use("acme", output_tokens=25_000)
    world.rate()
    assert bought(world) == [(0, 50)]
    world.use("acme", output_tokens=100_000)
    world.rate()
    assert bought(world) == [(-150, 50)]
    assert bought(world) == []
    assert bought(world, NOVEMBER.start) == [(-100, 150)]
    assert world.rows("select count(*) from ledger.journal_entries where kind = 'credit_settled'") == [(1,)]


def test_a_top_up_that_is_paid_has_an_invoice_of_its_own(world: World) -> None:
    world.customers("acme")
    add_entity(world.engine, name="default", actor="ada", values={"country": "DE", "registration": "HRB 1"})
    add_account(world.engine, name="acme", actor="ada", values={"country": "FR"})
    done = [
        top_up_by_hand(world.engine, "acme", Decimal(amount), reason="wants it", now=at, actor="ada").grant_ids[0]
        for amount, at in ((500, OCTOBER.start), (80, LATER))
    ]
    assert world.count("ledger.invoices") == 0
    for grant_id in done:
        settle(world, grant_id)
    found = invoice_list(world.engine, billing_account="acme")
    assert [(d["kind"], d["number"], d["state"], d["total"], d["received"], d["amount_due"]) for d in found] == [
        ("top_up", "INV-000001", "issued_locally", 50_000, 50_000, 0),
        ("top_up", "INV-000002", "issued_locally", 8_000, 8_000, 0),
    ]
    assert [(d["period"], d["revision"]) for d in found] == [
        ("2026-10-20..2026-10-21", 0),
        ("2026-10-20..2026-10-21", 1),
    ]
    for document in found:
        typed = invoice_file(document)
        assert check_document(typed) == []
        assert broken_rules(ubl_of(typed)) == []
        (row,) = view_of(typed).groups[0].rows
        credit = document["lines"][0]["charge"].capitalize()
        price = plain(Decimal(document["total"]) / 100)
        assert (row.what, row.detail, row.price) == (f"{credit} · prepaid credit", "", price)
    # What is paid is owed as of its payment, and nothing is receivable.
    balances = {row.code: row.debit - row.credit for row in trial_balance(world.engine).rows}
    assert balances == {1020: 580, 1100: 0, 2100: -580}
    assert world.reports_tie(OCTOBER)
    # It freezes nothing: prices, tax and subscriptions may change as before.
    world.tenant("late")
    assert world.subscribe("late", billing_account="acme").created
    rules = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.2")})
    assert set_tax(world.engine, DatedTaxRules("acme", rules, SINCE, ""), actor="ada")
    world.use("acme", output_tokens=1000)
    world.rate()
    report = reconcile_period(world.engine, period=OCTOBER, now=LATER, gateway=None, log=None)
    differing = {check.name: check.differences for check in report.checks if not check.agrees}
    # Usage is put into the hourly windows without events, and is not invoiced yet.
    assert differing.keys() <= {"events are in their hour", "usage is rated", "rated lines are invoiced"}, differing


def test_a_credit_that_counts_from_its_invoice_is_used_before_it_is_paid_and_credited_if_it_never_is(
    world: World, gateway: StripeGateway
) -> None:
    world.tenant("acme", "bolt")
    world.plan(PLAN.replace("versions:", "terms: {paid_credit_from: invoice}\nversions:", 1))
    world.subscribe("acme")
    world.plan(PLAN.replace("plan: p", "plan: q"))
    world.subscribe("bolt", plan="q")
    add_entity(world.engine, name="default", actor="ada", values={"country": "DE", "registration": "HRB 1"})
    add_account(world.engine, name="acme", actor="ada", values={"country": "FR"})
    set_top_up(world.engine, RULE, actor="ada")
    assert bought(world) == [(0, 50)]
    assert bought(world) == []
    assert balance(world) == {1100: 50, 2100: -50}
    assert_the_liability_is_what_is_left(world)
    (document,) = invoice_list(world.engine, billing_account="acme")
    assert (document["state"], document["received"], document["amount_due"]) == ("issued_locally", 0, 5000)
    assert (document["issue_date"], document["due_date"]) == ("2026-10-20", "2026-11-19")
    grant_id = document["lines"][0]["charge"]
    # 10,000 output tokens at 0.002 after it was invoiced: it pays for them, and nobody has paid for it.
    world.use("acme", at=LATER, output_tokens=10_000)
    close(world, gateway)
    assert balance(world) == {1100: 50, 2100: -30, 4000: -20}
    assert_the_liability_is_what_is_left(world)
    with pytest.raises(CreditRefused, match="nothing to refund"):
        propose(world.engine, ProposalKind.REFUND_CREDIT, grant_id, {}, document="bank", now=NOW, actor="ada")
    # What is left is taken back by a credit note; what was used stays due, and is paid.
    for taken in (30, 0):
        assert void_credit(world.engine, grant_id, reason="never paid", now=NOW, actor="ada") == taken
    assert balance(world) == {1100: 20, 4000: -20}
    assert_the_liability_is_what_is_left(world)
    documents = invoice_list(world.engine, billing_account="acme")
    note = next(d for d in documents if d["kind"] == "credit_note")
    assert (note["total"], note["credits_invoice"]["number"]) == (-3000, document["number"])
    for each in (document, note):
        assert check_document(invoice_file(each)) == []
        assert broken_rules(ubl_of(invoice_file(each))) == []
    settle(world, grant_id, NOW)
    assert balance(world) == {1020: 20, 4000: -20}
    with pytest.raises(CreditRefused, match="nothing to settle"):
        settle(world, grant_id, NOW)
    assert world.reports_tie(OCTOBER, NOVEMBER)
    report = reconcile_period(world.engine, period=OCTOBER, now=NOW, gateway=gateway, log=None)
    differing = {check.name: check.differences for check in report.checks if not check.agrees}
    assert differing.keys() <= {"events are in their hour", "usage is rated"}, differing
    # By hand, too; and not where the contract says nothing of it.
    by_hand = top_up_by_hand(world.engine, "bolt", Decimal(7), reason="wants it", now=NOW, actor="ada")
    with pytest.raises(CreditRefused, match="counts from its payment"):
        invoice_credit(world.engine, by_hand.grant_ids[0], now=NOW, actor="ada")
    given = Grant("order-1", GrantKind.PAID, Decimal(12), "USD", NOW, granted_at=NOW)
    grant_credit(world.engine, GivenCredit(given, "acme", "order"), actor="ada")
    numbers = {invoice_credit(world.engine, "order-1", now=NOW, actor="ada").number for _ in range(2)}
    assert len(numbers) == 1
    assert_the_liability_is_what_is_left(world)
    settle(world, "order-1", NOW)
    assert balance(world) == {1020: 32, 2100: -12, 4000: -20}


def test_a_voided_top_up_is_bought_again_within_the_limit_and_none_after_the_rule_ends(world: World) -> None:
    world.customers("acme")
    set_top_up(world.engine, RULE, actor="ada")
    for _ in range(3):
        assert bought(world) == [(0, 50)]
        (last,) = world.rows("select grant_id from ledger.credit_grants order by recorded_at desc limit 1")[0]
        void_credit(world.engine, last, reason="card declined", now=LATER, actor="ada")
    assert bought(world) == []
    assert set_top_up(world.engine, RULE, actor="ada", ends=True)
    assert not set_top_up(world.engine, RULE, actor="ada", ends=True)
    assert bought(world, NOVEMBER.start) == []


def test_credit_is_bought_by_hand_whatever_the_rule_says(world: World) -> None:
    world.customers("acme")
    set_top_up(world.engine, RULE, actor="ada")
    done = top_up_by_hand(world.engine, "acme", Decimal(500), reason="wants it", now=LATER, actor="ada")
    assert (done.left, done.amount, done.currency) == (0, 500, "USD")
    assert bought(world) == []
    for account, amount, told in (("nobody", "5", "no billing account"), ("acme", "0.001", "can be paid"),
                                  ("acme", "-5", "more than nothing")):  # fmt: skip
        with pytest.raises(CreditRefused, match=told):
            top_up_by_hand(world.engine, account, Decimal(amount), reason="r", now=OCTOBER.start, actor="ada")


def test_a_rule_that_says_nothing_is_refused_and_none_is_ever_changed(world: World) -> None:
    world.customers("acme")
    for below, amount, limit, told in (
        ("-1", "5", "5", "not negative"), ("0", "0", "5", "more than nothing"), ("0", "5.001", "9", "can be paid"),
        ("0", "5", "4", "less than one"), ("0", "0.01", "1000000", "1,000 top-ups a month"),
    ):  # fmt: skip
        rule = TopUpRule("acme", "USD", Decimal(below), Decimal(amount), Decimal(limit), SINCE)
        with pytest.raises(CreditRefused, match=told):
            set_top_up(world.engine, rule, actor="ada")
    set_top_up(world.engine, RULE, actor="ada")
    for statement in ("update ledger.top_up_rules set below = 1", "delete from ledger.top_ups"):
        with pytest.raises(DBAPIError, match=r"append-only|permission denied"):
            world.execute(statement)
