"""Which state of a close leads where, and how differences are told apart by gate and account."""

from __future__ import annotations

from importlib import import_module

import pytest

from reconciliation.agreement import Check
from reconciliation.close.gates import Gate, results
from reconciliation.close.states import CUT, LEGAL, Event, State, after, book_after
from reconciliation.comparison import Difference
from reconciliation.errors import CloseRefused


def test_an_account_goes_its_way_step_by_step() -> None:
    state = State.OPEN
    for event in (
        Event.COLLECT,
        Event.FREEZE,
        Event.DRAFT,
        Event.RECONCILE,
        Event.APPROVE,
        Event.FINALIZE,
        Event.CLOSE,
    ):
        state = after(state, event)
    assert state is State.CLOSED
    assert after(state, Event.REOPEN) is State.COLLECTING


@pytest.mark.parametrize("state", list(State))
def test_nothing_is_approved_that_was_not_reconciled(state: State) -> None:
    if state is State.RECONCILED:
        assert after(state, Event.APPROVE) is State.APPROVED
    else:
        with pytest.raises(CloseRefused, match=f"{state} cannot approve"):
            after(state, Event.APPROVE)


def test_who_is_released_goes_on_where_it_was_parked() -> None:
    assert all(after(after(state, Event.PARK), Event.RELEASE, parked_from=state) is state for state in CUT)
    with pytest.raises(CloseRefused):
        after(State.DRAFTED, Event.RELEASE, parked_from=State.FROZEN)
    with pytest.raises(CloseRefused):
        after(State.PARKED, Event.RELEASE)


def test_a_book_is_closed_once() -> None:
    assert book_after(State.OPEN, Event.CLOSE) is State.CLOSED
    with pytest.raises(CloseRefused):
        book_after(State.CLOSED, Event.CLOSE)


def test_the_database_knows_every_legal_step() -> None:
    made: str = import_module("migrations.versions.0051_closes").STATEMENTS
    for before, event, to in LEGAL - {(b, e, t) for b, e, t in LEGAL if e in (Event.PARK, Event.REOPEN)}:
        assert f"('{before}', '{event}', '{to}')" in made


def test_what_is_one_accounts_own_holds_up_no_other_and_its_sums_hold_up_the_book() -> None:
    own = Check(
        "the books are explained", "", "", 9, (Difference("1150/acme/USD", 1, 2), Difference("revenue//USD", 1, 2))
    )
    (found,) = results([own], {"acme": "acme-inc"}, {}).values()
    assert [each.key for each in found.held("acme-inc")] == ["1150/acme/USD"]
    assert found.held("beta") == []
    assert not found.is_green
    whole = Check("the books balance", "", "", 1, (Difference("USD", 1, 2),))
    (found,) = results([whole], {}, {}).values()
    assert [each.key for each in found.held("beta")] == ["USD"]


def test_only_gaps_and_what_waits_can_be_waived() -> None:
    missing, offset = Difference("r1/b1/3-5", 3, None), Difference("t-0", 9, 8)
    checks = [
        Check("numbered events are here", "", "", 1, (missing,)),
        Check("everything in Kafka is applied", "", "", 1, (offset,)),
    ]
    waived = {(Gate.R1.value, "r1/b1/3-5"): "cyd", (Gate.R1.value, "t-0"): "cyd"}
    (found,) = results(checks, {}, waived).values()
    assert [(each.key, each.waived_by) for each in found.found] == [("r1/b1/3-5", "cyd"), ("t-0", None)]
    assert [each.key for each in found.open] == ["t-0"]
