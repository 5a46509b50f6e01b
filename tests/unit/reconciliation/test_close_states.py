"""Which state of a close leads where, and how differences are told apart by gate and account."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from reconciliation.agreement import Check
from reconciliation.close.close_store import Transition, preparers
from reconciliation.close.gates.gate import Gate, Owners, results
from reconciliation.close.states import CUT, Event, State, after, book_after
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


def test_who_took_any_step_since_the_last_reopening_has_prepared_it() -> None:
    def step(event: Event, actor: str, account: str = "acme") -> Transition:
        return Transition("default", account, 1, "", event.value, "", actor, "", {}, datetime.now(UTC))

    done = [step(Event.COLLECT, "ada"), step(Event.COLLECT, "ada", "beta"), step(Event.FREEZE, "ada")]
    assert preparers([*done, step(Event.RECONCILE, "bob")]) == {"acme": {"ada", "bob"}, "beta": {"ada"}}
    again = [step(Event.REOPEN, "bob"), step(Event.FREEZE, "cyd"), step(Event.APPROVE, "ada")]
    assert preparers([*done, *again]) == {"acme": {"cyd"}, "beta": {"ada"}}


def test_a_book_is_closed_once() -> None:
    assert book_after(State.OPEN, Event.CLOSE) is State.CLOSED
    with pytest.raises(CloseRefused):
        book_after(State.CLOSED, Event.CLOSE)


def test_what_is_one_accounts_own_holds_up_no_other_and_its_sums_hold_up_the_book() -> None:
    own = Check(
        "the books are explained", "", "", 9, (Difference("1150/acme/USD", 1, 2), Difference("revenue//USD", 1, 2))
    )
    (found,) = results([own], Owners({"acme": ["acme-inc"]}), {}).values()
    assert [each.key for each in found.held("acme-inc")] == ["1150/acme/USD"]
    assert found.held("beta") == []
    assert not found.is_green
    whole = Check("the books balance", "", "", 1, (Difference("USD", 1, 2),))
    (found,) = results([whole], Owners({}), {}).values()
    assert [each.key for each in found.held("beta")] == ["USD"]


def held_by(check: str, key: str, owners: Owners, *accounts: str) -> list[str]:
    (found,) = results([Check(check, "", "", 1, (Difference(key, 1, 2),))], owners, {}).values()
    return [account for account in accounts if found.held(account)]


@pytest.mark.parametrize(
    ("check", "key", "held"),
    [
        ("rated again", "acme/2026-10/out/std/amount", ["group"]),
        ("the books are explained", "1150/acme/USD", ["group"]),
        ("the books are explained", "1100/acme/USD", ["acme"]),
        ("rated lines are invoiced", "acme/acme/p/v1/out", ["acme"]),
        ("rated lines are invoiced", "group/acme/p/v1/out", ["group"]),
        ("invoices are issued", "d1 of acme", ["group"]),
        ("rated again", "twice/2026-10/out/std/amount", ["acme", "group"]),
        ("rated again", "lost/2026-10/out/std/amount", ["acme", "beta", "group"]),
        # An invoice that somebody made in Stripe for a customer of ours, and one for nobody's
        ("finalized invoices are in Stripe", "in_1 (without our id)/acme", ["acme"]),
        ("finalized invoices are in Stripe", "in_1 (without our id)", []),
    ],
)
def test_a_difference_holds_whoever_pays_for_the_tenant_not_who_bears_its_name(
    check: str, key: str, held: list[str]
) -> None:
    owners = Owners({"acme": ["group"], "twice": {"acme", "group"}}, ["acme", "beta", "group"], {"d1": "group"})
    assert held_by(check, key, owners, "acme", "beta", "group") == held


@pytest.mark.parametrize(
    ("check", "keys", "held"),
    [
        ("rated lines are accrued", ["acme/USD"], ["us"]),
        ("the books are explained", ["1150/eva/EUR", "revenue//EUR"], ["eu"]),
        ("the books are explained", ["revenue//EUR"], ["eu", "us"]),
        ("the books balance", ["USD"], ["eu", "us"]),
        ("nothing waits", ["quarantine/1", "parked/d1"], ["eu", "us"]),
        ("nothing waits", ["quarantine/2", "parked/d1"], ["eu", "us"]),
        ("nothing waits", ["quarantine/2"], ["eu"]),
        ("nothing waits", ["parked/d1"], ["us"]),
        ("nothing waits", ["quarantine/17"], ["eu", "us"]),  # a message, not the tenant that is called so
        ("issued invoices are booked", ["1100/acme/USD", "2200//USD"], ["us"]),
        ("issued invoices are booked", ["1100/acme/USD"], []),
        ("issued invoices are booked", ["2200//USD"], ["eu", "us"]),
        ("numbers have no gaps", ["eu/invoice/last"], ["eu"]),
        ("the journal is as sealed", ["us"], ["us"]),
        ("finalized invoices are in Stripe", ["in_1 (without our id)/acme"], []),
        ("finalized invoices are in Stripe", ["in_1 (without our id)"], ["eu", "us"]),
    ],
)
def test_a_difference_holds_up_the_books_of_whose_it_is(check: str, keys: list[str], held: list[str]) -> None:
    payers = {"acme": ["acme"], "eva": ["eva"], "17": ["eva"]}
    owners = Owners(payers, ["acme", "eva"], {"d1": "acme"}, {"quarantine/2": "eva"})
    made = Check(check, "", "", 1, tuple(Difference(key, 1, 2) for key in keys))
    books = [result.held_books({"acme": "us", "eva": "eu"}) for result in results([made], owners, {}).values()]
    assert [sorted(each) for each in books] == [held]


def test_only_gaps_and_what_waits_can_be_waived() -> None:
    missing, offset = Difference("r1/b1/3-5", 3, None), Difference("t-0", 9, 8)
    checks = [
        Check("numbered events are here", "", "", 1, (missing,)),
        Check("everything in Kafka is applied", "", "", 1, (offset,)),
    ]
    waived = {(Gate.R1.value, "r1/b1/3-5", "3", None): "cyd", (Gate.R1.value, "t-0", "9", "8"): "cyd"}
    (found,) = results(checks, Owners({}), waived).values()
    assert [(each.key, each.waived_by) for each in found.found] == [("r1/b1/3-5", "cyd"), ("t-0", None)]
    assert [each.key for each in found.open] == ["t-0"]
    missing_number = Check("numbers have no gaps", "", "", 1, (Difference("acme/last", 7, 6),))
    (found,) = results([missing_number], Owners({}), {(Gate.R9.value, "acme/last", "7", "6"): "cyd"}).values()
    assert [each.key for each in found.open] == ["acme/last"]


def test_what_was_explained_is_open_again_once_it_is_something_else() -> None:
    waived = {(Gate.R11.value, "acme/m1/USD", "100", "106"): "cyd"}
    moved = [
        Check("movement is explained", "", "", 1, (Difference("acme/m1/USD", "100", now),)) for now in ("106", "400")
    ]
    assert [results([check], Owners({}), waived)[Gate.R11].is_green for check in moved] == [True, False]
