"""Cells of CSV."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from console.output import listing


def csv_of(value: object, capsys: pytest.CaptureFixture[str]) -> str:
    listing([{"cell": value}], ("cell",), as_csv=True)
    return capsys.readouterr().out.splitlines()[1]


@pytest.mark.parametrize("formula", ["=cmd|x", "+1", "-1", "@x"])
def test_a_text_that_a_spreadsheet_would_run_stands_behind_an_apostrophe(
    formula: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert csv_of(formula, capsys) == f"'{formula}"


@pytest.mark.parametrize(("number", "written"), [(-5, "-5"), (Decimal("-0.5"), "-0.5")])
def test_numbers_below_zero_stay_numbers(number: object, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert csv_of(number, capsys) == written


def test_a_structure_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    cell = csv_of({"name": "Köln", "price": Decimal("0.1")}, capsys)
    assert json.loads(cell.strip('"').replace('""', '"')) == {"name": "Köln", "price": "0.1"}
