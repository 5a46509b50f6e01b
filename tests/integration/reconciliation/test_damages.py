"""Damage between any two stages of a month turns a gate red that names the row. `pytest -s` prints the table."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Final

import pytest
from sqlalchemy import Connection, create_engine

from billing.bills.credits import Grant, GrantKind
from billing.bills.tax import TaxMode, TaxRules
from billing.commands.decide_proposal import decide, propose
from billing.commands.grant_credit import grant_credit
from billing.commands.set_tax import set_tax
from billing.commands.sync_stripe import sync_stripe
from billing.database import raw, transaction
from billing.invoicing.credit_store import GivenCredit
from billing.invoicing.tax_store import DatedTaxRules
from billing.posting.proposal_store import ProposalKind
from reconciliation.close.deciding import Worth, approve, waive
from reconciliation.close.gates.evaluating import Outside, evaluate, evaluate_waivable
from reconciliation.close.gates.gate import Gate
from reconciliation.close.running import run_close
from streams.completeness import number_store
from tests.billing_builders import NOW, OCTOBER, SINCE
from tests.fixtures_stripe_twin import act
from tests.integration.reconciliation.conftest import Line, event
from tests.integration.reconciliation.damages import DAMAGES, TWIN, Damage, Sql, is_named
from tests.integration.reconciliation.seeded_damages import drawn

CREDIT: Final = Grant("paid", GrantKind.PAID, Decimal(5), "USD", SINCE, granted_at=SINCE)
KEPT: Final = replace(CREDIT, grant_id="kept", effective=OCTOBER.end)
PROMO: Final = replace(CREDIT, grant_id="promo", kind=GrantKind.PROMO, amount=Decimal("0.5"))
OUTSIDE: Final = (Gate.R5B, Gate.R6)
"""Gates that ask Stripe; the others are asked without it."""
SEED: Final = int(os.environ.get("TOLLBOOK_SEED") or 8)
SEEDED: Final = int(os.environ.get("FAULTS") or 10)
"""So many damages are chosen by the seed, beside those that are listed."""

Red = dict[Gate, set[str]]


@pytest.fixture
def closed_line(open_line: Line) -> Line:
    """October of two accounts, with tax, a credit and a payment; both closed, the book not: all can still be asked."""
    line = open_line
    line.tenant("beta")
    line.subscribe("beta")
    line.send_events(event(4, tenant_id="beta", replica_id="r1", boot_id="b1", seq=2))
    with transaction(line.engine) as opened:
        number_store.fold(raw(opened), NOW)
    rules = TaxRules(TaxMode.EXCLUSIVE, {"std": Decimal("0.19")})
    set_tax(line.engine, DatedTaxRules("acme", rules, SINCE, ""), actor="ada")
    grant_credit(line.engine, GivenCredit(PROMO, "acme", "welcome"), actor="ada")
    for credit in (CREDIT, KEPT):
        grant_credit(line.engine, GivenCredit(credit, "acme", "because"), actor="ada")
        paid = propose(
            line.engine, ProposalKind.SETTLE_CREDIT, credit.grant_id, {"paid_at": credit.effective.isoformat()},
            document="paper", now=NOW, actor="ada",
        )  # fmt: skip
        decide(line.engine, paid, approved=True, now=NOW, actor="bob")
    gaps = evaluate_waivable(line.engine, OCTOBER, now=NOW)
    worth = Worth(Decimal(0), Decimal(1), "USD")
    waive(line.engine, OCTOBER, Gate.R1, gaps, keys=None, reason="looked at", worth=worth, actor="cyd")
    run_close(line.engine, OCTOBER, gateway=line.gateway, log=line.log, now=NOW, actor="ada")
    approve(line.engine, OCTOBER, actor="bob")
    done = run_close(line.engine, OCTOBER, gateway=line.gateway, log=line.log, now=NOW, actor="ada")
    assert [text.split(":")[0] for text in done.problems] == ["R9"]
    ((invoice,),) = line.rows("select stripe_invoice_id from ledger.invoices where billing_account = 'beta'")
    act(line.twin, "pay", invoice=invoice)
    assert sync_stripe(line.engine, gateway=line.gateway, now=NOW).problems == ()
    return line


def name_of(opened: Connection, damage: Damage) -> str:
    """What a gate must name: by itself, or as the row says."""
    if not isinstance(damage.names, Sql):
        return damage.names
    query = f"select {damage.names} from {damage.table} as r where {damage.row}"
    name = str(opened.exec_driver_sql(query).scalar_one())
    opened.rollback()
    return name


def name_in_twin(line: Line, damage: Damage) -> str:
    """The same of a row of Stripe's own."""
    if not isinstance(damage.names, Sql):
        return damage.names
    with closing(sqlite3.connect(line.twin_data / "twin.sqlite3", timeout=30)) as twin:
        (account,) = twin.execute("select account from objects where id = ?", (line.customer,)).fetchone()
        query = f"select {damage.names} from objects where {damage.row}"
        return str(twin.execute(query, {"account": account}).fetchone()[0])


