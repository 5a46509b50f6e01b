"""The gated close of a month: states, the cut, gates, two people, evidence; on the line from Kafka to Stripe."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import product
from pathlib import Path
from threading import Timer
from typing import Any, Final

import pytest
from sqlalchemy.exc import DBAPIError

from billing.bills.tax import TaxMode, TaxRules
from billing.commands.change_subscription import cancel_subscription, change_subscription
from billing.commands.correct_invoice import find_invoice, reissue, void_invoice
from billing.commands.decide_proposal import decide, propose
from billing.commands.keep_accounts import add_entity
from billing.commands.rate_period import rate_period
from billing.commands.send_invoices import Outcome
from billing.commands.set_tax import set_tax
from billing.commands.sync_stripe import sync_stripe
from billing.commands.trial_balance import trial_balance
from billing.database import raw, transaction
from billing.errors import ProposalRefused
from billing.invoicing.tax_store import DatedTaxRules
from billing.ledger.journal import AccountCode
from billing.periods import BillingPeriod, parse_period
from billing.posting.period_closing import close_book
from billing.posting.proposal_store import ProposalKind
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.close import close_store, freezing
from reconciliation.close.deciding import CARRIED_OUT, Worth, approve, propose_reopening, release, waive
from reconciliation.close.evidence.verifying import verify_evidence
from reconciliation.close.evidence.writing import write_evidence
from reconciliation.close.freezing import keeping, keeping_late
from reconciliation.close.gates import gate_store
from reconciliation.close.gates.collecting import quarantined
from reconciliation.close.gates.cut_checks import CutChecks
from reconciliation.close.gates.evaluating import Outside, evaluate, evaluate_waivable
from reconciliation.close.gates.gate import Found, Gate, Result
from reconciliation.close.preparing import Preparing
from reconciliation.close.run_context import Run
from reconciliation.close.running import CloseRun, run_close
from reconciliation.close.states import CUT, Event, State, after, book_after
from reconciliation.close.status import close_status
from reconciliation.errors import CloseRefused
from serving_adapter.events import decode
from serving_adapter.identity import event_id_of, identity_of
from streams.ingest.logs import Log
from tests.billing_builders import NOVEMBER, NOW, OCTOBER, PLAN, SINCE
from tests.fixtures_stripe_twin import act
from tests.integration.billing.conftest import Crash
from tests.integration.billing.test_exchange_rates import book, set_rate
from tests.integration.reconciliation.conftest import Line, event
from tests.integration.reconciliation.forgeries import (
    OF_REOPENED,
    Change,
    assert_forgery_is_found,
    broken,
    edited,
    files,
    forge_manifest,
)

SEPTEMBER: Final = parse_period("2026-09")
MIDDLE: Final = OCTOBER.start + timedelta(days=14)
WITHOUT_A_PRICE: Final = (
    "plan: q\ncurrency: USD\nversions:\n  - version: v1\n    from: 2026-01-01\n    charges:\n"
    '      - {key: out, model: per_unit, metric: gpu_second, price: "1", where: {model: other}}\n'
)
PRICED_FROM_OCTOBER: Final = (
    "  - version: v2\n    from: 2026-10-01\n    charges:\n"
    '      - {key: out, model: per_unit, metric: output, price: "1"}\n'
)
BY_QUARTER: Final = """\
plan: by-quarter
currency: USD
terms: {period: quarter, tier_continuity: prorate}
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: base, model: flat, fee: "92"}
      - key: out
        model: graduated
        metric: output
        tiers: [{up_to: 1200, price: "0.5"}, {price: "0.1"}]
        discount: "0.2"
        minimum: "10000"
