"""The second rating against the bills worked by hand, to the last digit."""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reconciliation import oracle
from tests.money import golden

CASES = golden.cases()
OURS = [case for path in golden.OURS for case in golden.cases(path)]
BEYOND_IT = {
    "G06",
    "G20",
    "G23",
}
"""Cases of ours that ask for what the second rating does not have (reconciliation/oracle/README.md)."""


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_second_rating_comes_to_the_bill_worked_by_hand(case: Mapping[str, Any]) -> None:
    rated = oracle.rate(case)
    assert golden.comparable(rated["documents"]) == golden.expected_documents(case)
    if "credits_after" in case["expect"]:
        assert rated["credits_after"] == case["expect"]["credits_after"]


@pytest.mark.parametrize("case", OURS, ids=[case["id"] for case in OURS])
def test_the_second_rating_comes_to_our_own_bills_or_refuses_them(case: Mapping[str, Any]) -> None:
    if case["id"] in BEYOND_IT:
        with pytest.raises(oracle.CaseError):
            oracle.rate(case)
        return
    rated = oracle.rate(case)
    assert golden.comparable(rated["documents"]) == golden.expected_documents(case)
    if "credits_after" in case["expect"]:
        assert rated["credits_after"] == case["expect"]["credits_after"]


def test_all_cases_are_there() -> None:
    assert len(CASES) == 43
    assert len({case["id"] for case in CASES}) == 43


def test_the_second_rating_imports_the_standard_library_and_itself_alone() -> None:
    folder = Path(oracle.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                own = name.startswith("reconciliation.oracle")
                assert own or name.split(".")[0] in sys.stdlib_module_names, f"{path.name} imports {name}"
                assert name not in ("decimal", "random", "time"), f"{path.name} imports {name}"
