"""What is left of money of nobody once people have posted some of it where it belongs."""

from __future__ import annotations

from decimal import Decimal

import pytest

from billing.posting.suspense import Suspended, unexplained


def item(name: str, amount: str, *, entity: str = "default", currency: str = "USD") -> Suspended:
    return Suspended(name, entity, currency, Decimal(amount))


BOOKED = [
    item("txn_1", "-9"),
    item("txn_2", "-4"),
    item("txn_3", "-9", currency="EUR"),
    item("txn_4", "-1", entity="eu"),
]


@pytest.mark.parametrize(
    ("by_hand", "left"),
    [
        ([], ["txn_1", "txn_2", "txn_3", "txn_4"]),
        ([item("of txn_1", "9")], ["txn_2", "txn_3", "txn_4"]),
        ([item("txn_1 and txn_2: a stranger", "13")], ["txn_3", "txn_4"]),
        ([item("txn_3", "9", currency="EUR"), item("txn_4", "1", entity="eu")], ["txn_1", "txn_2"]),
        # Less than it is, or nothing that it names: it takes nothing away, and is listed with it.
        ([item("of txn_1", "8")], ["by hand: of txn_1", "txn_1", "txn_2", "txn_3", "txn_4"]),
        ([item("kept", "9")], ["by hand: kept", "txn_1", "txn_2", "txn_3", "txn_4"]),
        # Nothing is there any more, whoever took it.
        ([item("kept", "13")], ["txn_3", "txn_4"]),
    ],
)
def test_an_entry_by_hand_takes_away_what_it_names_and_comes_to(by_hand: list[Suspended], left: list[str]) -> None:
    assert sorted(each.name for each in unexplained(BOOKED, by_hand)) == left


def test_what_came_back_by_itself_is_not_there() -> None:
    assert unexplained([item("txn_1", "-9"), item("dp_1", "4"), item("dp_1", "5")], []) == []