"""
STEPS: Final = (
    "collected", "frozen", "drafted", "fees recognised", "built", "reconciled", "sent", "finalized", "accounts closed",
    "books closed",
)  # fmt: skip


def run(line: Line, month: BillingPeriod = OCTOBER, **changed: Any) -> CloseRun:
    values: dict[str, Any] = {"gateway": line.gateway, "log": line.log, "now": NOW, "actor": "ada"}
    return run_close(line.engine, month, **(values | changed))


def states(line: Line) -> dict[str, str]:
    with transaction(line.engine) as connection:
        return {name: each.state.value for name, each in close_store.standings(connection, OCTOBER.name).items()}


def waive_all(line: Line, gate: Gate, but: str = "") -> list[str]:
    found = evaluate_waivable(line.engine, OCTOBER, now=NOW)
    keys = [each.key for each in found[gate].open if each.key != but] if but else None
    worth = Worth(Decimal(0), Decimal(1), "USD")
    return waive(line.engine, OCTOBER, gate, found, keys=keys, reason="looked at", worth=worth, actor="cyd")


def test_a_month_is_closed_by_two_people_and_shown_by_its_evidence(open_line: Line, tmp_path: Path) -> None:
    line = open_line
    assert_no_book_closes_beside_its_close(line)
    # Nothing was ever said by r1's boot but its event: that no more is missing somebody has to say
    assert run(line).problems == ["acme: not frozen: complete_to/acme: None"]
    assert waive_all(line, Gate.R1) == ["complete_to/acme"]
    first = run(line, actor="dan")
    assert (first.problems, states(line)) == ([], {"acme": "reconciled"})
    assert all(first.results[gate].compared for gate in (Gate.R2, Gate.R3, Gate.R4, Gate.R5A))
    # Who may send invoices issues none that a close has begun with; who began to collect has prepared it, too
    (left,) = line.send(line.gateway).invoices
    assert (left.outcome, "the close of 2026-10" in str(left.reason)) == (Outcome.LATER, True)
    with pytest.raises(DBAPIError, match="close of 2026-10 for acme is not approved"):
        line.execute("update ledger.invoices set state = 'approved'")
    assert line.rows("select state, sending_step from ledger.invoices") == [("draft", "compared")]
    for preparer in ("ada", "dan"):
        with pytest.raises(CloseRefused, match="another person"):
            approve(line.engine, OCTOBER, actor=preparer)
        with pytest.raises(DBAPIError, match="by who prepared it"):
            line.execute(
                "insert into ledger.close_approvals (content_no, approved_by, alone)"
                " select content_no, :actor, false from ledger.close_contents", actor=preparer,
            )  # fmt: skip
    waiting = close_status(line.engine, OCTOBER)["to_sign"]
    with pytest.raises(CloseRefused, match=f"what waits to be signed has the hash {waiting['hash']}, not 0a"):
        approve(line.engine, OCTOBER, actor="bob", seen="0a")
    approve(line.engine, OCTOBER, actor="bob", seen=waiting["hash"])
    assert close_status(line.engine, OCTOBER)["to_sign"] is None
    with pytest.raises(CloseRefused, match="nothing of 2026-10 waits to be signed"):
        approve(line.engine, OCTOBER, actor="bob", seen=waiting["hash"])
    assert_what_is_booked_otherwise_is_not_closed(line)
    # The torn message is nobody's: it holds up the book alone
    assert [text.split(":")[0] for text in run(line).problems] == ["R9"]
    assert_only_what_has_no_answer_yet_waits(line)
    assert states(line) == {"acme": "closed"}
    with pytest.raises(DBAPIError, match="the close of 2026-10 has begun: it closes the book of default itself"):
        line.execute("update ledger.accounting_periods set state = 'closed' where month = '2026-10'")
    with pytest.raises(CloseRefused, match="cannot be waived"):
        waive_all(line, Gate.R3)
    assert_explained_as_it_was_seen(line)
    waive_all(line, Gate.R9)
    book(line, "2026-10-05", (1100, "EUR", "100", "acme"), (4000, "EUR", "-100", ""))
    busy = Busy(line)
    (told,) = run(line, gateway=busy, log=busy.log).problems
    assert told.startswith("the book of default:")
    set_rate(line, "1.1", "2026-10-01")
    set_rate(line, "1.2", "2026-10-31")
    assert run(line, gateway=busy, log=busy.log).problems == []
    busy.join()
    assert states(line) == {"acme": "closed", "book default": "closed"}
    assert line.rows("select state from ledger.accounting_periods where month = '2026-10'") == [("closed",)]

    counts = {t: line.count(f"ledger.{t}") for t in ("close_transitions", "close_gate_results", "journal_entries")}
    assert run(line).moved == {}
    assert {table: line.count(f"ledger.{table}") for table in counts} == counts
    written = write_evidence(line.engine, OCTOBER, tmp_path / "a", tar=tmp_path / "a.tar")
    line.send_events(event(4))  # late usage is the next month's
    assert run(line).problems == []
    assert write_evidence(line.engine, OCTOBER, tmp_path / "b", tar=tmp_path / "b.tar") == written
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert broken(tmp_path / "a.tar") == broken(tmp_path / "a") == set()
    # No money moved in October in the twin, whose clock is the machine's; nobody is priced by single events, late, or
    # reopened
    nothing = {check.name for check in verify_evidence(tmp_path / "a") if not check.compared}
    assert nothing == {
        "Stripe's money is the journal's", "single events are what was signed", "what came late is billed as rated",
        "issued documents are as signed",
    }  # fmt: skip
    assert_what_nobody_signs_is_there(tmp_path / "a")
    assert_all_that_was_booked_is_there(line, tmp_path / "a")
    (approval,) = [json.loads(text) for text in (tmp_path / "a/signatures/approvals.jsonl").read_text().splitlines()]
    assert (approval["prepared_by"], approval["approved_by"], approval["alone"]) == ("dan", "bob", False)
    assert_forgery_is_found(tmp_path / "a", written.manifest)


def assert_what_is_booked_otherwise_is_not_closed(line: Line) -> None:
    """Once it is issued: before that nothing of it is booked."""
    booked = "update ledger.journal_entries set source = source || {} where kind = 'invoice'"

    def otherwise(name: str) -> None:
        if name == "finalized":
            line.tamper("ledger.journal_entries", booked.format("""'{"invoice_id": ""}'"""))

    told, *_ = (text for text in run(line, checkpoint=otherwise).problems if text.startswith("acme"))
    assert told.startswith("acme: R5b: issued invoices are booked: 1100/acme/USD: ")
    assert states(line) == {"acme": "finalized"}
    its_own = "jsonb_build_object('invoice_id', (select invoice_id from ledger.invoices))"
    line.tamper("ledger.journal_entries", booked.format(its_own))


def test_what_stripe_needs_a_person_for_is_left_by_one_who_has_not_prepared_it(open_line: Line) -> None:
    line = open_line
    waive_all(line, Gate.R1)
    run(line)
    # A later attempt of a request that is cut: it takes that one's place in what is billed next, not in this
    line.send_events(event(2, attempt=2, timestamp="2026-11-01T00:00:05Z"))
    with transaction(line.engine) as connection:
        compared = CutChecks(connection, lambda name: None)
        for cut in freezing.cuts(connection, OCTOBER.name, {"acme"}):
            compared.add(cut)
    assert sum(check.compared for check in compared.checks) > 5
    assert [check.differences for check in compared.checks if check.differences] == []
    approve(line.engine, OCTOBER, actor="bob")
    ((draft,),) = line.rows("select stripe_invoice_id from ledger.invoices")
    line.stripe.v1.invoices.add_lines(draft, {"lines": [{"amount": 5, "description": "by hand"}]})
    run(line)
    assert states(line) == {"acme": "parked"}
    waive_all(line, Gate.R9)
    (told,) = (text for text in run(line).problems if text.startswith("the book"))
    assert told.startswith("the book of default: acme is parked, and nobody has left it: ")
    with pytest.raises(CloseRefused, match="ada has prepared acme: another person leaves it"):
        approve(line.engine, OCTOBER, actor="ada", leave=["acme"], reason="it is looked at")
    approve(line.engine, OCTOBER, actor="bob", leave=["acme"], reason="it is looked at")
    run(line)
    assert states(line) == {"acme": "parked", "book default": "closed"}
    assert release(line.engine, OCTOBER, "acme", actor="bob", reason="mended").state is State.APPROVED


class Busy(StripeGateway):
    """A platform that goes on while its books are closed: a customer pays in parts, some before Stripe's money is
    listed, some of it taken in after that; events of the next month come, are applied while one waits for them, and go
    on."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.limiter, self.legal_entity, self.live = line.gateway.limiter, line.gateway.legal_entity, line.gateway.live
        self._number = 100
        self._applying: Timer | None = None
        ((self._invoice,),) = line.rows("select stripe_invoice_id from ledger.invoices")

    def get(self, path: str, target: str = "", **parameters: Any) -> Any:
        """As Stripe answers."""
        is_listing = (path, target) == ("/v1/balance_transactions", "")
        if is_listing:
            act(self._line.twin, "pay", invoice=self._invoice, amount=1)
        found = self._line.gateway.get(path, target, **parameters)
        if is_listing:
            act(self._line.twin, "pay", invoice=self._invoice, amount=1)
            assert sync_stripe(self._line.engine, gateway=self._line.gateway, now=NOW).problems == ()
            act(self._line.twin, "pay", invoice=self._invoice, amount=1)
        return found

    def log(self) -> Log:
        """The topic, with an event that is applied a little later, together with one that came after it."""
        if self._applying is not None and self._applying.is_alive():
            return self._line.log()
        first, second = (
            event(self._number + n, timestamp="2026-11-01T10:00:00Z", output_tokens=self._number) for n in (0, 1)
        )
        self._number += 2
        self._line.produce(first)
        found = self._line.log()
        self._line.produce(second)
        self._applying = Timer(0.3, self._line.apply, (first, second))
        self._applying.start()
        return found

    def join(self) -> None:
        """All that was sent is applied."""
        if self._applying is not None:
            self._applying.join()


