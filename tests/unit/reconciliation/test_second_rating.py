"""A tenant's period for the second rating: charges by their filters, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from reconciliation.close.second_rating import NotRerated, Used, priced_by_event, rated_again

CHARGE: dict[str, Any] = {"key": "in", "model": "per_unit", "metric": "input", "where": {}, "price": "2", "per": 1000}


def used(**changed: Any) -> Used:
    values: dict[str, Any] = {
        "id": "r#1", "completed": "2026-10-05T00:00:00Z", "model": "llama", "adapter": "", "region": "", "tier": "",
        "status": "ok", "fault": "none", "source": "engine", "requests": 1, "input_tokens": 100, "cache_hit_tokens": 0,
        "output_tokens": 10, "gpu_us": 0, "context": 100,
    }  # fmt: skip
    return Used(**(values | changed))


def contract(*charges: dict[str, Any], terms: dict[str, Any] | None = None, **version: Any) -> dict[str, Any]:
    return {
        "start": "2026-10-01", "end": "2026-11-01",
        "subscriptions": [
            {"plan": "p", "starts_at": "2026-01-01T00:00:00Z", "bills_from": "2026-01-01T00:00:00Z", "ends_at": None,
             "seats": None, "terms": {"bill_statuses": ["aborted", "ok"]} | (terms or {})}
        ],
        "plans": {"p": [{"version": "v1", "from": "2026-01-01T00:00:00Z", "charges": list(charges), **version}]},
    }  # fmt: skip


def test_usage_is_priced_for_so_many_units() -> None:
    assert rated_again(contract(CHARGE), [used()]) == {"in/std/amount": "0.2", "in/std/quantity": "100"}


def test_the_most_specific_charge_of_a_metric_takes_it() -> None:
    llama = CHARGE | {"key": "llama", "where": {"model": "llama"}, "price": "3"}
    long = CHARGE | {"key": "long", "where": {"model": "llama", "context_over": 100}, "price": "5"}
    found = rated_again(
        contract(CHARGE, llama, long),
        [used(), used(id="r#2", context=101), used(id="r#3", model="qwen"), used(id="r#4", status="error")],
    )
    assert {key: value for key, value in found.items() if key.endswith("quantity")} == {
        "llama/std/quantity": "100", "long/std/quantity": "100", "in/std/quantity": "100",
    }  # fmt: skip


def test_a_retried_request_bills_once_and_a_correction_changes_it() -> None:
    first, second = used(request_id="r", status="aborted"), used(id="r#2", request_id="r", attempt=2, input_tokens=70)
    less = used(id="r#2/1", corrects="r#2", requests=0, input_tokens=-20, output_tokens=0)
    assert rated_again(contract(CHARGE), [first, second, less])["in/std/quantity"] == "50"


def test_what_is_taken_of_each_event_counts_labels_that_the_plan_declares() -> None:
    share = {"key": "fee", "model": "percentage", "metric": "request", "base": "cost", "rate": "0.1", "where": {}}
    events = [used(labels={"cost": "20", "team": "a"}), used(id="r#2")]
    assert rated_again(contract(share), events)["fee/std/amount"] == "2"
    assert priced_by_event(contract(share))
    assert not priced_by_event(contract(CHARGE))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (contract(CHARGE | {"novelty": "1"}), "novelty of charge in"),
        (contract(CHARGE, terms={"weighted_allowances": True}), "weighted_allowances"),
        (contract(CHARGE | {"discount": {"amount": "5"}}), "amount"),
        (contract(CHARGE, invoice_discount={"percent": "0.1", "periods": 3}), "periods"),
    ],
)
def test_what_it_has_no_reading_of_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(NotRerated, match=named):
        rated_again(given, [used()])
