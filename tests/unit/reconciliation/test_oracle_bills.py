"""Bills of the second rating that the cases of `tests/money` do not have, worked by hand in each test."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from reconciliation import oracle

Plain = dict[str, Any]
OCTOBER, NOVEMBER = "2026-10-01..2026-11-01", "2026-11-01..2026-12-01"


def bill(*charges: Plain, usage: list[Plain] | None = None, tax: Plain | None = None, **more: Any) -> list[Plain]:
    """The documents of a tenant with one plan, subscribed since long, over October."""
    return list(oracle.rate(case(*charges, usage=usage, tax=tax, **more))["documents"])


def case(*charges: Plain, usage: list[Plain] | None = None, tax: Plain | None = None, **more: Any) -> Plain:
    account = {"currency": "USD", "minor_unit": "0.01"} | ({"tax": tax} if tax else {})
    return {
        "account": account,
        "periods": [OCTOBER],
        "plan": {"p": [{"version": "v1", "charges": list(charges)}]},
        "subscription": [{"at": "2026-09-01", "plan": "p"}],
        "usage": usage or [],
        **more,
    }


def exact(document: Plain) -> dict[str, str]:
    return {line["key"]: line["exact"] for line in document["lines"]}


def minor(document: Plain) -> dict[str, int]:
    return {line["key"]: line["rounded_minor"] for line in document["lines"]}


def used(metric: str, quantity: int, completed: str, **more: Any) -> Plain:
    return {"metric": metric, "quantity": quantity, "completed": completed, **more}


def graduated(fee: str, **more: Any) -> Plain:
    tiers = [{"up_to": 10, "price": "1", "flat_fee": fee}, {"price": "2", "flat_fee": fee}]
    return {"key": "a", "model": "graduated", "metric": "a", "tiers": tiers, **more}


TWICE = [used("a", 5, "2026-10-05"), used("a", 10, "2026-10-20")]


def test_a_tier_that_was_entered_is_not_entered_again_after_a_version_change() -> None:
    versions = [
        {"version": "v1", "charges": [graduated("7")]},
        {"version": "v2", "from": "2026-10-16", "charges": [graduated("9")]},
    ]
    (document,) = bill(usage=TWICE, plan={"p": versions})
    assert exact(document) == {"a.v1.t1": "5", "a.v1.t1.fee": "7", "a.v2.t1": "5", "a.v2.t2": "10", "a.v2.t2.fee": "9"}


def test_a_counter_that_starts_anew_with_a_plan_enters_its_tiers_anew() -> None:
    (document,) = bill(
        usage=TWICE,
        plan={
            "p": [{"version": "v1", "charges": [graduated("7", tier_continuity="reset")]}],
            "q": [{"version": "v1", "charges": [graduated("9", tier_continuity="reset")]}],
        },
        subscription=[{"at": "2026-09-01", "plan": "p"}, {"at": "2026-10-16", "plan": "q"}],
    )
    assert exact(document) == {"a.s1.t1": "5", "a.s1.t1.fee": "7", "a.s2.t1": "10", "a.s2.t1.fee": "9"}


def test_an_allowance_that_grows_frees_positions_and_not_what_was_paid_for() -> None:
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "1"}
    versions = [
        {"version": "v1", "charges": [price], "allowances": [{"pool": "x", "units": 5, "charges": ["a"]}]},
        {
            "version": "v2",
            "from": "2026-10-16",
            "charges": [price],
            "allowances": [{"pool": "x", "units": 12, "charges": ["a"]}],
        },
    ]
    (document,) = bill(usage=[used("a", 8, "2026-10-05"), used("a", 10, "2026-10-20")], plan={"p": versions})
    assert exact(document) == {"a.v1": "3", "a.v2": "6"}  # 8 - 5; positions 9 to 12 are free, 13 to 18 are not


def test_an_unpaid_grant_goes_before_a_paid_one_of_the_same_expiry() -> None:
    grants = [
        {"id": "paid", "kind": "paid", "tax_treatment": "price_reduction", "paid_at": "2026-08-02"},
        {"id": "promo", "kind": "promo"},
    ]
    terms = {"amount": "4", "currency": "USD", "effective": "2026-08-01"}
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "1"}
    rated = oracle.rate(
        case(price, usage=[used("a", 5, "2026-10-05")], credits=[{**grant, **terms} for grant in grants])
    )
    assert {grant: one["used"] for grant, one in rated["credits_after"].items()} == {"paid": "1", "promo": "4"}


def test_payment_credits_pay_an_invoice_to_the_last_cent_and_come_back_with_a_credit_note() -> None:
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "0.001"}
    rated = oracle.rate(
        case(
            price,
            usage=[used("a", 15496, "2026-10-05", id="e1")],
            tax={"mode": "exclusive", "groups": {"std": "0.19"}},
            late={"of_period": 0, "usage": [{"corrects": "e1", "metric": "a", "quantity": -15496}]},
            credits=[
                {
                    "id": "g",
                    "kind": "paid",
                    "amount": "100",
                    "currency": "USD",
                    "effective": "2026-08-01",
                    "paid_at": "2026-08-01",
                }
            ],
        )
    )
    invoice, note = rated["documents"]
    assert (invoice["total_minor"], invoice["due_minor"], invoice["state"]) == (1845, 0, "zero")  # 15.50 + 2.945
    assert invoice["payment_credits"] == [{"grant": "g", "used_minor": 1845}]
    assert (note["total_minor"], note["due_minor"]) == (-1845, 0)
    assert rated["credits_after"] == {"g": {"used": "0", "left": "100"}}


def test_seats_are_billed_by_the_second_and_a_one_off_fee_once() -> None:
    charges = [
        {"key": "seats", "model": "seat", "fee": "31"},
        {"key": "setup", "model": "one_off", "fee": "99.5"},
    ]
    first, second = bill(
        *charges,
        periods=[OCTOBER, NOVEMBER],
        subscription=[{"at": "2026-10-01", "plan": "p", "seats": 2}, {"at": "2026-10-11", "seats": 3}],
    )
    assert exact(first) == {"seats.s1": "20", "seats.s2": "63", "setup.s1": "99.5"}  # 62 × 10/31, 93 × 21/31
    assert exact(second) == {"seats": "93"}


def test_a_downgrade_of_a_fee_in_advance_is_a_credit_note_that_rounds_against_its_line() -> None:
    fee = {"key": "fee", "model": "flat", "timing": "advance"}
    first, note = bill(
        tax={"mode": "exclusive", "groups": {"std": "0.19"}},
        plan={
            "p": [{"version": "v1", "charges": [{**fee, "fee": "50"}]}],
            "q": [{"version": "v1", "charges": [{**fee, "fee": "10"}]}],
        },
        subscription=[{"at": "2026-10-01", "plan": "p"}, {"at": "2026-10-11", "plan": "q"}],
    )
    assert (first["doc"], first["total_minor"]) == ("advance", 5950)
    assert (note["doc"], note["period"]) == ("credit_note", "2026-10-11..2026-11-01")
    assert exact(note) == {"fee.s1.unused": "-33.870967741935", "fee.s2": "6.774193548387"}
    assert minor(note) == {"fee.s1.unused": -3387, "fee.s2": 677}  # 16.13 of 50.00 remain
    assert note["tax"] == [{"group": "std", "rate": "0.19", "base_minor": -2710, "tax_minor": -515}]  # 4.351 of 9.50


def test_late_usage_that_costs_less_in_one_tax_group_and_more_in_another_does_both() -> None:
    volume = {"key": "v", "model": "volume", "metric": "v", "tiers": [{"up_to": 10, "price": "2"}, {"price": "1"}]}
    price = {"key": "w", "model": "per_unit", "metric": "w", "price": "1", "tax_group": "reduced"}
    _, note, following = bill(
        volume,
        price,
        tax={"mode": "exclusive", "groups": {"std": "0.2", "reduced": "0.1"}},
        periods=[OCTOBER, NOVEMBER],
        usage=[used("v", 10, "2026-10-05"), used("w", 1, "2026-11-05")],
        late={"of_period": 0, "usage": [used("v", 1, "2026-10-06"), used("w", 3, "2026-10-06")]},
    )
    assert (note["doc"], exact(note)) == ("credit_note", {"adj.v.t1": "-20", "adj.v.t2": "11"})
    assert note["tax"] == [{"group": "std", "rate": "0.2", "base_minor": -900, "tax_minor": -180}]
    assert exact(following) == {"adj.w": "3", "w": "1"}


def test_late_usage_of_a_tenant_that_has_gone_is_an_invoice_of_its_own() -> None:
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "1"}
    _, adjustment = bill(
        price,
        usage=[used("a", 1, "2026-10-05")],
        late={"of_period": 0, "usage": [used("a", 2, "2026-10-06")]},
        subscription=[{"at": "2026-09-01", "plan": "p"}, {"at": "2026-10-20", "cancel": True}],
    )
    assert (adjustment["doc"], adjustment["period"], exact(adjustment)) == ("adjustment", OCTOBER, {"adj.a": "2"})


def test_an_amount_too_small_to_charge_is_carried_until_it_is_large_enough() -> None:
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "0.2"}
    account = {"currency": "USD", "minor_unit": "0.01", "stripe_minimum": "0.50"}
    months = [OCTOBER, NOVEMBER, "2026-12-01..2027-01-01", "2027-01-01..2027-02-01"]
    usage = [used("a", 1, f"{month[:7]}-05") for month in (months[0], months[1], months[3])]
    documents = bill(price, account=account, periods=months, usage=usage)
    assert [(one["due_minor"], one["state"]) for one in documents] == [
        (20, "carried_below_minimum"),
        (40, "carried_below_minimum"),
        (60, "finalize"),  # nothing was used in December: no document, the amount waits
    ]


def test_a_platform_fault_makes_the_request_free_and_no_earlier_attempt_bills_instead() -> None:
    price = {"key": "a", "model": "per_unit", "metric": "output", "price": "1"}
    attempt = {"request_id": "r", "output": 10, "completed": "2026-10-05"}
    assert (
        bill(
            price,
            usage=[
                {**attempt, "attempt": 1, "status": "aborted"},
                {**attempt, "attempt": 2, "status": "ok", "fault": "platform"},
            ],
        )
        == []
    )


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_a_correction_of_a_weaker_source_than_the_event_is_left_out(order: tuple[int, ...]) -> None:
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "1"}
    told = [
        used("a", 10, "2026-10-05", id="e", source="gateway"),
        used("a", 5, "2026-10-05", id="c1", corrects="e", source="gateway"),
        used("a", 15, "2026-10-06", id="e", source="engine"),
        used("a", -2, "2026-10-06", id="c2", corrects="e", source="engine"),
    ]
    (document,) = bill(price, usage=[told[i] for i in order])
    assert exact(document) == {"a": "13"}


def test_truth_that_comes_late_supersedes_an_estimate() -> None:
    price = {"key": "a", "model": "per_unit", "metric": "output", "price": "1"}
    event = {"id": "e", "output": 10, "completed": "2026-10-05"}
    (following,) = bill(
        price,
        periods=[OCTOBER, NOVEMBER],
        usage=[{**event, "source": "estimate", "status": "lost"}],
        late={"of_period": 0, "usage": [{**event, "output": 12}]},
    )
    assert (following["period"], exact(following)) == (NOVEMBER, {"adj.a": "12"})


def test_a_correction_changes_its_events_base_and_is_no_event_of_its_own() -> None:
    percentage = {
        "key": "p",
        "model": "percentage",
        "base": "pass_through_cost",
        "rate": "0.1",
        "min_per_event": "0.5",
    }
    (document,) = bill(
        percentage,
        {"key": "req", "model": "per_unit", "metric": "request", "price": "1"},
        usage=[
            {"id": "e", "pass_through_cost": "10", "completed": "2026-10-05"},
            {"corrects": "e", "pass_through_cost": "-8", "completed": "2026-10-05"},
        ],
    )
    assert exact(document) == {"p": "0.5", "req": "1"}
    assert [line["quantity"] for line in document["lines"]] == [1, 1]


def test_weighted_limits_of_all_segments_are_compared_once_with_the_charges_total() -> None:
    def plan(price: str, least: str) -> list[Plain]:
        charge = {"key": "a", "model": "per_unit", "metric": "a", "price": price, "minimum": least}
        return [{"version": "v1", "charges": [charge]}]

    (document,) = bill(
        usage=[used("a", 30, "2026-10-05")],
        plan={"p": plan("1", "31"), "q": plan("1", "62")},
        subscription=[{"at": "2026-09-01", "plan": "p"}, {"at": "2026-10-11", "plan": "q"}],
    )
    assert exact(document) == {"a.s1": "30", "a.minimum": "22"}  # 31 × 10/31 + 62 × 21/31 = 52


def test_a_price_reduction_over_two_tax_groups_is_a_line_for_each() -> None:
    (document,) = bill(
        {"key": "a", "model": "per_unit", "metric": "a", "price": "1"},
        {"key": "b", "model": "per_unit", "metric": "b", "price": "1", "tax_group": "reduced"},
        tax={"mode": "exclusive", "groups": {"std": "0.2", "reduced": "0.1"}},
        usage=[used("a", 3, "2026-10-05"), used("b", 4, "2026-10-06")],
        credits=[{"id": "g", "kind": "promo", "amount": "5", "currency": "USD", "effective": "2026-01-01"}],
    )
    assert exact(document) == {"a": "3", "b": "4", "credit.g.std": "-3", "credit.g.reduced": "-2"}


def test_a_discount_on_all_counts_for_committed_fees_too() -> None:
    charges = [
        {"key": "a", "model": "per_unit", "metric": "a", "price": "1"},
        {"key": "base", "model": "flat", "fee": "50"},
    ]
    version = {
        "version": "v1",
        "charges": charges,
        "invoice_discount": {"percent": "0.1", "base": "all"},
        "commitment": {"amount": "200", "charges": ["a", "base"]},
    }
    (document,) = bill(usage=[used("a", 100, "2026-10-05")], plan={"p": [version]})
    assert exact(document) == {"a": "100", "base": "50", "invoice_discount": "-15", "true_up": "65"}


@pytest.mark.parametrize("applies_to", ["usage", ["usage"], ["a"]])
def test_a_grant_for_usage_covers_all_usage_charges(applies_to: object) -> None:
    grant = {"id": "g", "kind": "promo", "amount": "4", "currency": "USD", "effective": "2026-01-01"}
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "1"}
    (document,) = bill(price, usage=[used("a", 5, "2026-10-05")], credits=[grant | {"applies_to": applies_to}])
    assert exact(document) == {"a": "5", "credit.g": "-4"}


@pytest.mark.parametrize("applies_to", ["fees", "all", ["base"]])
def test_a_grant_for_fees_covers_them_from_the_beginning_of_their_time(applies_to: object) -> None:
    fee = {"key": "base", "model": "flat", "fee": "31"}
    grant = {"id": "g", "kind": "promo", "amount": "100", "currency": "USD", "effective": "2026-01-01"}
    (document,) = bill(fee, credits=[grant | {"applies_to": applies_to, "expires": "2026-10-02"}])
    assert exact(document) == {"base": "31", "credit.g": "-31"}
    (document,) = bill(fee, credits=[grant | {"applies_to": applies_to, "expires": "2026-10-01"}])
    assert exact(document) == {"base": "31"}


def test_a_grant_takes_no_more_off_a_fee_than_what_is_left_where_a_piece_is_cut_below_nothing() -> None:
    """A discount of less than a piece's last digit moves it to the next piece, which then is -10^-12."""
    fee = {"key": "f", "model": "flat"}
    versions = [
        {"version": "v1", "charges": [fee | {"fee": "28", "discount": {"amount": "0.0000000000005"}}]},
        {"version": "v2", "from": "2026-02-27", "charges": [fee | {"fee": "185", "discount": {"amount": "198.74"}}]},
    ]
    grant = {"id": "g", "kind": "promo", "amount": "100", "currency": "USD", "effective": "2025-01-01"}
    (document,) = bill(
        plan={"p": versions},
        periods=["2026-01-01..2026-04-01"],
        contract={"period": "quarter"},
        subscription=[{"at": "2025-11-22", "plan": "p"}],
        credits=[grant | {"applies_to": "fees"}],
    )
    assert (exact(document)["credit.g"], document["exact_net"]) == ("-17.733333333332", "0")


