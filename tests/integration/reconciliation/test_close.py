"""The gated close of a month: states, the cut, gates, two people; on the line from Kafka to Stripe."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from billing.database import transaction
from billing.periods import BillingPeriod
from reconciliation.close import close_store
from reconciliation.close.deciding import Worth, approve, waive
from reconciliation.close.evaluating import Outside, evaluate
from reconciliation.close.gates import Gate
from reconciliation.close.running import CloseRun, run_close
from reconciliation.close.states import State
from reconciliation.errors import CloseRefused
from tests.billing_builders import NOW, OCTOBER
from tests.integration.reconciliation.conftest import Line


def run(line: Line, month: BillingPeriod = OCTOBER, **changed: Any) -> CloseRun:
    values: dict[str, Any] = {"gateway": line.gateway, "log": line.log(), "now": NOW, "actor": "ada"}
    return run_close(line.engine, month, **(values | changed))


def states(line: Line, month: BillingPeriod = OCTOBER) -> dict[str, State]:
    with transaction(line.engine) as connection:
        return {name: each.state for name, each in close_store.standings(connection, month.name).items()}


def waive_all(line: Line, gate: Gate, month: BillingPeriod = OCTOBER) -> list[str]:
    found = evaluate(line.engine, month, now=NOW, outside=Outside(line.gateway, line.log()))
    worth = Worth(Decimal(0), Decimal(1), "USD")
    return waive(line.engine, month, gate, found, keys=None, reason="looked at", worth=worth, actor="cyd")


def test_a_month_is_closed_by_two_people_and_a_second_run_changes_nothing(open_line: Line) -> None:
    line = open_line
    # Nothing was ever said by r1's boot but its event: that no more is missing somebody has to say
    assert run(line).problems == ["acme: not frozen: complete_to/acme: None"]
    assert waive_all(line, Gate.R1) == ["complete_to/acme"]
    first = run(line)
    assert first.problems == []
    assert states(line) == {"acme": State.RECONCILED}
    assert {gate: result.found for gate, result in first.results.items()} == dict.fromkeys(first.results, ())
    assert all(first.results[gate].compared for gate in (Gate.R2, Gate.R3, Gate.R4, Gate.R5A))
    assert line.rows("select state, sending_step from ledger.invoices") == [("draft", "compared")]
    with pytest.raises(CloseRefused, match="another person"):
        approve(line.engine, OCTOBER, actor="ada")
    approve(line.engine, OCTOBER, actor="bob")
    last = run(line)
    # The torn message is nobody's: it holds up the book alone
    assert states(line) == {"acme": State.CLOSED}
    assert [text.split(":")[0] for text in last.problems] == ["R9"]
    waive_all(line, Gate.R9)
    assert run(line).problems == []
    assert states(line) == {"acme": State.CLOSED, "book default": State.CLOSED}
    assert line.rows("select state from ledger.accounting_periods where month = '2026-10'") == [("closed",)]
    counts = {t: line.count(f"ledger.{t}") for t in ("close_transitions", "close_gate_results", "journal_entries")}
    assert run(line).moved == {}
    assert {table: line.count(f"ledger.{table}") for table in counts} == counts