def assert_no_book_closes_beside_its_close(line: Line) -> None:
    """Two people close by themselves the book of a month in which nobody is billed, and no other."""

    def proposed(month: str) -> int:
        return propose(
            line.engine, ProposalKind.CLOSE_BOOK, "default", {"month": month}, document="paper", now=NOW, actor="ada",
            others=CARRIED_OUT,
        )  # fmt: skip

    with pytest.raises(CloseRefused, match="1 billing accounts take part in 2026-10: `tollbook close run 2026-10`"):
        proposed("2026-10")
    decide(line.engine, proposed("2025-12"), approved=True, now=NOW, actor="bob", others=CARRIED_OUT)
    assert line.rows("select month, state from ledger.accounting_periods") == [("2025-12", "closed")]


def assert_explained_as_it_was_seen(line: Line) -> None:
    """What the same key becomes later is explained by itself; a key that is given twice, once."""
    for now in ("106", "400"):
        moved = Found("movement is explained", "acme/m1/USD", "100", now)
        results = {Gate.R11: Result(Gate.R11, 1, (moved,))}
        keys = [moved.key, moved.key]
        done = waive(line.engine, OCTOBER, Gate.R11, results, keys=keys, reason="a launch", worth=None, actor="cyd")
        assert done == [moved.key]
    found = "select seen_left, seen_right from ledger.close_waivers where gate = 'R11' order by waiver_no"
    assert line.rows(found) == [("100", "106"), ("100", "400")]


def assert_what_nobody_signs_is_there(folder: Path) -> None:
    """Stripe's invoice with all its fields, registers, a page to read and to print."""
    balance, there = [json.loads(text) for text in (folder / "content/stripe.jsonl").read_text().splitlines()]
    assert (balance["object"], balance["legal_entity"], len(balance["available"])) == ("balance", "default", 1)
    (issued,) = [json.loads(text) for text in (folder / "content/invoices.jsonl").read_text().splitlines()]
    assert (there["object"], there["id"], there["status"]) == ("invoice", issued["stripe_invoice_id"], "open")
    with (folder / "content/registers/manual_journals.csv").open(newline="") as rows:
        by_hand = [(row["code"], row["debit"], row["credit"], row["approved_by"]) for row in csv.DictReader(rows)]
    assert by_hand == [("1100", "100", "", "bob"), ("4000", "", "100", "bob")]
    with (folder / "content/registers/number_series.csv").open(newline="") as rows:
        assert [row["written"] for row in csv.DictReader(rows)] == [issued["number"]]
    page = (folder / "renderings/summary.html").read_text()
    assert page.count("<svg") == 2
    assert (folder / "renderings/summary.pdf").read_bytes().startswith(b"%PDF")


def assert_all_that_was_booked_is_there(line: Line, folder: Path) -> None:
    """What exchange rates did to the books is booked when they are closed, and sealed before."""
    with (folder / "content/trial_balance.csv").open(newline="") as rows:
        moved = [
            (int(row["code"]), row["currency"], Decimal(row["debit"]) - Decimal(row["credit"]))
            for row in csv.DictReader(rows)
        ]
    booked = trial_balance(line.engine, accounting_period=OCTOBER.name).rows
    shown = {(code, currency): amount for code, currency, amount in moved if amount}
    assert shown == {
        (each.code, each.currency): each.debit - each.credit for each in booked if each.debit or each.credit
    }
    assert shown[AccountCode.FX_GAIN_LOSS.code, "USD"] == -10


