"""Plan files with every model and term: read whole, stored whole, and each way to be wrong named."""

from __future__ import annotations

import pytest

from billing.errors import PlanInvalid
from billing.plans.charge_models import Graduated, TierContinuity
from billing.plans.plan_documents import (
    differences,
    terms_document,
    terms_of_document,
    version_document,
    version_of_document,
)
from billing.plans.plan_file import parse_plan
from billing.plans.price_plans import Cycle, Metric

WHOLE = """\
plan: whole
currency: EUR
terms: {price_at: start, bill_statuses: [ok], tier_continuity: prorate, weighted_allowances: true, period: year}
metrics: [pages]
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - key: in
        model: graduated
        metric: input
        where: {model: llama, context_over: 8000}
        tiers: [{up_to: 100, price: "1", flat_fee: 3}, {price: "0.5"}]
        per: 1000
        discount: {percent: "0.1", from: 2026-02-01, periods: 3}
      - {key: vol, model: volume, metric: output, tiers: [{up_to: 10, price: 2}, {price: 1}], discount: "0.2"}
      - {key: pack, model: package, metric: pages, size: 100, price: 2, minimum: 1, maximum: 9, tier_period: quarter}
      - {key: pct, model: percentage, base: gpu_second, rate: "0.02", min_per_event: "0.1", max_per_event: 1}
      - {key: pre, model: prepaid, metric: cached_input, included: 10, fee: 5, overage_price: 1, timing: advance}
      - {key: base, model: flat, fee: 10, tax_group: low, prorated: false}
      - {key: seat, model: seat, fee: 10}
      - {key: once, model: one_off, fee: 10}
      - {key: req, model: per_unit, metric: request, price: 1, tier_continuity: carry}
    allowances: [{pool: free, units: 50, charges: [in, vol]}]
    invoice_discount: {amount: 5, base: usage}
    commitment: {amount: 100, charges: [in, pre], tax_group: low}
"""
C = "versions[0].charges"


def test_every_model_and_term_is_read() -> None:
    plan = parse_plan(WHOLE, file="plan.yaml")
    (version,) = plan.versions
    assert [charge.pricing.model for charge in version.charges] == [
        "graduated", "volume", "package", "percentage", "prepaid", "flat", "seat", "one_off", "per_unit",
    ]  # fmt: skip
    graduated = version.charges[0]
    assert isinstance(graduated.pricing, Graduated)
    assert (graduated.where.context_over, graduated.pricing.tiers[0].flat_fee) == (8000, 3)
    assert version.charges[3].metric == Metric.GPU_SECOND
    assert (plan.terms.period, plan.terms.tier_continuity) == (Cycle.YEAR, TierContinuity.PRORATE)
    assert version.charges[2].tier_period is Cycle.QUARTER
    assert plan.declared_metrics == {"pages"}


def test_a_percentage_says_once_what_it_is_of() -> None:
    with pytest.raises(PlanInvalid, match=r"charges\[3\].base: a percentage is of one counted amount"):
        parse_plan(WHOLE.replace("base: gpu_second", "base: gpu_second, metric: pages"), file="plan.yaml")
    as_metric = parse_plan(WHOLE.replace("base: gpu_second", "metric: gpu_second"), file="plan.yaml").versions[0]
    assert as_metric.charges[3].metric == Metric.GPU_SECOND


def test_it_comes_back_from_what_is_stored_as_it_was() -> None:
    plan = parse_plan(WHOLE, file="plan.yaml")
    (version,) = plan.versions
    again = version_of_document("whole", "EUR", "v1", version.valid_from, version_document(version))
    assert again == version
    assert differences(version, again) == []
    assert terms_of_document(terms_document(plan.terms)) == plan.terms


def test_what_stands_beside_the_charges_is_compared_too() -> None:
    (old,) = parse_plan(WHOLE, file="p").versions
    (new,) = parse_plan(WHOLE.replace("amount: 100", "amount: 200").replace("size: 100", "size: 10"), file="p").versions
    assert differences(old, new) == [
        "charge pack: size is 100, the file says 10",
        "commitment is {'amount': '100', 'charges': ['in', 'pre'], 'tax_group': 'low'},"
        " the file says {'amount': '200', 'charges': ['in', 'pre'], 'tax_group': 'low'}",
    ]


def test_what_names_a_charge_that_is_wrong_itself_is_not_told_to_name_none() -> None:
    text = WHOLE.replace("up_to: 100", "up_to: many").replace("charges: [in, vol]", "charges: [vol, in]")
    with pytest.raises(PlanInvalid) as told:
        parse_plan(text, file="p")
    assert [problem.field for problem in told.value.problems] == [C + "[0].tiers[0].up_to"]


