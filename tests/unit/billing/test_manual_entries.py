"""Journal entries by hand are read strictly: each fault is told by its field."""

from __future__ import annotations

from typing import Any

import pytest

from billing.errors import EntryInvalid
from billing.posting.manual_entries import checked

LEG = {"account": 1020, "currency": "USD", "amount": "1.50"}
ENTRY: dict[str, Any] = {
    "effective_at": "2026-10-31T12:00:00Z",
    "memo": "bank fees",
    "legs": [LEG, {"account": 5100, "currency": "USD", "amount": "-1.50"}],
}


def test_a_right_one_is_read() -> None:
    assert checked(ENTRY)["effective_at"] == "2026-10-31T12:00:00+00:00"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"effective_at": "last week"}, "effective_at 'last week' is no RFC 3339 time"),
        ({"effective_at": "2026-10-31T12:00:00"}, "say its offset"),
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
        checked(ENTRY | changed)