def test_a_credit_that_paid_a_fee_in_advance_comes_back_with_its_credit_note() -> None:
    fee = {"key": "base", "model": "flat", "fee": "31", "timing": "advance"}
    grant = {"id": "g", "kind": "paid", "amount": "25", "currency": "USD", "applies_to": ["base"]}
    grant |= {"effective": "2026-01-01", "paid_at": "2026-01-01"}
    cancelled = [{"at": "2026-09-01", "plan": "p"}, {"at": "2026-10-11", "cancel": True}]
    rated = oracle.rate(case(fee, credits=[grant], subscription=cancelled))
    invoice, note = rated["documents"]
    assert (invoice["payment_credits"], invoice["due_minor"]) == ([{"grant": "g", "used_minor": 2500}], 600)
    assert (note["payment_credits"], note["due_minor"]) == ([{"grant": "g", "used_minor": -2100}], 0)
    assert rated["credits_after"] == {"g": {"used": "4", "left": "21"}}


def in_advance(key: str, fee: str, **more: Any) -> Plain:
    return {"key": key, "model": "flat", "fee": fee, "timing": "advance", **more}


def promo(grant: str, amount: str, *fees: str, **more: Any) -> Plain:
    told = {"id": grant, "kind": "promo", "amount": amount, "currency": "USD", "effective": "2026-01-01"}
    return told | {"applies_to": list(fees)} | more


