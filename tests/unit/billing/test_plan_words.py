"""A plan in words, and a usage priced by hand step by step."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.errors import NoPriceVersion, SubscriptionRefused
from billing.plans.plan_file import parse_plan
from billing.presentation.plan_words import contract_in_words, explain, price_in_words, terms_in_words, version_in_words
from billing.rating import Usage

PLAN = parse_plan(
    """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - key: out
        model: graduated
        metric: output
        tiers: [{up_to: 1000, price: "0.01", flat_fee: "5"}, {price: "0.005"}]
        discount: "0.1"
        minimum: "20"
        maximum: "90"
      - {key: in, model: per_unit, metric: input, price: "0.59", per: 1000000, allowance: 10}
      - key: vol
        model: volume
        metric: cached_input
        tiers: [{up_to: 10, price: "1"}, {price: "0.5"}]
        tax_group: low
      - {key: pack, model: package, metric: request, size: 100, price: "2", tier_continuity: reset}
      - {key: gpu, model: prepaid, metric: gpu_second, included: 60, fee: "5", overage_price: "0.1"}
      - {key: pct, model: percentage, base: total_tokens, rate: "0.029", fixed_per_event: "0.3", max_per_event: "10"}
      - {key: base, model: flat, fee: "31", timing: advance}
      - {key: seats, model: seat, fee: "3", seats: 2}
      - {key: setup, model: one_off, fee: "99", prorated: false}
""",
    file="plan.yaml",
)
OCTOBER = datetime(2026, 10, 9, tzinfo=UTC)


def test_every_charge_is_told_in_words() -> None:
    told = {
        charge.key: (price_in_words(charge.pricing), list(terms_in_words(charge)))
        for charge in PLAN.versions[0].charges
    }
    assert told == {
        "out": ("each tier: up to 1000 0.01 + 5, beyond 0.005", ["less 10 %", "at least 20", "at most 90"]),
        "in": ("0.59 per 1000000", ["10 free"]),
        "vol": ("all units by the total: up to 10 1, beyond 0.5", ["tax low"]),
        "pack": ("2 per package of 100", ["tiers reset"]),
        "gpu": ("60 for 5, beyond 0.1 per unit", []),
        "pct": ("2.9 %, fixed 0.3 per event, at most 10 per event", []),
        "base": ("31 per period", ["in advance"]),
        "seats": ("3 per seat and period (for 2)", []),
        "setup": ("99 once", ["not prorated"]),
    }


def test_a_usage_is_priced_step_by_step() -> None:
    steps = explain(PLAN, Usage(OCTOBER, {"output": Decimal(1500)}))
    assert steps[:3] == [
        "period 2026-10",
        "version v1, in force from 2026-01-01 00:00 UTC",
        "1500 counted by charge out",
    ]
    assert "out.t1: 1000 × 0.01 = 10" in steps
    assert "out.t1.fee: 1 tier fee × 5 = 5" in steps
    assert "out.t2: 500 × 0.005 = 2.5" in steps
    assert "out.discount: discount = -1.75" in steps
    assert "out.minimum: minimum = 4.25" in steps
    # 17.5 - 1.75, at least 20; prepaid 5, seats 6.
    assert steps[-4:] == [
        "exact 31 USD, rounded 31 (net)",
        "on an invoice of its own, in advance, from 2026-10-01 00:00 UTC:",
        "base: fee = 31",
        "exact 31 USD, rounded 31 (net)",
    ]


def test_a_percentage_and_a_tier_period_are_told_step_by_step_in_the_order_of_computation() -> None:
    text = """\
plan: p
currency: USD
terms: {period: quarter}
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: base, model: flat, fee: "31"}
      - key: share
        model: percentage
        base: output
        rate: "0.02"
        fixed_per_event: "0.5"
        max_per_event: "3"
        discount: "0.5"
      - {key: tiers, model: graduated, metric: request, tier_period: month, tiers: [{price: "1"}]}
"""
    plan = parse_plan(text, file="p.yaml")
    assert explain(plan, Usage(OCTOBER, {"output": Decimal(500), "request": Decimal(1)}))[2:] == [
        "500 counted by charge share",
        "1 counted by charge tiers over the month",
        "share: 500 × 0.02 + 0.5 = 10.5 for the event, at most 3",
        "share: usage = 3",
        "tiers.t1: 1 × 1 = 1",
        "share.discount: discount = -1.5",
        "base: fee = 31",
        "exact 33.5 USD, rounded 33.5 (net)",
    ]


def test_usage_before_the_first_version_has_no_price() -> None:
    with pytest.raises(NoPriceVersion):
        explain(PLAN, Usage(OCTOBER.replace(year=2025), {"output": Decimal(1)}))


def test_what_is_done_with_charges_together_is_told_beside_them() -> None:
    plan = parse_plan(
        """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: in, model: per_unit, metric: input, price: "1"}
      - {key: out, model: per_unit, metric: output, price: "1"}
    allowances: [{pool: both, units: "100", charges: [in, out]}]
    commitment: {amount: "100", charges: [in, out], tax_group: low}
    invoice_discount: {percent: "0.1", base: usage, periods: 3, from: 2026-02-01, until: 2026-08-01}
terms: {period: quarter, anchor: anniversary, trial_days: 14, bill_statuses: [ok], weighted_allowances: true}
""",
        file="p.yaml",
    )
    assert list(version_in_words(plan.versions[0])) == [
        ("allowance", "100 free of in, out together"),
        ("invoice discount", "less 10 % of usage for 3 periods from 2026-02-01 until 2026-08-01"),
        ("commitment", "in, out at least 100, tax low"),
    ]
    assert list(contract_in_words(plan.terms)) == [
        "billed by the quarter, from the subscription's day",
        "bill_statuses: ok",
        "weighted_allowances: true",
        "trial_days: 14",
    ]


def test_a_fee_by_the_seat_is_priced_for_the_seats_that_are_said() -> None:
    text = "plan: p\ncurrency: USD\nversions: [{version: v1, from: 2026-01-01, charges: [%s]}]"
    plan = parse_plan(text % '{key: seats, model: seat, fee: "3"}', file="p.yaml")
    with pytest.raises(SubscriptionRefused, match="--seats"):
        explain(plan, Usage(OCTOBER, {"request": Decimal(1)}))
    told = explain(plan, Usage(OCTOBER, {"request": Decimal(1)}), seats=7)
    assert {"seats: 7 × 3 = 21", "1 request: no charge counts it"} <= set(told)
