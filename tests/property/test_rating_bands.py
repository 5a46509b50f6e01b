"""Rating bands: what a band says of a request is true of it, and nothing else moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from streams.rules.rating_bands import BandKind, BandRule, RatingBands

BEGIN = datetime(2026, 10, 1, tzinfo=UTC)
times = st.integers(0, 60 * 24).map(lambda hours: BEGIN + timedelta(hours=hours))
tokens = st.integers(0, 300_000)
steps = st.lists(st.integers(1, 300_000), unique=True, max_size=4).map(lambda found: tuple(sorted(found)))
models = st.sampled_from(["", "llama", "qwen"])
context_rules = st.builds(BandRule, st.sampled_from(["a", "b"]), models, st.just(BandKind.CONTEXT), times, steps=steps)
started_rules = st.builds(
    BandRule, st.sampled_from(["a", "b"]), models, st.just(BandKind.STARTED), times,
    price_version=st.sampled_from(["", "v1", "v2"]),
)  # fmt: skip
rule_lists = st.lists(
    st.one_of(context_rules, started_rules),
    unique_by=lambda r: (r.tenant_id, r.model, r.kind, r.valid_from),
    max_size=8,
)


def naive(rules: list[BandRule], model: str, kind: BandKind, at: datetime) -> BandRule | None:
    """The rule in force, looked for one by one."""
    best = None
    for rule in rules:
        if rule.tenant_id == "a" and rule.model in (model, "") and rule.kind is kind and rule.valid_from <= at:
            rank = (rule.model != "", rule.valid_from)
            if best is None or rank > (best.model != "", best.valid_from):
                best = rule
    return best


@given(rule_lists, st.sampled_from(["llama", "qwen", "other"]), tokens, times, times)
def test_a_band_is_the_greatest_step_reached_and_the_version_at_the_start(
    rules: list[BandRule], model: str, input_tokens: int, completed: datetime, started: datetime
) -> None:
    expected = []
    context = naive(rules, model, BandKind.CONTEXT, completed)
    if context and context.steps:
        expected.append(f"context={max([0, *(step for step in context.steps if step <= input_tokens)])}")
    version = naive(rules, model, BandKind.STARTED, started)
    if version and version.price_version:
        expected.append(f"price={version.price_version}")
    assert RatingBands(rules).of("a", model, input_tokens, completed, started) == ";".join(expected)


@given(rule_lists, tokens, tokens, times)
def test_requests_between_the_same_two_steps_share_a_band(
    rules: list[BandRule], first: int, second: int, at: datetime
) -> None:
    bands = RatingBands(rules)
    context = naive(rules, "llama", BandKind.CONTEXT, at)
    same = not context or all((step <= first) == (step <= second) for step in context.steps)
    assert (bands.of("a", "llama", first, at, at) == bands.of("a", "llama", second, at, at)) == same


@given(rule_lists, tokens, times)
def test_a_tenant_without_rules_has_no_band(rules: list[BandRule], input_tokens: int, at: datetime) -> None:
    bands = RatingBands(rules)
    assert "nobody" not in bands.tenants
    assert bands.of("nobody", "llama", input_tokens, at, at) == ""
