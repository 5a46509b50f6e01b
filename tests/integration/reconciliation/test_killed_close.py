"""A close that is killed before all that it writes, and around all that it asks of Stripe, leaves the evidence of one
that was not."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Final

from sqlalchemy import Connection, event

from billing.bills.credits import Grant, GrantKind
from billing.bills.tax import TaxMode, TaxRules
from billing.commands.decide_proposal import decide, propose
from billing.commands.grant_credit import grant_credit
from billing.commands.set_tax import set_tax
from billing.invoicing.credit_store import GivenCredit
from billing.invoicing.tax_store import DatedTaxRules
from billing.posting.proposal_store import ProposalKind
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.close.deciding import Worth, approve, waive
from reconciliation.close.evidence.writing import write_evidence
from reconciliation.close.gates.evaluating import evaluate_waivable
from reconciliation.close.gates.gate import Gate
from reconciliation.close.running import run_close
from tests.billing_builders import NOW, OCTOBER, SINCE
from tests.integration.billing.conftest import Crash
from tests.integration.reconciliation.conftest import Line
from tests.integration.reconciliation.conftest import event as usage
from tests.integration.reconciliation.forgeries import broken, edited, files, forge_manifest
from tests.integration.reconciliation.test_close import states

REPOSITORY: Final = Path(__file__).resolve().parents[3]
OURS: Final = ("billing", "reconciliation")
BY_EVENT: Final = (
    "plan: by-event\ncurrency: USD\nmetrics: [pages]\nversions:\n  - version: v1\n    from: 2026-01-01\n    charges:\n"
    '      - {key: pages, model: percentage, base: pages, rate: "0.5", min_per_event: "2"}\n'
)
BY_QUARTER: Final = (
    "plan: by-quarter\ncurrency: USD\nterms: {period: quarter}\nversions:\n  - version: v1\n    from: 2026-01-01\n"
    '    charges:\n      - {key: base, model: flat, fee: "92"}\n'
    '      - {key: out, model: per_unit, metric: output, price: "0.1"}\n'
)
KILLS_MAX: Final = 150
BEGUN: Final = datetime.now(UTC)

DIFFERS: Final[tuple[tuple[str, str], ...]] = (
    ("hash", r"()\b([0-9a-f]{64})\b"),  # over what follows
    ("time", r"()\b(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)"),  # when the database recorded it
    ("second", r"([:,])(1\d{9})(?=[,}])"),  # the same, as Stripe says it
    ("id", r"()\b((?:in|il|ii|cus|txn|evt|acct|seti|pi|ch|prod|price)_[A-Za-z0-9]{6,})"),  # Stripe's: by chance
    ("topic", r"()(\btest-[0-9a-f]{10})"),  # of the test's own
    ("number", r'("(?:entry_id|rated_line_no|rating_no)":"?)(\d+)'),  # of rows: one that is taken back leaves a gap
)
"""What of two runs over the same data differs, and why. It is told by its order; all else must be the same bytes."""


class Killer:
    """Kills a close once at each place that it is told of."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def at(self, place: str) -> None:
        """Nothing runs after it, the first time."""
        if place not in self.places:
            self.places.append(place)
            raise Crash(place)

    @contextmanager
    def before_each_commit(self, line: Line) -> Iterator[None]:
        """Of a transaction that has written something, wherever in the close it is committed."""

        def committing(opened: Connection) -> None:
            if opened.exec_driver_sql("select pg_current_xact_id_if_assigned()").scalar() is not None:
                self.at(f"commit in {_caller()}")

        event.listen(line.engine, "commit", committing)
        yield
        event.remove(line.engine, "commit", committing)


class KilledAtStripe(StripeGateway):
    """Stripe, with a kill before each kind of request, and one after Stripe has done it."""

    def __init__(self, line: Line, killer: Killer) -> None:
        super().__init__(StripeSettings(line.twin.key, line.twin.url))
        self._killer = killer

    def _change(self, request: Any) -> Any:
        self._killer.at(f"before {request.operation}")
        done = super()._change(request)
        self._killer.at(f"after {request.operation}")
        return done


def _caller() -> str:
    """The function of ours that commits, who called it, and who called that."""
    frame: FrameType | None = sys._getframe(1)
    found: list[str] = []
    while frame is not None and len(found) < 3:
        path = Path(frame.f_code.co_filename)
        ours = path.is_relative_to(REPOSITORY) and path.relative_to(REPOSITORY).parts[0] in OURS
        if ours and path.name != "database.py":
            found.append(f"{path.stem}.{frame.f_code.co_name}")
        frame = frame.f_back
    return " of ".join(found)


def prepared(line: Line) -> None:
    """A second tenant of the account that pays by the event, a third by the quarter, tax, a paid and a promotional
    credit; what waits, and what nobody knows to be complete, is waived. One account: two are sent at once, and either
    may be first."""
    line.tenant("beta", "quarterly")
    line.plan(BY_EVENT)
    line.subscribe("beta", plan="by-event", billing_account="acme")
    line.plan(BY_QUARTER)
    line.subscribe("quarterly", plan="by-quarter", billing_account="acme")
    line.send_events(usage(20, tenant_id="quarterly"))
    pages = [{"pages": "3", "team": "a"}, {"pages": "200"}]
    line.send_events(*(usage(10 + n, tenant_id="beta", labels=labels) for n, labels in enumerate(pages)))
    rules = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19")})
    set_tax(line.engine, DatedTaxRules("acme", rules, SINCE, ""), actor="ada")
    promo = Grant("promo", GrantKind.PROMO, Decimal("0.5"), "USD", SINCE, granted_at=SINCE)
    for credit in (promo, replace(promo, grant_id="paid", kind=GrantKind.PAID)):
        grant_credit(line.engine, GivenCredit(credit, "acme", "because"), actor="ada")
    settle = {"paid_at": OCTOBER.start.isoformat()}
    number = propose(line.engine, ProposalKind.SETTLE_CREDIT, "paid", settle, document="paper", now=NOW, actor="ada")
    decide(line.engine, number, approved=True, now=NOW, actor="bob")
    worth = Worth(Decimal(0), Decimal(1), "USD")
    for gate in (Gate.R1, Gate.R9):
        found = evaluate_waivable(line.engine, OCTOBER, now=NOW)
        waive(line.engine, OCTOBER, gate, found, keys=None, reason="looked at", worth=worth, actor="cyd")


