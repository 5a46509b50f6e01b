"""Plans with every model that is billed from the windows: rated, accrued, drafted, and rated again."""

from __future__ import annotations

from datetime import timedelta

import pytest

from billing.errors import PlanConflict
from billing.money import plain
from tests.billing_builders import OCTOBER
from tests.integration.billing.conftest import World

WHOLE = """\
plan: p
currency: USD
terms: {tier_continuity: reset, rounding: half_up}
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - key: in
        model: graduated
        metric: input
        tiers: [{up_to: 100, price: "0.01", flat_fee: "1"}, {price: "0.005"}]
      - {key: cached, model: volume, metric: cached_input, tiers: [{up_to: 10, price: "1"}, {price: "0.5"}]}
      - {key: out, model: per_unit, metric: output, price: "0.1", allowance: 20, discount: "0.5", minimum: "10"}
      - {key: req, model: package, metric: request, size: 10, price: "2"}
      - {key: gpu, model: prepaid, metric: gpu_second, included: 60, fee: "5", overage_price: "0.1"}
      - {key: base, model: flat, fee: "31", tax_group: low}
      - {key: seats, model: seat, fee: "3", seats: 2}
      - {key: setup, model: one_off, fee: "99"}
    invoice_discount: {percent: "0.1", base: fees}
    commitment: {amount: "50", charges: [in, cached]}
"""
MIDDLE = OCTOBER.start + timedelta(days=10)


def amounts(world: World) -> dict[str, str]:
    """Exact amount by line key of the only draft."""
    drafted = world.draft()
    (invoice,) = (*drafted.changed, *drafted.unchanged)
    return {line.line_key: plain(line.rated.amount) for line in invoice.lines}


def use(world: World) -> None:
    world.tenant("acme")
    world.plan(WHOLE)
    world.subscribe("acme")
    used = {"requests": 11, "input_tokens": 165, "cache_hit_tokens": 15, "output_tokens": 120, "gpu_us": 61_500_000}
    world.use("acme", at=MIDDLE, **used)


def test_a_plan_of_every_model_is_rated_accrued_and_drafted(world: World) -> None:
    use(world)
    assert world.rate().ok
    # in 100 x 0.01 + 50 x 0.005; cached 15 x 0.5; out 100 x 0.1 - half, at least 10; gpu 1.5 x 0.1; and of the 50
    # that are committed 1 + 1 + 0.25 + 7.5 = 9.75 are reached.
    assert amounts(world) == {
        "in.t1": "1", "in.t1.fee": "1", "in.t2": "0.25", "cached.t2": "7.5", "out": "10", "out.discount": "-5",
        "out.minimum": "5", "req": "4", "gpu.overage": "0.15", "gpu.fee": "5", "base": "31", "seats": "6",
        "invoice_discount.low": "-3.1", "invoice_discount.std": "-1.1", "true_up": "40.25",
    }  # fmt: skip
    accrued = world.rows(
        "select a.code, sum(p.amount) from ledger.postings p join ledger.accounts a using (account_id)"
        " group by a.code order by a.code"
    )
    # 4000: usage, discounts and minimum; 4010: fees 42; 4050: the true-up.
    assert [(code, plain(amount)) for code, amount in accrued] == [
        (1150, "101.95"), (4000, "-19.7"), (4010, "-42"), (4050, "-40.25"),
    ]  # fmt: skip


def test_rating_again_posts_nothing_and_more_usage_only_the_difference(world: World) -> None:
    use(world)
    world.rate()
    assert world.rate().lines_posted == 0
    world.use("acme", at=MIDDLE, input_tokens=10)
    (tenant,) = world.rate().tenants
    assert {(line.identity.charge_key, line.identity.kind): plain(line.amount) for line in tenant.posted} == {
        ("in", "usage"): "0.05",
        ("req", "usage"): "0",
        ("true_up", "true_up"): "-0.05",
    }


def test_while_the_month_runs_only_usage_is_accrued(world: World) -> None:
    use(world)
    (tenant,) = world.rate(now=MIDDLE).tenants
    assert {line.identity.kind for line in tenant.lines} == {"usage", "tier_fee", "overage"}
    (tenant,) = world.rate().tenants
    assert {"fee", "true_up", "minimum", "discount"} <= {line.identity.kind for line in tenant.posted}


def test_fees_are_due_without_any_usage(world: World) -> None:
    world.tenant("acme")
    world.plan(WHOLE)
    world.subscribe("acme")
    world.rate()
    assert amounts(world)["base"] == "31"


def test_a_one_off_fee_is_due_in_the_first_period_alone(world: World) -> None:
    world.tenant("acme")
    world.plan(WHOLE)
    world.subscribe("acme", starts_at=MIDDLE)
    world.rate()
    assert amounts(world)["setup"] == "99"


def test_a_plan_comes_back_from_the_database_as_it_was_applied(world: World) -> None:
    applied = world.plan(WHOLE)
    assert world.plan(WHOLE).added == ()
    world.tenant("acme")
    assert world.subscribe("acme").subscription.terms == applied.plan.terms


def test_other_terms_are_another_plan(world: World) -> None:
    world.plan(WHOLE)
    with pytest.raises(PlanConflict, match="other terms"):
        world.plan(WHOLE.replace("reset", "carry"))