@pytest.mark.parametrize(
    ("before", "after", "line", "field", "reason"),
    [
        ("up_to: 100", "up_to: many", 13, C + "[0].tiers[0].up_to", "no up_to"),
        ('{price: "0.5"}]', '{up_to: 9, price: "0.5"}]', 13, C + "[0].tiers", "without `up_to`"),
        ("{up_to: 100, ", "{", 13, C + "[0].tiers", "only the last tier"),
        ("{up_to: 100, ", "{up_to: 0, ", 13, C + "[0].tiers", "must rise"),
        ('percent: "0.1", from', 'percent: "10", from', 15, C + "[0].discount.percent", "no share"),
        ('percent: "0.1", from', "from", 15, C + "[0].discount", "either `percent` or `amount`"),
        ("periods: 3", "periods: x", 15, C + "[0].discount.periods", "no whole number"),
        ('discount: "0.2"', 'discount: "1.5"', 16, C + "[1].discount", "no share"),
        ("size: 100", "size: 0", 17, C + "[2].size", "more than 0"),
        ("size: 100, ", "", 17, C + "[2].size", "is missing"),
        ("maximum: 9", "maximum: 0", 17, C + "[2].maximum", "less than the minimum"),
        ("metric: pages", "metric: pagges", 17, C + "[2].metric", "no metric"),
        ("max_per_event: 1", "max_per_event: 0", 18, C + "[3].max_per_event", "less than min_per_event"),
        ("base: gpu_second, ", "", 18, C + "[3].base", "is missing"),
        ("fee: 10, tax_group", "fee: 10, metric: input, tax_group", 20, C + "[5].metric", "counts nothing"),
        ("price: 1, tier", "price: 1, timing: advance, tier", 23, C + "[8].timing", "only fees"),
        ("charges: [in, vol]", "charges: [in, vols]", 24, "versions[0].allowances", "no charge vols"),
        ("charges: [in, vol]", "charges: [in, base]", 24, "versions[0].allowances", "no charge base"),
        ("charges: [in, pre], tax", "charges: [out], tax", 26, "versions[0].commitment", "no charge out"),
        ("base: usage", "base: tokens", 25, "versions[0].invoice_discount.base", "none of usage, fees, all"),
        ("price_at: start", "price_at: end", 3, "terms.price_at", "none of completion, start"),
        ("weighted_allowances: true", "weighted_allowances: 1", 3, "terms.weighted_allowances", "none of true, false"),
        ("metrics: [pages]", "metrics: [Pages]", 4, "metrics[0]", "does not fit"),
        ("metrics: [pages]", "metrics: [pages, input]", 4, "metrics[1]", "counted from every event"),
        ("metrics: [pages]", "metrics: [pages, pages]", 4, "metrics[1]", "twice"),
        ("period: year", "trial_days: 3661", 3, "terms.trial_days", "at most 3660"),
        ("period: year", "late_usage_days: 740000", 3, "terms.late_usage_days", "at most 3660"),
        ("bill_statuses: [ok]", "bill_statuses: [okay]", 3, "terms.bill_statuses", "none of ok, aborted"),
        ("bill_statuses: [ok]", "bill_statuses: [ok, ok]", 3, "terms.bill_statuses", "twice"),
        ("fee: 10, tax_group", "fee: 10, where: {model: x}, tax_group", 20, C + "[5].where", "counts no usage"),
        ("fee: 10, tax_group", "fee: 10, tier_continuity: reset, tax_group", 20, C + "[5].tier_continuity", "no tiers"),
        ("fee: 10, tax_group", "fee: 10, maximum: 5, tax_group", 20, C + "[5].maximum", "a fee is what it is"),
        ("timing: advance", "timing: advance, minimum: 5", 19, C + "[4].minimum", "an earlier invoice"),
        ("price: 1, tier", "price: 1, prorated: false, tier", 23, C + "[8].prorated", "only fees"),
        ("periods: 3", "periods: 0", 15, C + "[0].discount.periods", "at least 1"),
        ("periods: 3", "until: 2026-02-01", 15, C + "[0].discount.until", "after `from`"),
        (
            "units: 50, charges: [in, vol]",
            "units: 50, charges: [in, in]",
            24,
            "versions[0].allowances[0].charges",
            "twice",
        ),
        ("units: 50, charges: [in, vol]", "units: 50, charges: [in, pre]", 24, "versions[0].allowances", "no units"),
        (
            "charges: [in, vol]}",
            "charges: [in]}, {pool: free, units: 1, charges: [vol]}",
            24,
            "versions[0].allowances",
            "has that name",
        ),
        ("tax_group: low, prorated", "tax_group: a@b, prorated", 20, C + "[5].tax_group", "does not fit"),
        ("charges: [in, pre], tax", "charges: [in, in], tax", 26, "versions[0].commitment.charges", "twice"),
        ("period: quarter", "period: week", 17, C + "[2].tier_period", "none of month, quarter, year"),
        ("period: year", "period: month", 17, C + "[2].tier_period", "longer than the billing period, a month"),
        ("rate:", "tier_period: month, rate:", 18, C + "[3].tier_period", "counts nothing over a time"),
        ("fee: 10, tax_group", "fee: 10, tier_period: month, tax_group", 20, C + "[5].tier_period", "no meaning for"),
        ("price: 1, tier", "price: 1, tier_period: month, tier", 23, C + "[8].tier_period", "without an allowance"),
        (
            "volume, metric",
            "volume, tier_period: month, metric",
            24,
            "versions[0].allowances",
            "different tier_periods",
        ),
    ],
)
def test_each_mistake_is_named_by_line_and_field(before: str, after: str, line: int, field: str, reason: str) -> None:
    assert before in WHOLE
    with pytest.raises(PlanInvalid) as caught:
        parse_plan(WHOLE.replace(before, after, 1), file="plan.yaml")
    found = [(problem.line, problem.field) for problem in caught.value.problems]
    assert (line, field) in found
    assert any(reason in problem.reason for problem in caught.value.problems if problem.field == field)


def test_overlapping_steps_of_context_are_refused_and_others_not() -> None:
    text = """\
plan: p
currency: USD
versions:
  - version: v1
    from: 2026-01-01
    charges:
      - {key: short, model: per_unit, metric: input, where: {context_up_to: 8000}, price: 1}
      - {key: long, model: per_unit, metric: input, where: {context_over: 8000}, price: 2}
"""
    parse_plan(text, file="p")
    with pytest.raises(PlanInvalid, match="prices the same usage as charge short"):
        parse_plan(text.replace("context_over: 8000", "context_over: 7999"), file="p")
