"""Which rules a tenant's plans ask ingestion for, and from when on rules differ."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from billing.money import plain
from billing.plans.charge_models import Flat, PerUnit
from billing.plans.price_plans import Charge, Filters, Metric, PlanVersion, PriceAt, Terms
from billing.plans.subscriptions import Subscription, in_force_since, version_name
from billing.rating import rate
from billing.usage.rating_bands import needs_bands, rules_of
from streams.rules.rating_bands import BandKind, BandRule, RatingBand, differ_from, parse_band
from tests.billing_builders import OCTOBER, SINCE, charge, cut, subscription, usage, version

MAY, JUNE, JULY = (datetime(2026, month, 1, tzinfo=UTC) for month in (5, 6, 7))
PLAIN = charge("c", Metric.INPUT, "1")


def step(key: str, **where: int) -> Charge:
    return Charge(key, Metric.INPUT, Filters(**where), PerUnit(Decimal(1)))


def rules(listed: list[Subscription], versions: list[PlanVersion], **more: list[PlanVersion]) -> list[tuple[Any, ...]]:
    found = rules_of("tenant_1", listed, {"p": versions} | more)
    assert {(rule.tenant_id, rule.model) for rule in found} <= {("tenant_1", "")}
    return [(rule.kind.value, rule.valid_from, rule.steps or rule.price_version) for rule in found]


def test_plans_without_steps_and_without_prices_by_the_start_ask_for_nothing() -> None:
    assert rules([subscription()], [version(PLAIN), version(PLAIN, name="v2", valid_from=MAY)]) == []
    started = subscription(terms=Terms(price_at=PriceAt.START))
    assert rules([started], [version(PLAIN)]) == []
    assert not needs_bands(started, {"p": [version(PLAIN)]})


def test_a_step_begins_with_the_token_after_its_bound_and_ends_with_the_subscription() -> None:
    stepped = version(step("short", context_up_to=1000), step("long", context_over=1000, context_up_to=5000))
    found = rules([subscription(starts_at=MAY, ends_at=JUNE)], [stepped])
    # What follows the end is another subscription's, or nobody's: the rule may go on until somebody says otherwise.
    assert found == [("context", MAY, (1001, 5001))]
    after = subscription(starts_at=JUNE, plan="q")
    q = [version(PLAIN, plan="q")]
    assert rules([subscription(starts_at=MAY, ends_at=JUNE), after], [stepped], q=q) == [*found, ("context", JUNE, "")]


def test_steps_change_with_the_version_and_stay_known_where_the_start_decides() -> None:
    versions = [version(step("a", context_over=1)), version(step("a", context_over=2), name="v2", valid_from=MAY)]
    assert rules([subscription()], versions) == [("context", SINCE, (2,)), ("context", MAY, (3,))]
    assert rules([subscription(terms=Terms(price_at=PriceAt.START))], versions) == [
        ("context", SINCE, (2,)), ("context", MAY, (2, 3)), ("started", MAY, "2026-05-01T00:00:00Z"),
    ]  # fmt: skip


def test_a_start_is_marked_by_the_versions_of_every_plan_that_may_price_it() -> None:
    by_start = Terms(price_at=PriceAt.START)
    p = [version(PLAIN), version(PLAIN, name="v2", valid_from=MAY)]
    q = [version(PLAIN, plan="q"), version(PLAIN, plan="q", name="v2", valid_from=JULY)]
    listed = [subscription(terms=by_start, ends_at=JUNE), subscription(terms=by_start, plan="q", starts_at=JUNE)]
    assert [(kind, at) for kind, at, _ in rules(listed, p, q=q)] == [("started", MAY), ("started", JULY)]


@pytest.mark.parametrize("at", [SINCE, datetime(2026, 10, 16, 12, 30, 15, 250_001, tzinfo=UTC)])
def test_a_version_is_named_by_when_it_came_into_force(at: datetime) -> None:
    assert in_force_since(version_name(at)) == at
    assert parse_band(f"context=128000;price={version_name(at)}") == RatingBand(128_000, version_name(at))


def test_a_band_may_say_one_thing_or_none() -> None:
    assert parse_band("") == RatingBand()
    assert parse_band("context=0") == RatingBand(context=0)
    assert parse_band("price=v1") == RatingBand(price_version="v1")


def test_rules_differ_from_the_first_moment_at_which_they_say_something_else() -> None:
    def of(at: datetime, *steps: int) -> BandRule:
        return BandRule("t", "", BandKind.CONTEXT, at, steps)

    assert differ_from([], []) is None
    assert differ_from([of(MAY, 1)], [of(MAY, 1), of(JUNE, 1)]) is None
    assert differ_from([], [of(MAY, 1)]) == MAY
    assert differ_from([of(MAY, 1)], []) == MAY
    assert differ_from([of(MAY, 1), of(JULY, 3)], [of(MAY, 1), of(JUNE, 2), of(JULY, 3)]) == JUNE
    assert differ_from([of(MAY, 1)], [of(MAY, 2)]) == MAY


def test_sums_are_priced_by_the_version_at_their_start_and_fees_are_due_all_the_same() -> None:
    fee = Charge("fee", "", Filters(), Flat(Decimal(7)), prorated=False)
    v1 = version(charge("c", Metric.INPUT, "1"), fee)
    v2 = version(charge("c", Metric.INPUT, "10"), fee, name="v2", valid_from=OCTOBER.start)
    (piece,) = cut([v1, v2], of=subscription(terms=Terms(price_at=PriceAt.START)))
    marked = usage(input_tokens=3, rating_band=f"price={version_name(OCTOBER.start)}")
    found = rate([(piece, [usage(input_tokens=5), marked])], OCTOBER, versions={"p": (v1, v2)}).lines
    assert {(line.identity.charge_key, line.identity.version): plain(line.amount) for line in found} == {
        ("c", "v1"): "5", ("c", "v2"): "30", ("fee", "v2"): "7",
    }  # fmt: skip


def test_sums_are_priced_by_the_step_that_their_requests_reached() -> None:
    short, long = step("short", context_up_to=1000), step("long", context_over=1000)
    (piece,) = cut([version(short, long)])
    sums = [usage(input_tokens=5, rating_band="context=0"), usage(input_tokens=7, rating_band="context=1001")]
    rating = rate([(piece, sums)], OCTOBER)
    assert {line.identity.charge_key: plain(line.quantity) for line in rating.lines} == {"short": "5", "long": "7"}
    unmarked = rate([(piece, [usage(input_tokens=9)])], OCTOBER)
    assert unmarked.lines == ()
    assert ("input", "9") in {(missing.metric, missing.quantity) for missing in unmarked.unpriced}