CANCELLED = [{"at": "2026-09-01", "plan": "p"}, {"at": "2026-10-11", "cancel": True}]


def test_a_price_reduction_for_a_fee_in_advance_takes_off_what_its_own_discount_left() -> None:
    fees = [in_advance("f", "60", discount={"amount": "20"}), in_advance("g", "40")]
    (document,) = bill(*fees, credits=[promo("c", "500", "f")])
    assert exact(document) == {"credit.c": "-40", "f": "60", "f.discount": "-20", "g": "40"}
    (document,) = bill(*fees, credits=[{key: value for key, value in promo("c", "500").items() if key != "applies_to"}])
    assert "credit.c" not in exact(document)


def test_price_reductions_give_back_what_no_longer_fits_the_fees_that_they_cover_together() -> None:
    """10 and 10 are left of 31 and 31: what the first took off fits `f`, the second keeps all of `g`."""
    grants = [promo("c", "10", "fees", priority=1), promo("d", "500", "g", priority=2)]
    invoice, note = bill(in_advance("f", "31"), in_advance("g", "31"), credits=grants, subscription=CANCELLED)
    assert exact(invoice) == {"credit.c": "-10", "credit.d": "-31", "f": "31", "g": "31"}
    assert exact(note) == {"credit.d": "21", "f.unused": "-21", "g.unused": "-21"}
    assert (invoice["due_minor"], note["due_minor"]) == (2100, -2100)


