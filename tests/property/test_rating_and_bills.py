"""Rating and invoices over random plans and usage, against a naive oracle in fractions and the laws they must keep."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from billing.invoicing.invoices import Invoice
from billing.money import plain, total
from billing.plans.price_plans import Charge, Filters, Metric, PerUnit, PlanVersion
from billing.rating import RatedLine, difference, net
from streams.rules.windows import UsageQuantity
from tests.billing_builders import invoice, rated, version

MODELS, ADAPTERS, REGIONS, TIERS = ("llama", "qwen"), ("", "lora"), ("eu", "us"), ("", "batch")
PRICES = st.integers(0, 10**19).map(lambda atto: Decimal(atto).scaleb(-18))
TOKENS = st.one_of(st.integers(0, 50), st.integers(0, 10**8))


def optional(values: tuple[str, ...]) -> st.SearchStrategy[str | None]:
    return st.none() | st.sampled_from([value for value in values if value])


FILTERS = st.builds(
    Filters, model=optional(MODELS), adapter=optional(ADAPTERS), region=optional(REGIONS), tier=optional(TIERS)
)


@st.composite
def plans(draw: st.DrawFn) -> PlanVersion:
    """A default charge for each metric that is priced at all, and further ones for some of the usage."""
    charges: dict[tuple[Metric, Filters], Charge] = {}
    for metric in draw(st.sets(st.sampled_from(Metric), min_size=1)):
        for where in [Filters(), *draw(st.lists(FILTERS, max_size=4))]:
            pricing = PerUnit(draw(PRICES))
            charges.setdefault((metric, where), Charge(f"c{len(charges):02d}", metric, where, pricing))
    return version(*draw(st.permutations(list(charges.values()))))


@st.composite
def usages(draw: st.DrawFn) -> UsageQuantity:
    tokens = draw(TOKENS)
    return UsageQuantity(
        tenant_id="tenant_1",
        model=draw(st.sampled_from(MODELS)),
        adapter=draw(st.sampled_from(ADAPTERS)),
        region=draw(st.sampled_from(REGIONS)),
        tier=draw(st.sampled_from(TIERS)),
        status=draw(st.sampled_from(["ok", "aborted", "error", "rejected", "lost"])),
        fault=draw(st.sampled_from(["none", "client", "platform"])),
        usage_source=draw(st.sampled_from(["engine", "stream", "gateway", "settled", "estimate"])),
        rating_band=draw(st.sampled_from(["", "long"])),
        requests=draw(st.integers(0, 10**6)),
        input_tokens=tokens,
        cache_hit_tokens=draw(st.integers(0, tokens)),
        output_tokens=draw(TOKENS),
        gpu_us=draw(st.integers(0, 10**12)),
    )


USED = st.lists(usages(), max_size=12)


def oracle(plan: PlanVersion, used: list[UsageQuantity]) -> tuple[dict[str, Fraction], int]:
    """The price per charge, quantised, and the cents, by the rules alone (docs/spec/money.md 2 to 5)."""
    quantities: dict[str, Fraction] = defaultdict(Fraction)
    prices = {charge.key: Fraction(charge.pricing.price) / charge.pricing.per for charge in plan.charges}
    for u in used:
        if u.status not in ("ok", "aborted") or u.fault == "platform" or u.usage_source == "estimate":
            continue
        for metric, quantity in (
            ("input", u.input_tokens - u.cache_hit_tokens),
            ("cached_input", u.cache_hit_tokens),
            ("output", u.output_tokens),
            ("total_tokens", u.input_tokens + u.output_tokens),
            ("request", u.requests),
            ("gpu_second", Fraction(u.gpu_us, 10**6)),
        ):
            best: tuple[tuple[bool | int, ...], str] | None = None
            for charge in plan.charges:
                w = charge.where
                pairs = ((w.adapter, u.adapter), (w.model, u.model), (w.region, u.region), (w.tier, u.tier))
                if charge.metric == metric and all(wanted is None or wanted == value for wanted, value in pairs):
                    given_ = tuple(wanted is not None for wanted, _ in pairs)
                    rank = (sum(given_), *given_)
                    best = max(best, (rank, charge.key)) if best else (rank, charge.key)
            if best:
                quantities[best[1]] += quantity
    exact = {key: Fraction(round(q * prices[key] * 10**12), 10**12) for key, q in quantities.items() if q}
    return exact, round(sum(exact.values(), Fraction(0)) * 100)


def by_charge(lines: tuple[RatedLine, ...]) -> dict[str, Fraction]:
    return {line.identity.charge_key: Fraction(line.amount) for line in lines}


@given(plan=plans(), used=USED)
def test_bills_equal_a_naive_oracle_to_the_last_digit(plan: PlanVersion, used: list[UsageQuantity]) -> None:
    rating = rated(plan, used)
    exact, cents = oracle(plan, used)
    assert rating.unpriced == ()
    assert by_charge(rating.lines) == exact
    bill: Invoice = invoice(rating.lines)
    assert bill.net_minor == cents
    assert Fraction(bill.exact_total) == sum(exact.values(), Fraction(0))


@given(plan=plans(), used=USED)
def test_the_lines_of_a_bill_add_up_exactly_and_rounded(plan: PlanVersion, used: list[UsageQuantity]) -> None:
    bill = invoice(rated(plan, used).lines)
    assert sum(line.amount_minor for line in bill.lines) == bill.net_minor == bill.total_minor
    assert total(line.rated.amount for line in bill.lines) == bill.exact_total
    assert Fraction(bill.net_minor, 100) + Fraction(bill.rounding) == Fraction(bill.exact_total)
    assert abs(Fraction(bill.rounding)) <= Fraction(1, 200)


@given(plan=plans(), used=USED, data=st.data())
def test_neither_order_nor_batching_of_usage_matters(
    plan: PlanVersion, used: list[UsageQuantity], data: st.DataObject
) -> None:
    shuffled = data.draw(st.permutations(used))
    batched: dict[tuple[str, ...], UsageQuantity] = {}
    for u in shuffled:
        key = (u.model, u.adapter, u.region, u.tier, u.status, u.fault, u.usage_source)
        old = batched.get(key)
        names = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")
        sums = {name: getattr(u, name) + (getattr(old, name) if old else 0) for name in names}
        batched[key] = dataclasses.replace(u, **sums)
    assert rated(plan, shuffled).lines == rated(plan, used).lines == rated(plan, list(batched.values())).lines


@given(plan=plans(), runs=st.lists(USED, min_size=1, max_size=4))
def test_posting_differences_run_by_run_comes_to_the_same_as_rating_once(
    plan: PlanVersion, runs: list[list[UsageQuantity]]
) -> None:
    posted: list[RatedLine] = []
    sofar: list[UsageQuantity] = []
    for run in runs:
        sofar += run
        posted += difference(rated(plan, sofar).lines, posted)
        assert difference(rated(plan, sofar).lines, posted) == ()
    assert by_charge(tuple(net(posted).values())) == by_charge(rated(plan, sofar).lines)
    assert invoice(posted) == invoice(rated(plan, sofar).lines)


@given(plan=plans(), before=USED, after=USED)
def test_whatever_was_posted_before_the_difference_leads_to_the_target(
    plan: PlanVersion, before: list[UsageQuantity], after: list[UsageQuantity]
) -> None:
    posted, target = rated(plan, before).lines, rated(plan, after).lines
    step = difference(target, posted)
    assert by_charge(tuple(net([*posted, *step]).values())) == by_charge(target)
    assert difference(target, [*posted, *step]) == ()


@given(plan=plans(), used=USED, more=usages())
def test_more_usage_never_costs_less(plan: PlanVersion, used: list[UsageQuantity], more: UsageQuantity) -> None:
    assert invoice(rated(plan, [*used, more]).lines).net_minor >= invoice(rated(plan, used).lines).net_minor


@given(plan=plans(), used=USED)
def test_every_billable_unit_is_on_exactly_one_line_of_its_metric(plan: PlanVersion, used: list[UsageQuantity]) -> None:
    billable = [
        u for u in used if u.status in ("ok", "aborted") and u.fault != "platform" and u.usage_source != "estimate"
    ]
    on_lines: dict[Metric, Decimal] = defaultdict(Decimal)
    for line in rated(plan, used).lines:
        on_lines[line.metric] += line.quantity
    for metric, count in (
        (Metric.TOTAL_TOKENS, sum(u.input_tokens + u.output_tokens for u in billable)),
        (Metric.INPUT, sum(u.input_tokens - u.cache_hit_tokens for u in billable)),
        (Metric.REQUEST, sum(u.requests for u in billable)),
    ):
        if metric in plan.metrics:
            assert plain(on_lines[metric]) == str(count)