def test_one_account_that_is_stuck_holds_up_no_other(open_line: Line, tmp_path: Path) -> None:
    line = open_line
    line.tenant("beta", "changed", "delta", "gamma", "gone", "idle", "left", "quarterly", "shared", "trial")
    bill_september_of_who_then_left(line, "gone")
    close_september_without_an_invoice(line, "idle")
    line.plan(PLAN.replace("plan: p", "plan: by-anniversary\nterms: {anchor: anniversary}"))
    add_entity(line.engine, name="eu", actor="ada", currency="USD", values={})
    line.subscribe("beta", plan="by-anniversary", starts_at=datetime(2026, 8, 17, tzinfo=UTC), legal_entity="eu")
    # Gone before the month, within a billing period that ends in it
    line.subscribe("left", plan="by-anniversary", starts_at=datetime(2026, 8, 20, tzinfo=UTC), legal_entity="eu")
    cancel_subscription(line.engine, tenant_id="left", at=datetime(2026, 9, 25, tzinfo=UTC), actor="ada")
    line.plan(BY_QUARTER)
    line.subscribe("quarterly", plan="by-quarter", starts_at=OCTOBER.start, legal_entity="eu")
    line.subscribe("delta")
    line.subscribe("gamma", legal_entity="eu")
    line.subscribe("shared", billing_account="acme")
    cancel_subscription(line.engine, tenant_id="shared", at=MIDDLE, actor="ada")
    line.subscribe("shared", billing_account="gamma", starts_at=MIDDLE)
    line.plan(PLAN.replace("plan: p", "plan: strict\nterms: {bill_statuses: [ok]}"))
    line.subscribe("changed")
    cancel_subscription(line.engine, tenant_id="changed", at=MIDDLE, actor="ada")
    line.subscribe("changed", plan="strict", starts_at=MIDDLE)
    line.plan(PLAN.replace("plan: p", "plan: on-trial\nterms: {trial_days: 14}"))
    line.subscribe("trial", plan="on-trial", starts_at=OCTOBER.start)
    cancel_subscription(line.engine, tenant_id="trial", at=OCTOBER.start + timedelta(days=7), actor="ada")
    line.send_events(
        event(15, tenant_id="gone", timestamp="2026-09-11T10:00:00Z"),
        event(18, tenant_id="idle", timestamp="2026-09-11T10:00:00Z"),
        event(19, tenant_id="left", timestamp="2026-09-22T10:00:00Z"),
        event(4, tenant_id="trial", timestamp="2026-10-03T10:00:00Z"),
        event(5, tenant_id="beta", timestamp="2026-10-10T10:00:00Z"), event(6, tenant_id="beta"),
        event(7, tenant_id="gamma"), event(7, tenant_id="gamma", output_tokens=7),
        event(8, tenant_id="delta"), event(8, tenant_id="delta", output_tokens=7),
        event(9, tenant_id="shared", timestamp="2026-10-10T10:00:00Z"), event(10, tenant_id="shared"),
        event(11, tenant_id="changed", timestamp="2026-10-10T10:00:00Z", status="aborted"),
        event(12, tenant_id="changed", status="aborted"), event(13, tenant_id="changed"),
        event(21, tenant_id="quarterly"), event(22, tenant_id="quarterly", status="aborted"),
        event(22, tenant_id="quarterly", attempt=2, timestamp="2026-11-01T00:00:01Z"),
    )  # fmt: skip
    waive_all(line, Gate.R1)
    held = run(line)
    green = dict.fromkeys(("acme", "beta", "changed", "gone", "idle", "left", "quarterly", "trial"), "reconciled")
    assert states(line) == green | {"delta": "collecting", "gamma": "collecting"}
    assert [text.split("/")[0] for text in held.problems] == [
        "delta: not frozen: quarantine", "gamma: not frozen: quarantine",
    ]  # fmt: skip
    assert_no_message_is_overlooked(line)
    periods = "select billing_account, service_start::date::text from ledger.invoices order by 1"
    assert line.rows(periods) == [
        ("acme", "2026-10-01"), ("beta", "2026-09-17"), ("changed", "2026-10-01"), ("gone", "2026-09-01"),
        ("gone", "2026-09-01"), ("idle", "2026-10-01"), ("left", "2026-09-20"),
    ]  # fmt: skip
    assert_no_later_close_rates_what_is_cut(line)
    ((deltas,),) = line.rows("select 'quarantine/' || quarantine_id from usage.quarantine where tenant_id = 'delta'")
    waive_all(line, Gate.R9, but=deltas)
    alter_an_invoice(line, "acme", 1)
    assert [text.split(":")[0] for text in run(line).problems] == ["delta"]
    assert states(line) == green | {"delta": "collecting", "gamma": "reconciled"}
    assert_damage_holds_all_that_pay(line, "shared", {"acme", "gamma"})
    # What came late to September is cut, rated again and compared with its documents by October's close
    late = "select period_start::date::text, tenants from ledger.close_cuts where period_end <= '2026-10-01'"
    assert line.rows(late) == [("2026-09-01", ["gone", "idle"])]
    own = "select tenants from ledger.close_cuts where period_start = '2026-09-20'"
    assert line.rows(own) == [(["left"],)]
    assert_damage_holds_all_that_pay(line, "gone", {"gone"})
    assert_what_goes_on_is_cut_until_the_months_end(line)
    assert_damage_to_what_goes_on_is_named_and_holds_its_payer(line, "quarterly")
    assert_what_changes_later_is_none_of_the_cut(line, "quarterly")
    # Gates that were asked of some accounts at a time tell of all
    with transaction(line.engine) as connection:
        told = gate_store.latest(connection, OCTOBER.name)
    asked = evaluate(line.engine, OCTOBER, now=NOW, outside=Outside())
    assert [told[gate].result.compared for gate in (Gate.R2, Gate.R3)] == [
        asked[gate].compared for gate in (Gate.R2, Gate.R3)
    ]
    approve(line.engine, OCTOBER, actor="bob", leave=["delta"], reason="the sender is asked")
    waive_all(line, Gate.R9)
    waive_all(line, Gate.R11, but="beta/any model/USD")
    # What is not what was drawn up is not issued; all others are
    assert {text.split(":")[0] for text in run(line).problems} == {"acme", "R11"}
    assert states(line)["acme"] == "drafted"
    told = run(line).problems
    assert told[0].startswith("billing account acme has no invoice: 1 stored invoices are not what was drawn up")
    assert "R11: 1 differences hold up the book of eu" in " ".join(told), "asked whoever else is stuck"
    assert {text.split(": ")[1] for text in told[1:] if text.startswith("acme")} == {"R5a"}
    alter_an_invoice(line, "acme", -1)
    run(line)
    approve(line.engine, OCTOBER, actor="bob")
    # What finance makes by hand for acme, and an account of ours that nobody knows, are nobody else's
    stray = line.stripe.v1.invoices.create({"customer": customer_of(line, "acme")})
    told, _ = run(line).problems
    assert told == f"acme: R5b: finalized invoices are in Stripe: {stray.id} (without our id)/acme: None / draft"
    line.stripe.v1.invoices.delete(stray.id)
    # What is the other legal entity's own holds up its book alone
    assert [text.split(": ")[1] for text in run(line).problems] == ["1 differences hold up the book of eu"]
    assert (states(line)["book default"], "book eu" in states(line)) == ("closed", False)
    leave_what_has_no_price(line, "odd")
    why = "the book of eu: odd is parked, and its usage is not accrued: tenant odd:"
    assert any(text.startswith(why) for text in run(line).problems)
    line.plan(WITHOUT_A_PRICE + PRICED_FROM_OCTOBER)
    assert [text.split(":")[0] for text in run(line).problems] == ["R11"]
    waive_all(line, Gate.R11)
    with transaction(line.engine) as connection:
        close_book(connection, "eu", SEPTEMBER.name, NOW)
    assert run(line).problems == []
    accounts = ("acme", "beta", "changed", "gamma", "gone", "idle", "left", "quarterly", "trial")
    closed = dict.fromkeys((*accounts, "book default", "book eu"), "closed")
    assert states(line) == closed | {"delta": "parked", "odd": "parked"}
    # Two legal entities in one close: numbers, a book and a journal of each.
    assert line.rows("select written from ledger.issued_numbers order by 1") == [
        *((f"EU-00000{number}",) for number in range(1, 4)), *((f"INV-00000{number}",) for number in range(1, 6)),
    ]  # fmt: skip
    write_evidence(line.engine, OCTOBER, tmp_path)
    assert broken(tmp_path) == set()
    assert_what_came_late_is_rated_again(tmp_path)
    assert_what_goes_on_is_rated_again(tmp_path)
    assert_the_next_month_carries_what_came_late(line, "quarterly")
    assert_what_was_closed_without_an_invoice_is_not_billed_twice(line, "idle")
    assert {path.name for path in tmp_path.rglob("journal-*")} == {"journal-default.jsonl", "journal-eu.jsonl"}
    assert_an_adjustment_in_stripe_is_there(tmp_path)
    # A conflict keeps what came first: its usage is accrued though nobody is billed
    assert line.rows("select count(*) from ledger.rated_lines where tenant_id = 'delta'") != [(0,)]
    with pytest.raises(CloseRefused, match="say why"):
        release(line.engine, OCTOBER, "delta", actor="bob", reason="")
    assert release(line.engine, OCTOBER, "delta", actor="bob", reason="answered").state is State.COLLECTING
    assert_what_is_released_late_has_its_evidence(line, "delta", tmp_path)