def test_a_tax_group_that_comes_to_nothing_over_two_invoices_is_paid_back_to_the_cent() -> None:
    """3.00 were paid before the grant was there. The three lines by themselves came to 1.26 - 4.27 = -3.01."""
    plan = {
        "p": [{"version": "v1", "charges": [in_advance("g", "3")]}],
        "q": [{"version": "v1", "charges": [in_advance("f", "7.77")]}],
    }
    changes = [CANCELLED[0], {"at": "2026-10-09", "plan": "q"}, {"at": "2026-10-15", "cancel": True}]
    first, second, note = bill(
        plan=plan, subscription=changes, credits=[promo("c", "50", "fees", effective="2026-10-05")]
    )
    assert exact(second) == {"credit.c": "-3.539032258064", "f.s2": "5.764838709677", "g.s1.unused": "-2.225806451613"}
    assert exact(note) == {"credit.c": "1.260967741935", "f.s2.unused": "-4.260967741935"}
    assert minor(note) == {"credit.c": 127, "f.s2.unused": -427}
    assert [one["due_minor"] for one in (first, second, note)] == [300, 0, -300]


def test_what_comes_back_to_a_grant_is_never_more_than_what_its_credit_note_takes_off() -> None:
    """10 are left of the fee, so 21 would come back; but the fees come to 1 less. Nobody pays by a credit note."""
    plan = {
        "p": [{"version": "v1", "charges": [in_advance("f", "31")]}],
        "q": [{"version": "v1", "charges": [in_advance("g", "20", prorated=False)]}],
    }
    changes = [CANCELLED[0], {"at": "2026-10-11", "plan": "q"}]
    rated = oracle.rate(case(plan=plan, subscription=changes, credits=[promo("c", "31", "f")]))
    _, note = rated["documents"]
    assert exact(note) == {"credit.c": "1", "f.s1.unused": "-21", "g.s2": "20"}
    assert (note["due_minor"], rated["credits_after"]) == (0, {"c": {"used": "30", "left": "1"}})


