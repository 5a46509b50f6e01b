"""Which charge holds, which version holds, and what makes two versions differ."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from billing.errors import NoPriceVersion
from billing.plans.plan_documents import differences, version_document, version_of_document
from billing.plans.price_plans import Filters, Metric, counted_twice, unpriced_token_classes, version_at
from tests.billing_builders import SINCE, charge, version

INPUT, OUTPUT = Metric.INPUT, Metric.OUTPUT


@pytest.mark.parametrize(
    ("model", "adapter", "region", "tier", "key"),
    [
        ("llama", "", "", "", "by-model"),
        ("qwen", "", "", "", "default"),
        ("llama", "lora-1", "", "", "by-adapter"),
        ("qwen", "lora-1", "", "", "by-adapter"),
        ("llama", "", "eu", "", "by-model-and-region"),
        ("llama", "lora-1", "eu", "", "by-model-and-region"),
        ("qwen", "", "eu", "", "by-region"),
        ("qwen", "", "eu", "batch", "by-region"),
        ("qwen", "", "us", "batch", "by-tier"),
    ],
)
def test_the_most_specific_charge_wins(model: str, adapter: str, region: str, tier: str, key: str) -> None:
    plan = version(
        charge("default", INPUT, "1"),
        charge("by-tier", INPUT, "1", tier="batch"),
        charge("by-region", INPUT, "1", region="eu"),
        charge("by-model", INPUT, "1", model="llama"),
        charge("by-model-and-region", INPUT, "1", model="llama", region="eu"),
        charge("by-adapter", INPUT, "1", adapter="lora-1"),
        charge("other-metric", OUTPUT, "1", model="llama", adapter="lora-1", region="eu", tier="batch"),
    )
    found = plan.charges_for(INPUT, model=model, adapter=adapter, region=region, tier=tier)
    assert [charge.key for charge in found] == [key]


def test_no_charge_holds_for_usage_that_no_filter_takes() -> None:
    plan = version(charge("by-model", INPUT, "1", model="llama"))
    assert plan.charges_for(INPUT, model="qwen", adapter="", region="", tier="") == ()


def test_a_version_holds_from_its_moment_until_the_next() -> None:
    june = datetime(2026, 6, 1, tzinfo=UTC)
    first, second = version(name="v1"), version(name="v2", valid_from=june)
    assert version_at([second, first], SINCE) is first
    assert version_at([second, first], june.replace(month=5, day=31)) is first
    assert version_at([second, first], june) is second
    with pytest.raises(NoPriceVersion):
        version_at([second, first], SINCE.replace(year=2025))


def test_a_version_comes_back_from_its_document_as_it_was() -> None:
    plan = version(charge("a", INPUT, "0.590", 1000, model="llama", tier="batch"), charge("b", OUTPUT, "1E-18"))
    again = version_of_document("p", "USD", "v1", SINCE, version_document(plan))
    assert again == plan
    assert not differences(plan, again)


def test_versions_differ_in_what_they_say_not_in_how_it_is_written() -> None:
    old = version(charge("a", INPUT, "0.59", 1000), charge("b", OUTPUT, "1"))
    assert differences(old, version(charge("a", INPUT, "0.590", 1000), charge("b", OUTPUT, "1.0"))) == []
    new = version(charge("a", INPUT, "0.60", 1000, model="llama"), charge("c", OUTPUT, "1"))
    assert differences(old, replace(new, valid_from=datetime(2026, 2, 1, tzinfo=UTC))) == [
        "from is 2026-01-01T00:00:00Z, the file says 2026-02-01T00:00:00Z",
        "charge b is missing from the file",
        "charge c is new in the file",
        "charge a: price is 0.59, the file says 0.6",
        "charge a: where is {}, the file says {'model': 'llama'}",
    ]


def test_a_token_class_that_is_free_by_omission_is_told() -> None:
    assert unpriced_token_classes(version(charge("i", INPUT, "1"), charge("o", OUTPUT, "1"))) == (Metric.CACHED_INPUT,)
    assert unpriced_token_classes(version(charge("t", Metric.TOTAL_TOKENS, "1"))) == ()
    assert unpriced_token_classes(version(charge("r", Metric.REQUEST, "1"))) == ()


def test_tokens_that_two_charges_count_are_told() -> None:
    whole, out = charge("t", Metric.TOTAL_TOKENS, "1"), charge("o", OUTPUT, "1", model="llama")
    assert counted_twice(version(whole, out, charge("r", Metric.REQUEST, "1"))) == (("t", "o"),)
    assert counted_twice(version(charge("t", Metric.TOTAL_TOKENS, "1", model="qwen"), out)) == ()
    short, long = Filters(context_up_to=100), Filters(context_over=100)
    assert counted_twice(version(replace(whole, where=short), replace(out, where=long))) == ()
    assert counted_twice(version(replace(whole, where=short), replace(out, where=Filters(context_over=99))))