def go_on(line: Line, gateway: StripeGateway) -> list[str]:
    """As far as two people can take it; what holds it up."""
    if "reconciled" in states(line).values():
        approve(line.engine, OCTOBER, actor="bob")
    return run_close(line.engine, OCTOBER, gateway=gateway, log=line.log, now=NOW, actor="ada").problems


def is_closed(line: Line) -> bool:
    return states(line).get("book default") == "closed"


def content(line: Line, folder: Path) -> dict[str, str]:
    """The evidence's content, with what differs between two runs told by its order."""
    write_evidence(line.engine, OCTOBER, folder)
    assert broken(folder) == set()
    known: dict[tuple[str, str], str] = {}

    def told(kind: str, found: re.Match[str]) -> str:
        before, value = found.groups()
        if kind == "time" and datetime.fromisoformat(value) < BEGUN:
            return found[0]  # of the data
        if kind == "second" or (kind == "time" and "." not in value):
            return before + kind  # of whole seconds two may be the same one by chance
        return before + known.setdefault((kind, value), f"{kind} {sum(each == kind for each, _ in known)}")

    found = {}
    for name, data in sorted(files(folder).items()):
        if name.startswith("content/") and not name.endswith("manifest.json"):  # of hashes of the others
            text = data.decode()
            for kind, pattern in DIFFERS:
                text = re.sub(pattern, partial(told, kind), text)
            found[name] = text
    return found


def test_a_close_killed_everywhere_leaves_the_evidence_of_one_that_was_not(
    open_line: Line, second_line: Line, tmp_path: Path
) -> None:
    for line in (open_line, second_line):
        prepared(line)
    told = [go_on(second_line, second_line.gateway) for _ in range(2)]
    assert (told, is_closed(second_line)) == ([[], []], True)
    killer = Killer()
    gateway = KilledAtStripe(open_line, killer)
    with killer.before_each_commit(open_line):
        for _ in range(KILLS_MAX):
            with suppress(Crash):
                go_on(open_line, gateway)
            if is_closed(open_line):
                break
    print(f"{len(killer.places)} kills", *killer.places, sep="\n")
    assert is_closed(open_line)
    functions = {place.split(" ")[2] for place in killer.places if place.startswith("commit in ")}
    rated = "commit in rated_line_store.locked_snapshot of rate_period.rate_period of"
    assert {f"{rated} close_other_periods.rate_other_periods", f"{rated} close_month.prepare_month"} <= {*killer.places}
    assert functions >= {"rated_line_store.locked_snapshot", "draft_invoices.draft_invoices", "preparing.reconcile",
                         "deciding.approve", "invoice_sender._finalize", "issuing.close_books"}  # fmt: skip
    assert content(open_line, tmp_path / "killed") == content(second_line, tmp_path / "whole")
    assert '"accrued":[]' not in (tmp_path / "whole/content/accounts.jsonl").read_text()
    assert_single_events_are_rated_again(tmp_path / "whole")
    assert_what_an_earlier_version_signed_is_still_shown(second_line, tmp_path / "before")


def assert_single_events_are_rated_again(folder: Path) -> None:
    """Where prices hang on them, and nothing else of what they carry is there."""
    file = folder / "content/priced_events.jsonl"
    assert ('"pages":"200"' in file.read_text(), '"team"' in file.read_text()) == (True, False)

    def more_pages(line: Any) -> None:
        line["events"][-1]["labels"]["pages"] = "300"

    file.write_text(edited(more_pages)(file.read_text()))
    (folder / "signatures/manifest.sha256").write_text(forge_manifest(folder / "content"))
    assert broken(folder) == {"single events are what was signed", "rated again"}


def assert_what_an_earlier_version_signed_is_still_shown(line: Line, folder: Path) -> None:
    """It had nothing of what goes on, or came late, no digest of single events, and kept no movements."""
    for table, change in (
        ("close_contents", "content = was.told, hash = encode(sha256(convert_to(was.told, 'utf8')), 'hex')"
         " from (select content_no as no, regexp_replace(regexp_replace(replace(content, 'content.v5',"
         " 'content.v2'), '\"accrued\":\\[.*?\\],(\"billing_account\")', '\\1'),"
         " '\"(events\":(null|\"[0-9a-f]+\")|late\":\\[\\]),', '', 'g') as told from ledger.close_contents) as was"
         " where no = content_no"),
        ("close_transitions", "detail = jsonb_set(detail, '{content_hash}', (select to_jsonb(hash) from"
         " ledger.close_contents order by content_no desc limit 1)) where detail ? 'content_hash'"),
        ("close_gate_results", "shown = '[]'"),
    ):  # fmt: skip
        line.tamper(f"ledger.{table}", f"update ledger.{table} set {change}")
    write_evidence(line.engine, OCTOBER, folder)
    told = (folder / "content/accounts.jsonl").read_text()
    assert re.search(r'content\.v5|"accrued":|"late":|"events":(null|")', told) is None
    assert broken(folder) == set()