def test_units_that_are_free_by_their_charge_and_by_a_pool_are_free_once() -> None:
    price = {"key": "a", "model": "per_unit", "metric": "a", "price": "1", "allowance": 10}
    pool = {"pool": "x", "units": 12, "charges": ["a"]}
    plan = {"p": [{"version": "v1", "charges": [price], "allowances": [pool]}]}
    (document,) = bill(plan=plan, usage=[used("a", 15, "2026-10-05")])
    assert exact(document) == {"a": "3"}  # the first 10 are among the first 12


PREPAID = {"key": "k", "model": "prepaid", "metric": "k", "included": 10, "fee": "100", "overage_price": "1"}


def test_free_units_of_a_charge_that_prices_none_are_refused_and_never_left_out() -> None:
    pool = {"pool": "x", "units": 5, "charges": ["k"]}
    with pytest.raises(oracle.CaseError, match="no units of a prepaid charge are free"):
        bill(plan={"p": [{"version": "v1", "charges": [PREPAID], "allowances": [pool]}]})


def prepaid(charge: Plain, **more: Any) -> Plain:
    credits = more.pop("credits", [])
    plan = {"p": [{"version": "v1", "charges": [PREPAID | charge], **more}]}
    (document,) = bill(usage=[used("k", 20, "2026-10-05")], plan=plan, credits=credits)
    return document