def assert_what_is_released_late_has_its_evidence(line: Line, account: str, folder: Path) -> None:
    """After its book was closed; what its gates were then stays as it was told."""
    asked = files(folder)["content/gates.jsonl"].splitlines()
    run(line)
    assert states(line)[account] == "reconciled"
    approve(line.engine, OCTOBER, actor="bob")
    line.send_events(event(17, timestamp="2026-11-01T10:00:00Z"), b"torn")
    assert run(line).problems == []
    assert states(line)[account] == "closed"
    write_evidence(line.engine, OCTOBER, folder)
    assert broken(folder) == set()
    ((invoice,),) = line.rows(f"select invoice_id::text from ledger.invoices where billing_account = '{account}'")
    assert invoice in (folder / "content/journal-default.jsonl").read_text()
    told = files(folder)["content/gates.jsonl"].splitlines()
    for_books = (b'"gate":"R1"', b'"gate":"R9"', b'"gate":"R11"')
    assert [x for x in told if any(g in x for g in for_books)] == [x for x in asked if any(g in x for g in for_books)]


def leave_what_has_no_price(line: Line, tenant: str) -> None:
    """An account whose usage cannot be rated, of the legal entity whose book is open, is left by the approval."""
    line.plan(WITHOUT_A_PRICE)
    line.tenant(tenant)
    line.subscribe(tenant, plan="q", legal_entity="eu")
    line.send_events(event(16, tenant_id=tenant))
    waive_all(line, Gate.R1)
    waive_all(line, Gate.R11)
    run(line)
    approve(line.engine, OCTOBER, actor="bob", leave=[tenant], reason="nobody knows its price")


def customer_of(line: Line, account: str) -> str:
    query = "select stripe_customer_id from ledger.stripe_customers where billing_account = :account"
    ((customer,),) = line.rows(query, account=account)
    return str(customer)


def alter_an_invoice(line: Line, account: str, minor: int) -> None:
    """By who owns the tables: a line of it says so many minor units more."""
    line.tamper(
        "ledger.invoice_lines",
        f"update ledger.invoice_lines set amount_minor = amount_minor + {minor} where metric = 'output' and invoice_id"
        f" in (select invoice_id from ledger.invoices where billing_account = '{account}')",
    )


def bill_september_of_who_then_left(line: Line, tenant: str) -> None:
    """What comes late of it is an invoice of its own, which October's close issues."""
    line.plan()
    line.subscribe(tenant)
    cancel_subscription(line.engine, tenant_id=tenant, at=SEPTEMBER.end, actor="ada")
    line.send_events(event(14, tenant_id=tenant, timestamp="2026-09-10T10:00:00Z"))
    assert line.close(SEPTEMBER).problems == []
    with transaction(line.engine) as connection:
        close_book(connection, "default", SEPTEMBER.name, NOW)


def close_september_without_an_invoice(line: Line, tenant: str) -> None:
    """There was nothing to bill; what comes late is on October's invoice."""
    line.subscribe(tenant)
    with transaction(line.engine) as connection:
        standing = close_store.Standing(SEPTEMBER.name, "default", tenant)
        for each in (Event.COLLECT, Event.FREEZE, Event.DRAFT, Event.RECONCILE, Event.APPROVE, Event.FINALIZE):
            (standing,) = close_store.move(connection, [standing], each, "ada")
        close_store.move(connection, [standing], Event.CLOSE, "ada")


def assert_what_was_closed_without_an_invoice_is_not_billed_twice(line: Line, account: str) -> None:
    """What came to September is on October's invoice: no invoice of September's own is drawn up any more. What comes
    now is asked of by the close that bills it, though another month's has rated it."""
    with pytest.raises(CloseRefused, match=f"{account} was closed without an invoice for 2026-09, .* is on INV-"):
        propose_reopening(line.engine, SEPTEMBER, account, actor="ada", reason="it used something", now=NOW)
    line.send_events(event(20, tenant_id=account, timestamp="2026-09-12T10:00:00Z"))
    for month in (OCTOBER, NOVEMBER, NOVEMBER):
        rate_period(line.engine, period=SEPTEMBER, now=NOW, keep=keeping_late(month, "ada"))
    cuts = "select month from ledger.close_cuts where period_start = '2026-09-01' and :name = any(tenants) order by 1"
    assert line.rows(cuts, name=account) == [("2026-10",), ("2026-10",), ("2026-11",)]


def assert_what_came_late_is_rated_again(folder: Path) -> None:
    """From what is in the pack alone: what it was rated from, and what other documents had billed of it before."""
    file, whole = folder / "content/accounts.jsonl", files(folder)
    late = {
        account["billing_account"]: [(each["tenant_id"], each["period"], len(each["billed_before"])) for each in found]
        for account in map(json.loads, file.read_text().splitlines())
        if (found := account["late"])
    }
    assert late == {"gone": [("gone", "2026-09", 1)], "idle": [("idle", "2026-09", 0)]}

    def of_late(change: Callable[[Any], Any]) -> Change:
        return edited(lambda account: [change(each) for each in account["late"]])

    billed, frozen = "what came late is billed as rated", "frozen usage is that of its cut"
    for change, checks in (
        (of_late(lambda each: each["usage"][0].update(output_tokens=7)), {frozen, "rated again"}),
        (of_late(lambda each: each["rated_lines"][0].update(amount="7")), {"rated again", billed}),
        (of_late(lambda each: each["billed_before"].clear()), {billed}),
        (edited(lambda account: account["late"].clear()), {billed}),
    ):  # fmt: skip
        file.write_text(change(file.read_text()))
        (folder / "signatures/manifest.sha256").write_text(forge_manifest(folder / "content"))
        assert broken(folder) == checks | {"contents are what was signed"}
        for path, data in whole.items():
            (folder / path).write_bytes(data)


def accruals(line: Line, account: str, month: BillingPeriod = OCTOBER) -> dict[Gate, list[Found]]:
    """What R2, R3 and R4 hold an account up for, whose periods that go on are cut."""
    found = evaluate(line.engine, month, now=NOW, outside=Outside(), rated_again=[account])
    assert found[Gate.R2].compared
    assert found[Gate.R3].compared
    return {gate: held for gate in (Gate.R2, Gate.R3, Gate.R4) if (held := found[gate].held(account))}


