"""Journal entries by hand are read strictly: each fault is told by its field."""

from __future__ import annotations

from typing import Any

import pytest

from billing.errors import EntryInvalid
from billing.posting.manual_entries import checked, read_entry
from tests.billing_builders import NOW

LEG = {"account": 1020, "currency": "USD", "amount": "1.50"}
ENTRY: dict[str, Any] = {
    "effective_at": "2026-10-31T12:00:00Z",
    "memo": "bank fees",
    "legs": [LEG, {"account": 5100, "currency": "USD", "amount": "-1.50"}],
}


def test_a_right_one_is_read() -> None:
    assert checked(ENTRY, now=NOW)["effective_at"] == "2026-10-31T12:00:00+00:00"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"effective_at": "last week"}, "effective_at 'last week' is no RFC 3339 time"),
        ({"effective_at": "2026-10-31T12:00:00"}, "say its offset"),
        ({"effective_at": "2062-10-31T12:00:00Z"}, "at most a year ahead"),
        ({"effective_at": "9999-12-31T23:59:59-14:00"}, "at most a year ahead"),
        ({"effective_at": "1026-10-31T12:00:00Z"}, "2000 or later"),
        ({"legs": "x"}, "legs: a list"),
        ({"legs": []}, "legs: a list"),
        ({"legs": ["x"]}, "leg 'x'"),
        ({"legs": [LEG | {"amount": 1.5}]}, "amount 1.5"),
        ({"legs": [LEG | {"account": 9}]}, "9 is no account"),
        ({"legs": [LEG | {"colour": 9}]}, "colour"),
        ({"kind": "other"}, "kind 'other'"),
        ({"note": "x"}, "unknown: note"),
    ],
)
def test_a_wrong_one_is_refused_by_its_field(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(EntryInvalid, match=said):
        checked(ENTRY | changed, now=NOW)


FILE = """\
effective_at: 2026-10-31T12:00:00Z
memo: bank fees
legs:
  - {account: 1020, currency: USD, amount: "1.50"}
  - {account: 5100, currency: USD, amount: "-1.50"}
"""


def test_a_file_says_what_is_checked() -> None:
    assert checked(read_entry(FILE, file="e.yaml"), now=NOW) == checked(ENTRY, now=NOW)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("memo: bank fees", "memo: a\nmemo: b", "e.yaml:3: memo: stands here twice"),
        ("account: 1020", "account: 1020, account: 5100", r"e.yaml:4: legs\[0\].account: stands here twice"),
        ('amount: "1.50"', "amount: 1.50", r"e.yaml:4: legs\[0\].amount: 1.50: write it as a text"),
        ("memo: bank fees", "note: x", "e.yaml:2: note: unknown field"),
        (FILE, "", "e.yaml:1: the file is empty"),
        (FILE, "[" * 3_000, "nested too deeply"),
    ],
)
def test_a_careless_file_is_refused_by_line_and_field(before: str, after: str, said: str) -> None:
    with pytest.raises(EntryInvalid, match=said):
        read_entry(FILE.replace(before, after), file="e.yaml")