@contextmanager
def damaged_twin(line: Line, damage: Damage) -> Iterator[int]:
    """Stripe's own file with a damage; gives how many rows it is of."""
    with closing(sqlite3.connect(line.twin_data / "twin.sqlite3", timeout=30)) as twin:
        (account,) = twin.execute("select account from objects where id = ?", (line.customer,)).fetchone()
        was = twin.execute("select deleted, body, seq from objects where account = ?", (account,)).fetchall()
        with twin:
            count = twin.execute(damage.statement, {"account": account}).rowcount
        try:
            yield count
        finally:
            with twin:
                twin.execute(
                    "delete from objects where account = ? and seq > ?", (account, max(seq for _, _, seq in was))
                )
                twin.executemany("update objects set deleted = ?, body = ? where seq = ?", was)


@contextmanager
def damaged_database(opened: Connection, damage: Damage, guards: Mapping[str, str]) -> Iterator[int]:
    """A transaction of the tables' owner with a damage, which is rolled back; gives how many rows it is of."""
    with opened.begin() as begun:
        opened.exec_driver_sql(guards.get(damage.table, f"alter table {damage.table} disable trigger user"))
        yield opened.exec_driver_sql(damage.statement).rowcount
        begun.rollback()


def test_damage_between_any_two_stages_turns_a_gate_red_that_names_it(closed_line: Line) -> None:
    line = closed_line
    log, gateway = line.log(), line.gateway
    owner = create_engine(line.engine.url, connect_args={"options": "-c timezone=UTC"})
    # A trigger of a hypertable cannot be disabled, only dropped
    triggers = line.rows(
        "select tgname from pg_trigger where tgrelid = 'usage.events'::regclass and not tgisinternal"
        " and tgname not like 'ts\\_%'"
    )
    guards = dict.fromkeys(("usage.windows_1h", "usage.windows_1m"), "select") | {
        "usage.events": "; ".join(f"drop trigger {name} on usage.events" for (name,) in triggers)
    }

    def red(opened: Connection, asked: bool) -> Red:
        found = evaluate(opened, OCTOBER, now=NOW, outside=Outside(gateway if asked else None, lambda: log))
        return {
            gate: {f"{each.key}: {each.left} / {each.right}" for each in result.open}
            for gate, result in found.items()
            if result.open
        }

    with owner.connect() as opened:
        undamaged = red(opened, True)
        assert undamaged == {Gate.R9: {"quarantine/1: None / torn"}}
        opened.rollback()
        wrong = []
        caught = 0
        damages = [*DAMAGES, *drawn(opened, SEED, SEEDED)]
        opened.rollback()
        print(f"seed {SEED} (TOLLBOOK_SEED={SEED} repeats what it chose)")
        for number, damage in enumerate(damages, 1):
            asked = damage.gate is None or damage.gate in OUTSIDE
            in_twin = damage.table == TWIN
            name = name_in_twin(line, damage) if in_twin else name_of(opened, damage)
            with damaged_twin(line, damage) if in_twin else damaged_database(opened, damage, guards) as count:
                found = {gate: keys - undamaged.get(gate, set()) for gate, keys in red(opened, asked).items()}
            opened.rollback()
            named = sorted(told for told in found.get(damage.gate, ()) if is_named(name, told)) if damage.gate else []
            row = (number, damage.table, damage.operation, damage.column, damage.costs)
            caught += bool(named)
            print(*row, damage.gate or "no gate", named[0] if named else "", sep=" | ")
            if count != 1 or bool(named) is (damage.gate is None) or (damage.gate is None and any(found.values())):
                wrong.append((*row, count, found))
        assert red(opened, True) == undamaged
    owner.dispose()
    print(f"{len(damages)} faults injected, {caught} caught by a gate that names the row")
    assert wrong == []
    assert sum(damage.gate is not None for damage in DAMAGES) >= 50