def assert_what_goes_on_is_cut_until_the_months_end(line: Line) -> None:
    """Once, though the close has run three times: what is cut of an account is not rated again."""
    cuts = "select period_start::date::text, accrued_to, tenants from ledger.close_cuts where accrued_to is not null"
    assert line.rows(f"{cuts} order by period_start") == [
        ("2026-10-01", OCTOBER.end, ["quarterly"]), ("2026-10-17", OCTOBER.end, ["beta"]),
    ]  # fmt: skip
    # One attempt bills of a request, in the month in which that one completed
    rows = "select requests, output_tokens from ledger.frozen_usage where tenant_id = 'quarterly'"
    assert line.rows(rows) == [(1, 1000)]
    # 31 of 92 days of the fee; 1000 × 0.5 less a fifth; the minimum is of the whole quarter
    rated = "select charge_key, kind, amount from ledger.rated_lines where tenant_id = 'quarterly' order by 1, 2"
    assert [(key, kind, int(amount)) for key, kind, amount in line.rows(rated)] == [
        ("base", "fee", 31), ("out", "discount", -100), ("out", "usage", 500),
    ]  # fmt: skip


def assert_damage_to_what_goes_on_is_named_and_holds_its_payer(line: Line, account: str) -> None:
    assert accruals(line, account) == {}
    ((cut, row),) = line.rows("select cut_id, row_no from ledger.frozen_usage where tenant_id = :name", name=account)
    of_tenant = f"where tenant_id = '{account}'"
    for table, change, back, gate, named in (
        ("frozen_usage", "output_tokens = output_tokens + 1", "output_tokens = output_tokens - 1", Gate.R2,
         f"{account}/cut {cut}/row {row}"),
        ("rated_lines", "amount = amount + 1", "amount = amount - 1", Gate.R3, f"{account}/2026-Q4/out.t1/std/amount"),
        ("rated_lines", "accrued_to = period_end", f"accrued_to = '{OCTOBER.end}'", Gate.R3,
         f"{account}/2026-Q4/base/std/amount"),
    ):  # fmt: skip
        line.tamper(f"ledger.{table}", f"update ledger.{table} set {change} {of_tenant}")
        assert named in {each.key for each in accruals(line, account).get(gate, ())}
        assert accruals(line, "beta") == {}, "it is nobody else's"
        line.tamper(f"ledger.{table}", f"update ledger.{table} set {back} {of_tenant}")
    of_cut = f"update ledger.close_cuts set {{}} where cut_id = {cut}"
    for change, back, named in (
        ("tenants = '{}'", f"tenants = '{{{account}}}'", "not named"),
        ("accrued_to = null", f"accrued_to = '{OCTOBER.end}'", "ends"),
    ):
        line.tamper("ledger.close_cuts", of_cut.format(change))
        found_now = evaluate(line.engine, OCTOBER, now=NOW, outside=Outside(), rated_again=[account])[Gate.R2]
        assert f"{account}/cut {cut}/{named}" in {each.key for each in found_now.held(account)}
        line.tamper("ledger.close_cuts", of_cut.format(back))
    posting = (
        "update ledger.postings set amount = amount + {} where entry_id in (select entry_id from ledger.journal_entries"
        f" where source ->> 'tenant_id' = '{account}')"
        " and account_id in (select account_id from ledger.accounts where code = 1150)"
    )
    line.tamper("ledger.postings", posting.format(1))
    assert f"{account}/USD" in {each.key for each in accruals(line, account)[Gate.R4]}
    line.tamper("ledger.postings", posting.format(-1))
    assert accruals(line, account) == {}


def assert_what_changes_later_is_none_of_the_cut(line: Line, tenant: str) -> None:
    """A change of plan in the middle of November, and new prices, are of later months, though tiers are by share."""
    line.plan(BY_QUARTER.replace("plan: by-quarter", "plan: by-quarter-too"))
    at = NOVEMBER.start + timedelta(days=14)
    change_subscription(line.engine, tenant_id=tenant, plan="by-quarter-too", at=at, actor="ada")
    line.plan(BY_QUARTER + BY_QUARTER.partition("versions:\n")[2].replace("v1", "v2").replace("2026-01", "2026-12"))
    assert accruals(line, tenant) == {}


def assert_what_goes_on_is_rated_again(folder: Path) -> None:
    """From what is in the pack alone, and compared with the journal."""
    file, whole = folder / "content/accounts.jsonl", files(folder)
    accrued = [
        (each["tenant_id"], each["period"], each["accrued_to"], len(each["usage"]))
        for account in map(json.loads, file.read_text().splitlines())
        for each in account["accrued"]
    ]
    assert accrued == [
        ("beta", "2026-10-17..2026-11-17", "2026-11-01T00:00:00Z", 1),
        ("quarterly", "2026-Q4", "2026-11-01T00:00:00Z", 1),
    ]

    page = (folder / "renderings/summary.html").read_text()
    assert "What billing periods that go on have come to" in page

    def of_accrued(change: Callable[[Any], Any]) -> Change:
        return edited(lambda account: [change(each) for each in account["accrued"]])

    booked, frozen = "rated lines are accrued", "frozen usage is that of its cut"
    shown = "the page says what the content says"
    for change, checks in (
        (of_accrued(lambda each: each["usage"][0].update(output_tokens=7)), {frozen, "rated again"}),
        (of_accrued(lambda each: each["rated_lines"][0].update(amount="7")), {"rated again", booked, shown}),
        (of_accrued(lambda each: each.update(accrued_to="2026-10-20T00:00:00Z")), {"rated again"}),
    ):
        file.write_text(change(file.read_text()))
        (folder / "signatures/manifest.sha256").write_text(forge_manifest(folder / "content"))
        assert broken(folder) == checks | {"contents are what was signed"}
        for path, data in whole.items():
            (folder / path).write_bytes(data)


