"""What is compared with what, on values."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from reconciliation import agreement
from streams.windows import UsageQuantity

USAGE = UsageQuantity("t1", "llama", "", "us", "", "ok", "none", "engine", "", 2, 100, 40, 30, 0)


def test_positions_agree_when_chunks_follow_one_another_and_every_message_has_an_outcome() -> None:
    check = agreement.positions({"s": (5, 20), "empty": (0, 0)}, [("s", 5, 10, 5), ("s", 10, 20, 10)])
    assert check.agrees


def test_a_hole_between_chunks_is_found() -> None:
    check = agreement.positions({"s": (0, 20)}, [("s", 0, 9, 9), ("s", 10, 20, 10)])
    assert [(d.key, d.left, d.right) for d in check.differences] == [("s@10", 9, 10)]


def test_a_message_without_an_outcome_is_found() -> None:
    assert [d.key for d in agreement.positions({"s": (0, 9)}, [("s", 0, 9, 8)]).differences] == ["s@0/outcomes"]


def test_a_missing_last_chunk_is_found() -> None:
    assert [d.key for d in agreement.positions({"s": (0, 20)}, [("s", 0, 9, 9)]).differences] == ["s"]


def test_only_billable_usage_of_priced_metrics_is_expected_to_be_rated() -> None:
    usage = [USAGE, replace(USAGE, status="error"), replace(USAGE, fault="platform"), replace(USAGE, tenant_id="t2")]
    found = agreement.billable_by_metric(
        usage, {"t1": frozenset({"ok", "aborted"})}, {"t1": frozenset({"input", "cached_input", "output"})}
    )
    assert found == {"t1/input": Decimal(60), "t1/cached_input": Decimal(40), "t1/output": Decimal(30)}


def test_usage_is_compared_measure_by_measure() -> None:
    check = agreement.compare(
        "c", "events", "windows", agreement.usage_by_key([USAGE]),
        agreement.usage_by_key([replace(USAGE, output_tokens=31)]),
    )  # fmt: skip
    assert [(d.key, d.left, d.right) for d in check.differences] == [
        ("t1/llama//us//ok/none/engine//output_tokens", 30, 31)
    ]
    assert check.compared == 4
