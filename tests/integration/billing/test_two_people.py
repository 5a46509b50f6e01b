"""What needs two people, manual journals above all; and what closing a book asks. The database holds it, too."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from billing.commands.decide_proposal import decide, proposals, propose
from billing.database import transaction
from billing.errors import EntryInvalid, PeriodNotEnded, ProposalRefused
from billing.periods import BillingPeriod
from billing.posting.period_closing import close_book
from billing.posting.proposal_store import ProposalKind
from tests.billing_builders import NOVEMBER, NOW, OCTOBER
from tests.integration.billing.conftest import World

WRITE_OFF: dict[str, Any] = {
    "effective_at": "2026-10-20T12:00:00Z",
    "memo": "acme is bankrupt",
    "legs": [
        {"account": 5200, "currency": "USD", "amount": "12.50"},
        {"account": 1100, "currency": "USD", "amount": "-12.50", "subledger": "acme"},
    ],
}


def proposed(world: World, **content: Any) -> int:
    wanted = WRITE_OFF | content
    return propose(
        world.engine, ProposalKind.POST_ENTRY, "default", wanted, document="court 7", now=NOW, actor="ada"
    )  # fmt: skip


def close(world: World, month: BillingPeriod, now: datetime = NOW) -> None:
    with transaction(world.engine) as connection:
        close_book(connection, "default", month.name, now)


def approve(world: World, number: int) -> None:
    decide(world.engine, number, approved=True, now=NOW, actor="bob")


def entries(world: World) -> list[tuple[Any, ...]]:
    return world.rows(
        "select kind, accounting_period, original_period, source ->> 'document' from ledger.journal_entries order by 1"
    )


def test_an_entry_by_hand_is_booked_when_another_person_approves_it_and_once(world: World) -> None:
    number = proposed(world)
    assert entries(world) == []
    with pytest.raises(ProposalRefused, match="your own"):
        decide(world.engine, number, approved=True, now=NOW, actor="ada")
    approve(world, number)
    approve(world, number)
    assert entries(world) == [("manual", "2026-10", None, "court 7")]
    with pytest.raises(ProposalRefused, match="decided already"):
        decide(world.engine, number, approved=False, now=NOW, actor="cyd")
    assert [(p.proposal_no, p.approved) for p in proposals(world.engine)] == [(number, True)]
    assert proposals(world.engine, undecided=True) == []


def test_what_is_rejected_never_happens(world: World) -> None:
    number = proposed(world)
    decide(world.engine, number, approved=False, now=NOW, actor="bob", reason="wrong account")
    with pytest.raises(ProposalRefused, match="decided already"):
        approve(world, number)
    assert entries(world) == []


def test_the_database_lets_nobody_decide_an_own_proposal_or_change_one(world: World) -> None:
    number = proposed(world)
    decision = f"insert into ledger.decisions (proposal_no, approved, decided_by) values ({number}, true, 'ada')"
    with pytest.raises(DBAPIError, match="another person"):
        world.execute(decision)
    for statement in ("update ledger.proposals set proposed_by = 'bob'", "delete from ledger.decisions"):
        with pytest.raises(DBAPIError, match=r"append-only|permission denied"):
            world.execute(statement)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"legs": [WRITE_OFF["legs"][0]]}, "at least two"),
        ({"legs": [WRITE_OFF["legs"][0], WRITE_OFF["legs"][1] | {"amount": "-12.49"}]}, "unbalanced"),
        ({"legs": [WRITE_OFF["legs"][0] | {"amount": 12.5}, WRITE_OFF["legs"][1]]}, "as a text"),
        ({"legs": [WRITE_OFF["legs"][0] | {"account": 2100}, WRITE_OFF["legs"][1]]}, "follows from other records"),
        ({"kind": "invoice"}, "kind 'invoice'"),
        ({"more": 1}, "unknown: more"),
    ],
)
def test_an_entry_that_is_no_entry_is_not_even_proposed(world: World, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(EntryInvalid, match=told):
        proposed(world, **changed)
    assert proposals(world.engine) == []


def test_a_book_is_closed_in_order_when_nothing_of_it_is_open_and_takes_nothing_more(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=1)
    world.use("acme", at=NOVEMBER.start, output_tokens=1)
    world.rate()
    world.draft()
    with pytest.raises(ProposalRefused, match="1 invoices of 2026-10 are not issued"):
        close(world, OCTOBER)
    world.execute("update ledger.invoices set state = 'zero', frozen_at = now()")
    with pytest.raises(PeriodNotEnded):
        close(world, OCTOBER, now=OCTOBER.start)
    world.rate(NOVEMBER)
    with pytest.raises(ProposalRefused, match="2026-10 is open"):
        close(world, NOVEMBER)
    close(world, OCTOBER)
    assert world.rows("select month, state from ledger.accounting_periods order by 1") == [
        ("2026-10", "closed"), ("2026-11", "open"),
    ]  # fmt: skip
    approve(world, proposed(world))
    assert [row[:3] for row in entries(world) if row[0] == "manual"] == [("manual", "2026-12", "2026-10")]
    prior = propose(
        world.engine, ProposalKind.POST_ENTRY, "default", WRITE_OFF | {"kind": "prior_period_adjustment"},
        document="auditor", now=NOW, actor="ada",
    )  # fmt: skip
    approve(world, prior)
    assert ("prior_period_adjustment", "2026-10", None, "auditor") in entries(world)