def assert_the_next_month_carries_what_came_late(line: Line, tenant: str) -> None:
    """What comes for October after it was closed is in November's cut, and booked under October's name; October's close
    accrues nothing more. The cut that bills a period has all of it."""
    posted = "select count(*) from ledger.rated_lines where tenant_id = :name"
    before = line.rows(posted, name=tenant)
    line.send_events(
        event(23, tenant_id=tenant, timestamp="2026-10-20T10:00:00Z"),
        event(24, tenant_id="beta", timestamp="2026-10-20T10:00:00Z"),
    )
    run(line)
    assert line.rows(posted, name=tenant) == before
    keep = keeping(NOVEMBER, {tenant, "beta"}, "ada", lambda connection: None)
    for name in ("2026-Q4", "2026-10-17..2026-11-17"):
        rate_period(line.engine, period=parse_period(name), now=NOW, until=NOVEMBER.end, keep=keep)
    cuts = "select accrued_to, tenants from ledger.close_cuts where month = '2026-11' order by cut_id"
    assert line.rows(cuts)[-2:] == [(NOVEMBER.end, [tenant]), (None, ["beta"])]
    counted = (
        "select tenant_id, sum(requests), sum(output_tokens) from ledger.frozen_usage join ledger.close_cuts"
        " using (cut_id) where month = '2026-11' and tenant_id = any(:names) group by 1 order by 1"
    )
    assert line.rows(counted, names=[tenant, "beta"]) == [("beta", 2, 2000), (tenant, 3, 3000)]
    booked = "select count(*) from ledger.journal_entries where source ->> 'tenant_id' = :name and kind = 'accrual'"
    assert line.rows(f"{booked} and original_period = '2026-10'", name=tenant) == [(1,)]
    for name in (tenant, "beta"):
        assert accruals(line, name, NOVEMBER) == {}
    # What October's close has cut, and signed, is what it was
    assert accruals(line, tenant) == {}


def assert_no_later_close_rates_what_is_cut(line: Line) -> None:
    """Whatever its billing period is called, and also of who is gone by then."""
    november = Run(line.engine, NOVEMBER, line.gateway, line.log, NOW, "ada", None, lambda name: None)
    for period, tenant in (("2026-09-17..2026-10-17", "beta"), ("2026-09-20..2026-10-20", "left")):
        chosen = Preparing(november)._choice((), parse_period(period)).tenants
        assert chosen is not None
        assert tenant not in chosen


def assert_an_adjustment_in_stripe_is_there(folder: Path) -> None:
    """As Stripe had it; a pack without is refused."""
    (issued,) = [
        each
        for text in (folder / "content/invoices.jsonl").read_text().splitlines()
        if (each := json.loads(text))["kind"] == "adjustment"
    ]
    objects = [json.loads(text) for text in (folder / "content/stripe.jsonl").read_text().splitlines()]
    assert (issued["period"], issued["stripe_invoice_id"]) == ("2026-09", *(
        each["id"] for each in objects if each["object"] == "invoice" and each["number"] == issued["number"]
    ))  # fmt: skip


def assert_damage_holds_all_that_pay(line: Line, tenant: str, accounts: set[str]) -> None:
    change = f"update ledger.rated_lines set amount = amount + {{}} where tenant_id = '{tenant}' and metric = 'output'"
    line.tamper("ledger.rated_lines", change.format(1))
    found = evaluate(line.engine, OCTOBER, now=NOW, outside=Outside(), rated_again=states(line))[Gate.R3]
    assert {name for name in states(line) if found.held(name)} == accounts
    line.tamper("ledger.rated_lines", change.format(-1))


def assert_no_message_is_overlooked(line: Line) -> None:
    """However many that are nobody's came before it."""
    with line.engine.connect() as rolled_back:
        rolled_back.exec_driver_sql(
            "insert into usage.quarantine (source, position, reason, detail, message, appended_at, tenant_id)"
            " select source, 1000000 + number, reason, '', '', appended_at, case when number > 10000 then 'beta' end"
            " from usage.quarantine, generate_series(1, 10001) as number where reason = 'torn' order by number"
        )
        assert len(quarantined(raw(rolled_back), OCTOBER)["beta"]) == 1
        # Of a time that is to come it says itself: it may be of any month after it was refused
        refused = (
            "insert into usage.quarantine (source, position, reason, detail, message, appended_at, tenant_id)"
            " select source, 2000000, '{}', '', '', '2026-09-30T23:59:00Z', 'gamma' from usage.quarantine limit 1"
        )
        waiting = len(quarantined(raw(rolled_back), OCTOBER)["gamma"])
        for reason, more in (("conflict", 0), ("future", 1)):
            with rolled_back.begin_nested() as nested:
                rolled_back.exec_driver_sql(refused.format(reason))
                assert len(quarantined(raw(rolled_back), OCTOBER)["gamma"]) == waiting + more
                nested.rollback()


def test_a_kill_after_any_step_resumes_to_the_same_content_and_reopening_needs_two(
    open_line: Line, tmp_path: Path
) -> None:
    line = open_line
    waive_all(line, Gate.R1)
    waive_all(line, Gate.R9)
    reached: list[str] = []

    def kill_once(name: str) -> None:
        if name not in reached:
            reached.append(name)
            if name == "fees recognised":  # after the cut, before the drafts are frozen
                line.send_events(event(4))
                taxed = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.1")})
                set_tax(line.engine, DatedTaxRules("acme", taxed, SINCE, ""), actor="ada")
            raise Crash(name)

    hashes = set()
    for _ in range(len(STEPS) + 3):
        with contextlib.suppress(Crash):
            run(line, checkpoint=kill_once)
        with transaction(line.engine) as connection:
            hashes |= {each.hash for each in close_store.latest_contents(connection, OCTOBER.name)}
        if states(line) == {"acme": "closed"} and "after it was issued" not in reached:
            assert_what_was_issued_is_what_was_signed(line)
            reached.append("after it was issued")
        if states(line).get("acme") == "reconciled":
            assert run(line).moved == {}
            if "reopened" in reached:
                approve(line.engine, OCTOBER, actor="bob")
            if reached.count("reopened") < 2:  # the second time nothing has changed, and it was approved
                assert_reopened_by_two(line)
                reached.append("reopened")
    assert set(reached) == {*STEPS, "reopened", "after it was issued"}
    assert states(line) == {"acme": "closed", "book default": "closed"}
    # Late usage waits for the next invoice; the tax rule was in time
    assert line.rows("select state, net_minor, tax_minor from ledger.invoices") == [("finalized", 602, 60)]
    assert len(hashes) == 3  # cut again each time after it was reopened, unless nothing had changed
    written = write_evidence(line.engine, OCTOBER, tmp_path)
    assert broken(tmp_path) == set()
    assert_forgery_is_found(tmp_path, written.manifest, OF_REOPENED)
    (content,) = [json.loads(text) for text in (tmp_path / "content/accounts.jsonl").read_text().splitlines()]
    assert content["tenants"][0]["late_lines"][-1]["metric"] == "output"
    with (tmp_path / "content/registers/late_usage.csv").open(newline="") as rows:
        assert [(row["metric"], row["billed_with"]) for row in csv.DictReader(rows)][-1] == ("output", "next invoice")
    with pytest.raises(CloseRefused, match="book of 2026-10 is closed"):
        propose_reopening(line.engine, OCTOBER, "acme", actor="ada", reason="late", now=NOW)
    assert_the_database_takes_what_the_states_allow(line)


