"""Reading plan files: what is right, and every way to be wrong, named with line and field."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from billing.errors import PlanInvalid
from billing.plans.plan_file import parse_plan
from billing.plans.price_plans import Filters, Metric

C0, C1 = "versions[0].charges[0]", "versions[0].charges[1]"
GOOD = """\
plan: azure-hour
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - key: llama-input
        model: per_unit
        metric: input
        where: {model: llama-3.3-70b-instruct}
        price: "0.59"
        per: 1000
      - key: request
        model: per_unit
        metric: request
        price: 1
  - version: v2
    from: 2026-06-01T06:00Z
    charges:
      - {key: out, model: per_unit, metric: output, price: "0.000000000000000001"}
"""


def test_a_plan_is_read_with_exact_prices() -> None:
    plan = parse_plan(GOOD, file="plan.yaml")
    first, second = plan.versions
    assert (plan.name, plan.currency) == ("azure-hour", "USD")
    assert first.valid_from == datetime(2026, 1, 1, tzinfo=UTC)
    assert second.valid_from == datetime(2026, 6, 1, 6, tzinfo=UTC)
    charge = first.charges[0]
    assert (charge.key, charge.metric, charge.where) == (
        "llama-input",
        Metric.INPUT,
        Filters(model="llama-3.3-70b-instruct"),
    )
    assert charge.pricing.unit_price == Decimal("0.00059")
    assert first.charges[1].pricing.unit_price == Decimal(1)
    assert second.charges[0].pricing.unit_price == Decimal("0.000000000000000001")


@pytest.mark.parametrize(
    ("before", "after", "line", "field", "reason"),
    [
        ("plan: azure-hour\n", "", 1, "plan", "is missing"),
        ("plan: azure-hour", "plan: 'azure hour'", 1, "plan", "does not fit"),
        ("plan: azure-hour", "plan:", 1, "plan", "must be a value"),
        ("currency: USD", "currency: US", 2, "currency", "no currency"),
        ("currency: USD", "currency: [USD]", 2, "currency", "must be a value"),
        ("currency: USD", "currency: USD\ncolour: red", 3, "colour", "unknown field"),
        ("  - version: v1\n", "  - version: v1\n    version: v9\n", 5, "versions[0].version", "twice"),
        ("    from: 2026-01-01\n", "", 4, "versions[0].from", "is missing"),
        ("from: 2026-01-01", "from: yesterday", 5, "versions[0].from", "no time"),
        ("from: 2026-01-01", "from: 2026-02-30", 5, "versions[0].from", "no time"),
        ("from: 2026-01-01", "from: 2026-01-01T00:00+02:00", 5, "versions[0].from", "no time"),
        ("from: 2026-01-01", "from: 2026-07-01", 17, "versions[1]", "begins before version v1"),
        ("from: 2026-01-01", "from: 2026-06-01T06:00Z", 17, "versions[1]", "overlap"),
        ("version: v2", "version: v1", 17, "versions[1]", "stands here twice"),
        ("key: llama-input", "key: llama input", 7, C0 + ".key", "does not fit"),
        ("key: request", "key: llama-input", 13, C1, "stands here twice"),
        (
            "model: per_unit\n        metric: input",
            "model: cubic\n        metric: input",
            8,
            C0 + ".model",
            "no charge model",
        ),
        ("        model: per_unit\n        metric: input", "        metric: input", 7, C0 + ".model", "is missing"),
        ("metric: input", "metric: tokens", 9, C0 + ".metric", "no metric"),
        ("        metric: input\n", "", 7, C0 + ".metric", "is missing"),
        ("{model: llama-3.3-70b-instruct}", "{modell: llama}", 10, C0 + ".where.modell", "unknown field"),
        ("{model: llama-3.3-70b-instruct}", "{model: ''}", 10, C0 + ".where.model", "must be a name"),
        ("{model: llama-3.3-70b-instruct}", "llama", 10, C0 + ".where", "must be a mapping"),
        ('price: "0.59"', "price: 0.59", 11, C0 + ".price", 'write it in quotes, "0.59"'),
        ('price: "0.59"', "price: 1e-3", 11, C0 + ".price", "no price"),
        ('price: "0.59"', 'price: "-0.59"', 11, C0 + ".price", "negative"),
        ('price: "0.59"', "price: -1", 11, C0 + ".price", "negative"),
        ('price: "0.59"', 'price: "NaN"', 11, C0 + ".price", "no price"),
        ('price: "0.59"', "price: .nan", 11, C0 + ".price", "floating-point"),
        ('price: "0.59"', 'price: "0,59"', 11, C0 + ".price", "no price"),
        ('price: "0.59"', 'price: "0.0000000000000000001"', 11, C0 + ".price", "more than 18 decimals"),
        ('price: "0.59"', 'price: "0.0000000000000001"', 11, C0 + ".price", "more than 18 decimals per unit"),
        ('        price: "0.59"\n', "", 7, C0 + ".price", "is missing"),
        ("per: 1000", "per: 500", 12, C0 + ".per", "no power of ten"),
        ("per: 1000", "per: 1000.0", 12, C0 + ".per", "no power of ten"),
        (
            "metric: request",
            "metric: input\n        where: {model: llama-3.3-70b-instruct}",
            13,
            C1,
            "prices the same usage",
        ),
    ],
)
def test_each_mistake_is_named_by_line_and_field(before: str, after: str, line: int, field: str, reason: str) -> None:
    assert before in GOOD
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(GOOD.replace(before, after, 1), file="plan.yaml")
    (problem,) = caught.value.problems
    assert (problem.line, problem.field) == (line, field)
    assert reason in problem.reason
    assert str(caught.value).startswith(f"plan.yaml:{line}: {field}: ")


def test_every_mistake_of_a_file_is_named_at_once() -> None:
    text = (
        GOOD.replace('"0.59"', "0.59").replace("metric: request", "metric: calls").replace("2026-06-01T06:00Z", "later")
    )
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(text, file="plan.yaml")
    assert [problem.line for problem in caught.value.problems] == [11, 15, 18]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("plan: [", "not YAML"),
        ("plan: a\n\tb: c", "not YAML"),
        ("- 1\n- 2", "must be a mapping"),
        ("plan: p\ncurrency: USD\nversions: []", "at least one element"),
        ("plan: p\ncurrency: USD\nversions: 7", "must be a list"),
        ("x" * 1_000_001, "is this a plan"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(text: str, reason: str) -> None:
    with pytest.raises(PlanInvalid, match=reason):
        parse_plan(text, file="plan.yaml")


def test_an_anchor_that_contains_itself_does_no_harm() -> None:
    with pytest.raises(PlanInvalid, match="unknown field"):
        parse_plan(
            "plan: p\ncurrency: USD\nversions: &v\n  - version: v1\n    from: 2026-01-01\n    charges: *v\n", file="p"
        )


def test_what_is_nested_too_deeply_is_refused_at_once() -> None:
    with pytest.raises(PlanInvalid, match=r"plan.yaml:1: not YAML: nested too deeply"):
        parse_plan("plan: " + "[" * 3_000, file="plan.yaml")
