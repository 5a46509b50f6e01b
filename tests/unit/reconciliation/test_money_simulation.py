"""The simulation of bills: repeatable, able to find a difference, and able to show it small."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest

from reconciliation import oracle
from tests.money import golden
from tests.simulation.money import compare, generator, invariants, run, shrink

CASES = 80
SEED = 20260401


def test_the_same_seed_gives_the_same_cases() -> None:
    one, other = (list(generator.cases(SEED, 0, 40)) for _ in range(2))
    assert one == other
    assert one[7] == generator.simulated(SEED, 7)
    assert one != list(generator.cases(SEED + 1, 0, 40))


def test_invariants_hold_for_random_cases() -> None:
    for number, simulated in enumerate(generator.cases(SEED, 0, CASES)):
        found = list(invariants.broken(simulated.case, oracle.documents_of, number))
        assert not found, f"seed {SEED}, case {number}: {found}"


def test_every_model_and_document_comes_up() -> None:
    total = run.Tally()
    for simulated in generator.cases(SEED, 0, 400):
        total.count(simulated, oracle.documents_of(simulated.case))
    models = "per_unit graduated volume package percentage prepaid flat seat one_off"
    assert {model for model, _, _ in total.met} == set(models.split())
    assert {name.split()[0] for name in total.documents} == {"usage", "advance", "credit_note", "adjustment"}


def cents_lost(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A rating that is wrong where a graduated charge reaches its second tier."""
    documents = copy.deepcopy(oracle.documents_of(case))
    for document in documents:
        for line in document["lines"]:
            if line["key"].endswith(".t2") and line["exact"] != "0":
                line["exact"] = "0"
    return documents


def test_a_difference_is_found_named_and_shrunk_to_what_it_needs() -> None:
    for number in range(500):
        case = generator.simulated(SEED, number).case
        found = compare.difference(case, oracle.documents_of, cents_lost)
        if found and len(case["usage"]) > 4:
            break
    else:
        pytest.fail("no case with a second tier")

    def same(one: dict[str, Any]) -> bool:
        again = compare.difference(one, oracle.documents_of, cents_lost)
        return again is not None and again.kind == found.kind

    small = shrink.shrunk(case, same)
    assert same(small)
    assert len(small["usage"]) + sum(len(batch["usage"]) for batch in small.get("late", ())) <= 2
    assert len({charge["key"] for versions in small["plan"].values() for v in versions for charge in v["charges"]}) == 1
    assert not any(same(one) for one in shrink.smaller(small))


def test_documents_in_another_order_do_not_differ() -> None:
    case = next(case for case in golden.cases() if case["id"] == "P14")
    assert compare.difference(case, oracle.documents_of, lambda one: oracle.documents_of(one)[::-1]) is None


def test_a_missing_document_a_missing_line_and_an_error_are_differences() -> None:
    case = next(case for case in golden.cases() if case["id"] == "P14")

    def without_a_line(one: Mapping[str, Any]) -> list[dict[str, Any]]:
        documents = oracle.documents_of(one)
        del documents[0]["lines"][0]
        return documents

    def fails(one: Mapping[str, Any]) -> list[dict[str, Any]]:
        raise KeyError("no such plan")

    kinds = [
        found.kind if found else None
        for found in (
            compare.difference(case, oracle.documents_of, lambda one: oracle.documents_of(one)[1:]),
            compare.difference(case, oracle.documents_of, without_a_line),
            compare.difference(case, oracle.documents_of, fails),
        )
    ]
    assert kinds == [
        "documents: only left ['advance'], only right []",
        "advance: line fee.s only left",
        "error: KeyError: 'no such plan'",
    ]
