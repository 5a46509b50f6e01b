"""A tenant's period for the second rating: charges by their filters, and what is refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from billing.plans.charge_models import MODELS
from billing.plans.plan_documents import FILE_NAMES
from billing.plans.price_plans import Charge, Terms
from reconciliation.close.gates import second_rating
from reconciliation.close.gates.agreements import agreed, held_in
from reconciliation.close.gates.second_rating import NotRerated, Used, priced_by_event, rated_again

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
             "begins_plan": True, "seats": None, "terms": {"bill_statuses": ["aborted", "ok"]} | (terms or {})}
        ],
        "agreed": [{"since": "2026-01-01T00:00:00Z", "begins": True, "period": "month"}],
        "plans": {"p": [{"version": "v1", "from": "2026-01-01T00:00:00Z", "charges": list(charges), **version}]},
    }  # fmt: skip


def test_usage_is_priced_for_so_many_units() -> None:
    assert rated_again(contract(CHARGE), [used()]) == {"in/std/amount": "0.2", "in/std/quantity": "100"}


def test_a_subscription_that_ended_within_its_trial_costs_nothing() -> None:
    given = contract(CHARGE)
    given["subscriptions"][0] |= {"bills_from": "2026-10-15T00:00:00Z", "ends_at": "2026-10-08T00:00:00Z"}
    assert rated_again(given, [used()]) == {}


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
        (contract(CHARGE, terms={"novelty": True}), "the term novelty"),
        (contract(CHARGE | {"discount": {"amount": "5", "novelty": 1}}), "a discount of charge in, its novelty"),
        (contract(CHARGE, invoice_discount={"percent": "0.1", "novelty": 3}), "an invoice discount's novelty"),
        (contract(CHARGE, commitment={"amount": "1", "novelty": 3}), "a commitment's novelty"),
        (contract(CHARGE | {"model": "novel"}), "novel"),
    ],
)
def test_what_it_has_no_reading_of_is_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(NotRerated, match=named):
        rated_again(given, [used()])


def test_there_is_a_reading_of_all_that_a_charge_and_a_contract_can_say() -> None:
    # R3 cannot be waived: what it has no reading of could never be invoiced.
    of_charges = {FILE_NAMES.get(field.name, field.name) for of in (Charge, *MODELS.values()) for field in fields(of)}
    assert of_charges - {"pricing"} <= second_rating._READ
    assert {field.name for field in fields(Terms)} <= second_rating._ELSEWHERE


def test_seats_are_the_plans_or_the_subscriptions_also_none() -> None:
    seat = {"key": "s", "model": "seat", "fee": "10", "metric": "", "where": {}}
    assert rated_again(contract(seat | {"seats": "3"}), []) == {"s/std/amount": "30", "s/std/quantity": "3"}
    given = contract(seat)
    given["subscriptions"][0]["seats"] = 0
    assert rated_again(given, []) == {}


def subscribed(start: str, end: str | None, **changed: Any) -> dict[str, Any]:
    """A subscription as stored, from and to a day."""
    at, ended = f"{start}T00:00:00.000000Z", f"{end}T00:00:00.000000Z" if end else None
    values: dict[str, Any] = {
        "plan": "p", "starts_at": at, "bills_from": at, "ends_at": ended, "begins_plan": True, "anchored_at": None,
        "seats": None, "terms": {"bill_statuses": ["aborted", "ok"]},
    }  # fmt: skip
    return values | changed


def test_discounts_are_given_as_shares_and_amounts_dated_and_for_some_periods() -> None:
    off = {"amount": "0.05", "from": "2026-10-01T00:00:00+00:00", "until": "2026-11-01T00:00:00+00:00", "periods": 1}
    found = rated_again(contract(CHARGE | {"discount": off}), [used()])
    assert found["in.discount/std/amount"] == "-0.05"
    tenth = {"percent": "0.1", "periods": 10, "base": "usage"}  # October is the tenth since January
    assert rated_again(contract(CHARGE, invoice_discount=tenth), [used()])["invoice_discount/std/amount"] == "-0.02"
    over = rated_again(contract(CHARGE, invoice_discount=tenth | {"periods": 9}), [used()])
    assert over == {"in/std/amount": "0.2", "in/std/quantity": "100"}


def test_allowances_are_weighted_where_the_contract_says_so() -> None:
    given = contract(CHARGE | {"allowance": "124"}, terms={"weighted_allowances": True})
    given["subscriptions"][0] |= {"starts_at": "2026-10-01T00:00:00Z", "ends_at": "2026-10-17T12:00:00Z"}
    assert rated_again(given, [used()])["in/std/quantity"] == "34"  # 16.5 of 31 days: 66 are free


def test_a_true_up_is_in_the_tax_group_that_the_commitment_names() -> None:
    found = rated_again(contract(CHARGE, commitment={"amount": "9", "charges": [], "tax_group": "low"}), [used()])
    assert found["true_up/low/amount"] == "8.8"


def test_terms_that_change_within_a_period_are_those_of_the_segment_in_which_a_request_completed() -> None:
    given = contract(CHARGE, terms={"rounding": "half_up", "late_usage_days": 5, "tier_continuity": "reset"})
    first = given["subscriptions"][0] | {"ends_at": "2026-10-10T00:00:00Z"}
    second = first | {"starts_at": first["ends_at"], "bills_from": first["ends_at"], "ends_at": None, "plan": "q"}
    trial = first | {"ends_at": "2026-10-12T00:00:00Z", "bills_from": "2026-10-20T00:00:00Z"}
    second["terms"] = {"bill_statuses": ["ok"], "bill_attempts": "all"}
    given |= {"subscriptions": [first, second, trial], "plans": given["plans"] | {"q": given["plans"]["p"]}}
    later = [
        used(id=f"s#{attempt}", request_id="s", attempt=attempt, status=status, completed=f"2026-10-{day}T00:00:00Z")
        for attempt, status, day in ((1, "aborted", 12), (2, "ok", 12), (3, "ok", 25))
    ]
    before = [used(id=f"r#{n}", request_id="r", attempt=n, status="aborted", input_tokens=n) for n in (1, 2)]
    found = rated_again(given, [*before, *later])
    assert (found["in.s1/std/quantity"], found["in.s2/std/quantity"]) == ("2", "200")


def test_free_units_are_weighted_as_the_periods_last_contract_says() -> None:
    given = contract(CHARGE | {"allowance": "62", "price": "1", "per": 1})
    first = given["subscriptions"][0] | {"ends_at": "2026-10-17T00:00:00Z"}
    second = first | {"starts_at": first["ends_at"], "bills_from": first["ends_at"], "ends_at": "2026-10-24T00:00:00Z"}
    second = second | {"plan": "q", "terms": first["terms"] | {"weighted_allowances": True}}
    given |= {"subscriptions": [first, second], "plans": given["plans"] | {"q": given["plans"]["p"]}}
    assert rated_again(given, [used()])["in.s1/std/quantity"] == "54"  # 100 less 62 x 23/31
    given["subscriptions"] = [first | {"terms": second["terms"]}, second | {"terms": first["terms"]}]
    assert rated_again(given, [used()])["in.s1/std/quantity"] == "38"


def test_what_goes_on_after_a_pause_has_no_one_off_fee_again() -> None:
    setup = {"key": "setup", "model": "one_off", "fee": "9", "metric": ""}
    given = contract(setup)
    given["subscriptions"] = [subscribed("2026-10-05", None)]
    assert rated_again(given, []) == {"setup/std/amount": "9"}
    given["subscriptions"] = [subscribed("2026-10-05", None, begins_plan=False)]
    assert rated_again(given, []) == {}


def test_a_period_is_of_the_subscriptions_that_it_bills_and_that_have_time_in_it() -> None:
    quarterly = {"bill_statuses": ["ok"], "period": "quarter"}
    ended, month = subscribed("2026-01-01", "2026-10-01"), subscribed("2026-10-01", "2026-10-15")
    quarter = subscribed("2026-10-15", None, terms=quarterly)
    anniversary = subscribed("2026-08-31", "2026-11-03", terms={"anchor": "anniversary"})
    listed = [ended, month, quarter, anniversary]
    assert held_in(listed, "2026-10-01", "2026-11-01") == [month]
    assert held_in(listed, "2026-10-01", "2027-01-01") == [quarter]
    assert held_in(listed, "2026-09-30", "2026-10-31") == [anniversary]
    assert held_in(listed, "2026-12-01", "2027-01-01") == []


def test_a_contract_goes_on_over_changes_and_pauses_and_begins_anew_after_a_cancellation() -> None:
    trial = "2026-04-11T00:00:00.000000Z"
    listed = [
        subscribed("2026-01-01", "2026-02-01"),
        subscribed("2026-02-01", "2026-03-01", plan="q"),
        subscribed("2026-03-05", "2026-03-20", plan="q", begins_plan=False),
        subscribed("2026-04-01", "2026-04-03", bills_from=trial),
        subscribed("2026-04-05", None, bills_from=trial, terms={"anchor": "anniversary", "period": "year"}),
    ]
    found = agreed(listed)
    assert [(each["since"][:10], each["begins"]) for each in found] == [
        ("2026-01-01", True), ("2026-02-01", False), ("2026-03-05", False), ("2026-04-01", True), ("2026-04-05", False),
    ]  # fmt: skip
    assert [(each["period"], each.get("anchor")) for each in found[3:]] == [("month", None), ("year", "2026-04-05")]