def test_what_was_taken_back_and_drawn_up_anew_is_billed_by_the_close_that_was_reopened(
    open_line: Line, tmp_path: Path
) -> None:
    line = open_line
    waive_all(line, Gate.R1)
    run(line)
    approve(line.engine, OCTOBER, actor="bob")
    run(line)
    ((number,),) = line.rows("select number from ledger.invoices")
    void_invoice(line.engine, number, reason="a request was wrong", now=NOW, actor="ada")
    sync_stripe(line.engine, gateway=line.gateway, now=NOW)
    reissue(line.engine, find_invoice(line.engine, number), now=NOW, actor="ada")
    corrected = str(event_id_of(identity_of(decode(event(2)))))
    changed: dict[str, Any] = {"output_tokens": -1000, "input_tokens": -10, "cache_hit_tokens": -4}
    line.send_events(event(2, kind="correction", correction_no=1, corrects=corrected, **changed))
    assert_reopened_by_two(line)
    assert run(line).problems == []
    since = close_status(line.engine, OCTOBER)["since_signed"]
    documents = {row["what"]: row["now"] for row in since if row["what"] not in ("usage", "rated")}
    assert documents == {"credit note": "-6.02", "adjustment": "4.02"}
    approve(line.engine, OCTOBER, actor="bob")
    run(line)
    assert states(line) == {"acme": "closed"}
    assert line.rows("select kind, state, total_minor from ledger.invoices order by kind") == [
        ("adjustment", "finalized", 402), ("credit_note", "issued_locally", -602), ("usage", "void", 602),
    ]  # fmt: skip
    write_evidence(line.engine, OCTOBER, tmp_path)
    assert broken(tmp_path) == set()


def assert_the_database_takes_what_the_states_allow(line: Line) -> None:
    """Asked of every step that could be written, of accounts and of books."""
    query = "select pg_get_constraintdef(oid) from pg_constraint where conname = 'close_transitions_steps'"
    ((check,),) = line.rows(query)
    taken = line.rows(
        "select billing_account, from_state, event, to_state from unnest(array['', 'acme']) as billing_account,"
        " unnest(cast(:states as text[])) as from_state, unnest(cast(:events as text[])) as event,"
        f" unnest(cast(:states as text[])) as to_state where {check.removeprefix('CHECK ')}",
        states=list(State), events=list(Event),
    )  # fmt: skip
    allowed = set()
    for state, what, parked_from in product(State, Event, (State.COLLECTING, *CUT)):
        with contextlib.suppress(CloseRefused):
            allowed.add(("acme", state, what, after(state, what, parked_from=parked_from)))
        with contextlib.suppress(CloseRefused):
            allowed.add(("", state, what, book_after(state, what)))
    assert set(taken) == allowed


def assert_reopened_by_two(line: Line) -> None:
    number = propose_reopening(line.engine, OCTOBER, "acme", actor="ada", reason="a plan was wrong", now=NOW)
    with pytest.raises(ProposalRefused, match="your own"):
        decide(line.engine, number, approved=True, now=NOW, actor="ada", others=CARRIED_OUT)
    decide(line.engine, number, approved=True, now=NOW, actor="bob", others=CARRIED_OUT)
    assert states(line) == {"acme": "collecting"}


def assert_what_was_issued_is_what_was_signed(line: Line) -> None:
    """Reopened once it was issued: nobody signs anew what was altered meanwhile; what came since is shown."""
    assert close_status(line.engine, OCTOBER)["since_signed"] == []
    assert_reopened_by_two(line)
    line.send_events(event(5))
    line.tamper("ledger.invoices", "update ledger.invoices set due_date = due_date + 1")
    (told,) = run(line).problems
    ((invoice_id,),) = line.rows("select invoice_id from ledger.invoices")
    assert told.startswith(f"acme: R5a: issued documents are as signed: acme/{invoice_id}/due_date: ")
    assert states(line) == {"acme": "drafted"}
    line.tamper("ledger.invoices", "update ledger.invoices set due_date = due_date - 1")
    assert run(line).problems == []
    since = close_status(line.engine, OCTOBER)["since_signed"]
    assert [(row["what"], row["key"].split("/")[-1]) for row in since if row["what"] == "usage"] == [
        ("usage", "cache_hit_tokens"), ("usage", "input_tokens"), ("usage", "output_tokens"), ("usage", "requests"),
    ]  # fmt: skip
    assert {row["what"] for row in since} == {"usage", "rated"}
    # Altered after it was signed once more, it is not gone on with
    approve(line.engine, OCTOBER, actor="bob")
    line.tamper("ledger.invoices", "update ledger.invoices set number = number || '0'")
    (told,) = (each for each in run(line).problems if each.startswith("acme"))
    assert told == "acme: its content is not what was approved: it is reconciled again"
    assert states(line) == {"acme": "drafted"}
    line.tamper("ledger.invoices", "update ledger.invoices set number = left(number, -1)")


def assert_only_what_has_no_answer_yet_waits(line: Line) -> None:
    """Not a request that was asked again under another key, nor one of a correction that is over."""
    finalize, refund = (
        "tollbook:default:acme:usage:2026-10:r0:finalize:9",
        "tollbook:default:acme:correction:1:refund:0",
    )

    def ask(key: str, epoch: int) -> None:
        line.execute(
            "insert into ledger.stripe_requests"
            " (idempotency_key, billing_account, invoice_id, step, chunk, epoch, target, parameters)"
            " select :key, billing_account, invoice_id, 'step', 9, :epoch, '', '{}' from ledger.invoices",
            key=f"{key}:e{epoch}",
            epoch=epoch,
        )

    def waiting() -> list[str]:
        found = evaluate_waivable(line.engine, OCTOBER, now=NOW)[Gate.R9].open
        return [each.key for each in found if each.key.startswith("request/")]

    line.execute(
        "insert into ledger.corrections (invoice_id, kind, reason, made_by)"
        " select invoice_id, 'refund', 'asked twice', 'ada' from ledger.invoices"
    )
    ask(finalize, 0)
    ask(finalize, 1)
    ask(refund, 0)
    assert waiting() == [f"request/{refund}:e0", f"request/{finalize}:e1"]
    line.execute("update ledger.corrections set state = 'refused', ended_at = now()")
    line.execute(
        "update ledger.stripe_requests set reply_id = 'in_1', replied_at = now() where idempotency_key = :key",
        key=f"{finalize}:e1",
    )
    assert waiting() == []
