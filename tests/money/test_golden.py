"""Bills worked by hand from the rules, equal to the last digit: the cases of `cases.yaml`, and our own beside them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.money import golden
from tests.money.product import keys_of, result_of


def cases() -> list[Any]:
    files = (golden.OTHERS, *golden.OURS)
    return [pytest.param(case, id=case["id"]) for path in files for case in golden.cases(path)]


def written_out(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Documents with their lines by key (their order says nothing), one for each of `l001..l250`."""
    return [
        document | {"lines": {key: line | {"key": key} for line in document["lines"] for key in keys_of(line["key"])}}
        for document in documents
    ]


@pytest.mark.parametrize("case", cases())
def test_a_bill_worked_by_hand_comes_out_to_the_last_digit(case: dict[str, Any]) -> None:
    found, expected = result_of(case), case["expect"]
    assert written_out(found["documents"]) == written_out(expected["documents"])
    if "credits_after" in expected:
        assert found["credits_after"] == expected["credits_after"]


def test_no_bill_depends_on_the_zone_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calendar = next(path for path in golden.OURS if path.stem == "calendar")
    for zone in ("Europe/Berlin", "America/New_York", "Pacific/Apia"):
        with monkeypatch.context() as given:
            given.setenv("TZ", zone)
            time.tzset()
            for case in golden.cases(calendar):
                found = written_out(result_of(case)["documents"])
                assert found == written_out(case["expect"]["documents"]), (zone, case["id"])
    time.tzset()


def test_case_ids_are_unique() -> None:
    ids = [case.values[0]["id"] for case in cases()]
    assert len(ids) == len(set(ids))