def test_a_discount_on_a_prepaid_charge_is_taken_off_its_fee_and_its_overage_each() -> None:
    paid = {"id": "g", "kind": "paid", "amount": "50", "currency": "USD"}
    grant = paid | {"effective": "2026-01-01", "paid_at": "2026-01-01"}
    document = prepaid({"discount": "0.1"}, credits=[grant])
    assert exact(document) == {"k.fee": "100", "k.overage": "10", "k.discount": "-11"}
    assert document["payment_credits"] == [{"grant": "g", "used_minor": 900}]  # 10 - 1: usage alone (13.8)
    of_usage = prepaid({"discount": "0.1"}, invoice_discount={"percent": "0.1", "base": "usage"})
    assert exact(of_usage)["invoice_discount"] == "-0.9"  # (10 - 1) x 0.1
    of_fees = prepaid({"discount": "0.1"}, invoice_discount={"percent": "0.1", "base": "fees"})
    assert exact(of_fees)["invoice_discount"] == "-9"  # (100 - 10) x 0.1
    assert exact(prepaid({"discount": "0.1"}, commitment={"amount": "50"}))["true_up"] == "41"  # 50 - (10 - 1)


def test_a_maximum_of_a_prepaid_charge_is_borne_by_its_fee_and_its_overage() -> None:
    document = prepaid({"maximum": "55"}, invoice_discount={"percent": "0.1", "base": "usage"})
    assert exact(document) == {"k.fee": "100", "k.overage": "10", "k.maximum": "-55", "invoice_discount": "-0.5"}
