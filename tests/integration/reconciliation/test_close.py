"""The gated close of a month: states, the cut, gates, two people, evidence; on the line from Kafka to Stripe."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pytest

from billing.commands.decide_proposal import decide
from billing.database import transaction
from billing.errors import ProposalRefused
from billing.periods import BillingPeriod
from reconciliation.close import close_store
from reconciliation.close.deciding import CARRIED_OUT, Worth, approve, propose_reopening, release, waive
from reconciliation.close.evaluating import Outside, evaluate, evaluate_waivable
from reconciliation.close.evidence import write_evidence
from reconciliation.close.gates import Gate
from reconciliation.close.running import CloseRun, run_close
from reconciliation.close.states import State
from reconciliation.close.verifying import verify_evidence
from reconciliation.errors import CloseRefused
from tests.billing_builders import NOW, OCTOBER
from tests.integration.billing.conftest import Crash
from tests.integration.reconciliation.conftest import Line, event

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


def waive_all(line: Line, gate: Gate) -> list[str]:
    found = evaluate_waivable(line.engine, OCTOBER, now=NOW)
    worth = Worth(Decimal(0), Decimal(1), "USD")
    return waive(line.engine, OCTOBER, gate, found, keys=None, reason="looked at", worth=worth, actor="cyd")


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def broken(folder: Path) -> set[str]:
    return {check.name for check in verify_evidence(folder) if check.differences}


def test_a_month_is_closed_by_two_people_and_shown_by_its_evidence(open_line: Line, tmp_path: Path) -> None:
    line = open_line
    # Nothing was ever said by r1's boot but its event: that no more is missing somebody has to say
    assert run(line).problems == ["acme: not frozen: complete_to/acme: None"]
    assert waive_all(line, Gate.R1) == ["complete_to/acme"]
    first = run(line)
    assert (first.problems, states(line)) == ([], {"acme": "reconciled"})
    assert all(first.results[gate].compared for gate in (Gate.R2, Gate.R3, Gate.R4, Gate.R5A))
    assert line.rows("select state, sending_step from ledger.invoices") == [("draft", "compared")]
    with pytest.raises(CloseRefused, match="another person"):
        approve(line.engine, OCTOBER, actor="ada")
    approve(line.engine, OCTOBER, actor="bob")
    # The torn message is nobody's: it holds up the book alone
    assert [text.split(":")[0] for text in run(line).problems] == ["R9"]
    assert states(line) == {"acme": "closed"}
    with pytest.raises(CloseRefused, match="cannot be waived"):
        waive_all(line, Gate.R3)
    waive_all(line, Gate.R9)
    assert run(line).problems == []
    assert states(line) == {"acme": "closed", "book default": "closed"}
    assert line.rows("select state from ledger.accounting_periods where month = '2026-10'") == [("closed",)]

    counts = {t: line.count(f"ledger.{t}") for t in ("close_transitions", "close_gate_results", "journal_entries")}
    assert run(line).moved == {}
    assert {table: line.count(f"ledger.{table}") for table in counts} == counts
    write_evidence(line.engine, OCTOBER, tmp_path / "a")
    line.send_events(event(4))  # late usage is the next month's
    assert run(line).problems == []
    write_evidence(line.engine, OCTOBER, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert broken(tmp_path / "a") == set()
    assert all(check.compared for check in verify_evidence(tmp_path / "a"))
    (approval,) = [json.loads(text) for text in (tmp_path / "a/signatures/approvals.jsonl").read_text().splitlines()]
    assert (approval["prepared_by"], approval["approved_by"], approval["alone"]) == ("ada", "bob", False)
    assert_forgery_is_found(tmp_path / "a")


def assert_forgery_is_found(folder: Path) -> None:
    """Each file that is changed is found by the manifest; with the manifest forged as well, by what it says."""

    def usage(account: Any) -> None:
        account["tenants"][0]["usage"][0]["output_tokens"] += 1

    def rated(account: Any) -> None:
        account["tenants"][0]["rated_lines"][0]["amount"] = "7"

    def booked(line: Any) -> None:
        for leg in line.get("entry", {}).get("legs", ()):
            leg["amount"] = str(2 * Decimal(leg["amount"]))

    def issued(invoice: Any) -> None:
        invoice["net"] += 1

    forgeries: list[tuple[str, Callable[[Any], None], set[str]]] = [
        ("accounts.jsonl", usage,
         {"contents are what was signed", "frozen usage is that of its cut", "rated again"}),
        ("accounts.jsonl", rated,
         {"contents are what was signed", "rated again", "rated lines are drafted", "rated lines are accrued"}),
        ("journal-default.jsonl", booked, {"the journal's chain is whole"}),
        ("invoices.jsonl", issued, {"invoices are what was approved"}),
    ]  # fmt: skip
    for name, change, found in forgeries:
        file, manifest = folder / "content" / name, folder / "content/manifest.json"
        whole, said = file.read_bytes(), manifest.read_bytes()
        lines = [json.loads(text) for text in whole.splitlines()]
        for each in lines:
            change(each)
        file.write_text("".join(json.dumps(each, sort_keys=True, separators=(",", ":")) + "\n" for each in lines))
        assert broken(folder) == {"files are those of the manifest"}
        forge(manifest, folder / "content")
        assert broken(folder) >= found, name
        file.write_bytes(whole)
        manifest.write_bytes(said)
    assert broken(folder) == set()


def forge(manifest: Path, content: Path) -> None:
    said = json.loads(manifest.read_text())
    for each in said["files"]:
        each["sha256"] = hashlib.sha256((content / each["file"]).read_bytes()).hexdigest()
    manifest.write_text(json.dumps(said))


def test_one_account_that_is_stuck_holds_up_no_other(open_line: Line) -> None:
    line = open_line
    line.tenant("beta", "gamma")
    line.subscribe("beta")
    line.subscribe("gamma")
    line.send_events(
        event(5, tenant_id="beta"), event(6, tenant_id="gamma"), event(6, tenant_id="gamma", output_tokens=7)
    )
    waive_all(line, Gate.R1)
    held = run(line)
    assert states(line) == {"acme": "reconciled", "beta": "reconciled", "gamma": "collecting"}
    assert [text.split("/")[0] for text in held.problems] == ["gamma: not frozen: quarantine"]
    approve(line.engine, OCTOBER, actor="bob", leave=["gamma"], reason="the sender is asked")
    run(line)
    waive_all(line, Gate.R9)
    assert run(line).problems == []
    assert states(line) == {"acme": "closed", "beta": "closed", "gamma": "parked", "book default": "closed"}
    # A conflict keeps what came first: its usage is accrued though nobody is billed
    assert line.rows("select count(*) from ledger.rated_lines where tenant_id = 'gamma'") != [(0,)]
    with pytest.raises(CloseRefused, match="say why"):
        release(line.engine, OCTOBER, "gamma", actor="bob", reason="")
    assert release(line.engine, OCTOBER, "gamma", actor="bob", reason="answered").state is State.COLLECTING


def test_a_kill_after_any_step_resumes_to_the_same_content_and_reopening_needs_two(open_line: Line) -> None:
    line = open_line
    waive_all(line, Gate.R1)
    waive_all(line, Gate.R9)
    reached: list[str] = []

    def kill_once(name: str) -> None:
        if name not in reached:
            reached.append(name)
            raise Crash(name)

    hashes = set()
    for _ in range(len(STEPS) + 2):
        with contextlib.suppress(Crash):
            run(line, checkpoint=kill_once)
        with transaction(line.engine) as connection:
            hashes |= {each.hash for each in close_store.latest_contents(connection, OCTOBER.name)}
        if states(line).get("acme") == "reconciled":
            assert run(line).moved == {}
            if not any(name == "reopened" for name in reached):
                assert_reopened_by_two(line)
                reached.append("reopened")
            else:
                approve(line.engine, OCTOBER, actor="bob")
    assert set(reached) == {*STEPS, "reopened"}
    assert states(line) == {"acme": "closed", "book default": "closed"}
    assert line.count("ledger.invoices") == 1
    # Cut again after it was reopened, of the same events: nothing differs but how often it was rated
    assert len(hashes) <= 2
    with pytest.raises(CloseRefused, match="book of 2026-10 is closed"):
        propose_reopening(line.engine, OCTOBER, "acme", actor="ada", reason="late", now=NOW)


def assert_reopened_by_two(line: Line) -> None:
    number = propose_reopening(line.engine, OCTOBER, "acme", actor="ada", reason="a plan was wrong", now=NOW)
    with pytest.raises(ProposalRefused, match="your own"):
        decide(line.engine, number, approved=True, now=NOW, actor="ada", others=CARRIED_OUT)
    decide(line.engine, number, approved=True, now=NOW, actor="bob", others=CARRIED_OUT)
    assert states(line) == {"acme": "collecting"}


DAMAGES: Final = (
    # table, what a superuser does to it, the gate that turns red, what its difference names
    ("usage.events", "update usage.events set output_tokens = 9 where request_id = 'req-2'", Gate.R2, "acme/1/v1/"),
    ("usage.events", "update usage.events set output_tokens = 9 where request_id = 'req-2'", Gate.R3,
     "acme/2026-10/out"),
    ("usage.events", "delete from usage.events where request_id = 'req-2'", Gate.R1, "events"),
    ("usage.events", "update usage.events set tenant_id = 'beta' where request_id = 'req-3'", Gate.R2, "acme/"),
    ("usage.windows_1h", "update usage.windows_1h set output_tokens = output_tokens + 1", Gate.R2, "acme/"),
    ("usage.windows_1m", "delete from usage.windows_1m where output_tokens > 0", Gate.R2, "acme/"),
    ("usage.applied_chunks", "delete from usage.applied_chunks", Gate.R1, "kafka:"),
    ("usage.quarantine", "delete from usage.quarantine", Gate.R1, "quarantine"),
    ("ledger.frozen_usage", "update ledger.frozen_usage set output_tokens = 9", Gate.R2, "row"),
    ("ledger.frozen_usage", "delete from ledger.frozen_usage", Gate.R2, "cut"),
    ("ledger.close_cuts", "update ledger.close_cuts set digest = ''", Gate.R2, "cut"),
    ("ledger.rated_lines", "update ledger.rated_lines set amount = amount + 0.000000000001 where metric = 'output'",
     Gate.R3, "acme/2026-10/out/std/amount"),
    ("ledger.rated_lines", "update ledger.rated_lines set quantity = quantity + 1 where metric = 'output'", Gate.R3,
     "acme/2026-10/out/std/quantity"),
    ("ledger.rated_lines", "delete from ledger.rated_lines where metric = 'output'", Gate.R4, "acme/USD"),
    ("ledger.postings", "update ledger.postings set amount = amount * 2 where entry_id in"
     " (select entry_id from ledger.journal_entries where kind = 'accrual')", Gate.R4, "acme/USD"),
    ("ledger.postings", "update ledger.postings set amount = amount * 2 where entry_id in"
     " (select entry_id from ledger.journal_entries where kind = 'accrual')", Gate.R10, "default"),
    ("ledger.postings", "update ledger.postings set amount = amount + 0.01 where account_id ="
     " (select account_id from ledger.accounts where code = 4000)", Gate.R4, "USD"),
    ("ledger.invoice_lines", "update ledger.invoice_lines set amount_minor = amount_minor + 1", Gate.R5A, "/net"),
    ("ledger.invoice_lines", "delete from ledger.invoice_lines where metric = 'output'", Gate.R5A,
     "acme/acme/p/v1/out"),
    ("ledger.invoices", "update ledger.invoices set lines_hash = repeat('0', 64)", Gate.R5A, "/lines"),
    ("ledger.invoices", "update ledger.invoices set rounding = rounding + 1", Gate.R8, "USD"),
    ("ledger.invoices", "update ledger.invoices set state = 'draft'", Gate.R5B, "of acme"),
    ("ledger.issued_numbers", "delete from ledger.issued_numbers", Gate.R9, "how many"),
    ("ledger.stripe_requests", "update ledger.stripe_requests set replied_at = null, reply_id = null", Gate.R9,
     "request/"),
)  # fmt: skip


@pytest.fixture
def closed_line(open_line: Line) -> Line:
    """October, its account closed and its book not: everything can still be asked."""
    waive_all(open_line, Gate.R1)
    run(open_line)
    approve(open_line.engine, OCTOBER, actor="bob")
    run(open_line)
    assert states(open_line) == {"acme": "closed"}
    return open_line


def put_back(line: Line, table: str) -> None:
    """What a table had before. Rows of the ledger are referred to by others: they are changed back, not replaced."""
    again = f"insert into {table} overriding system value select * from public.copy"
    if table.startswith("usage."):
        line.as_owner(f"delete from {table}", again)
    else:
        columns = line.rows(
            "select a.attname, a.attnum = any(i.indkey) from pg_attribute as a join pg_index as i"
            " on i.indrelid = a.attrelid and i.indisprimary"
            f" where a.attrelid = '{table}'::regclass and a.attnum > 0 and not a.attisdropped"
        )
        values = ", ".join(f"{name} = c.{name}" for name, is_key in columns if not is_key)
        same = " and ".join(f"t.{name} = c.{name}" for name, is_key in columns if is_key)
        line.tamper(table, f"{again} on conflict do nothing")
        line.tamper(table, f"update {table} as t set {values} from public.copy as c where {same}")
    line.as_owner("drop table public.copy")


def test_damage_between_any_two_stages_turns_a_gate_red_that_names_it(closed_line: Line) -> None:
    """All in one world, since each close takes seconds: what is damaged is put back from a copy."""
    line = closed_line
    outside = Outside(line.gateway, line.log())

    def red() -> dict[Gate, list[str]]:
        found = evaluate(line.engine, OCTOBER, now=NOW, outside=outside)
        return {gate: [each.key for each in result.open] for gate, result in found.items() if result.open}

    (torn,) = red()[Gate.R9]
    assert red() == {Gate.R9: [torn]}
    missed = []
    for table, damage, gate, names in DAMAGES:
        line.as_owner(f"create table public.copy as select * from {table}")
        line.tamper(table, damage)
        if not any(names in key for key in red().get(gate, ()) if key != torn):
            missed.append((damage, gate, names, red()))
        put_back(line, table)
    assert missed == []
    assert red() == {Gate.R9: [torn]}
    line.tamper_stripe("invoice", _deleted=True)
    assert [key for key in red()[Gate.R5B] if key]
