"""Whole bills worked by hand, from usage to the rounded lines. Names as in the golden cases of docs/spec."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from billing.invoicing.invoice_states import InvoiceEvent, settled_locally
from billing.money import Rounding, plain
from billing.plans.price_plans import Charge, Metric, PlanVersion
from billing.rating import RatedLine
from streams.rules.windows import UsageQuantity
from tests.billing_builders import NOVEMBER, bill, charge, invoice, rated, rounded, usage, version

INPUT, CACHED, OUTPUT = Metric.INPUT, Metric.CACHED_INPUT, Metric.OUTPUT


def by_model(
    prices: dict[str, str], quantities: dict[str, int], **plan: str
) -> tuple[PlanVersion, list[UsageQuantity]]:
    """A charge per key on the output of a model of that name, and its usage."""
    charges: list[Charge] = [charge(key, OUTPUT, price, model=key) for key, price in prices.items()]
    return version(*charges, **plan), [usage(model=key, output_tokens=q) for key, q in quantities.items()]


def test_p01_sub_nano_prices_with_cached_input_counted_apart() -> None:
    # uncached = 4 000 000 001 − 1 600 000 003 = 2 399 999 998; × 2.5e-9 = 5.999999995
    # cached 1 600 000 003 × 6.25e-10 = 1.000000001875; output 123 456 789 × 1e-8 = 1.23456789
    # Sum 8.234567886875 → 8.23. Floors 100 + 599 + 123 = 822: the cent goes to input (fraction .9999995).
    plan = version(
        charge("cached", CACHED, "0.000000000625"),
        charge("input", INPUT, "0.0000000025"),
        charge("output", OUTPUT, "0.00000001"),
    )
    found = bill(plan, [usage(input_tokens=4000000001, cache_hit_tokens=1600000003, output_tokens=123456789)])
    exact = {line.line_key: plain(line.rated.amount) for line in found.lines}
    assert exact == {"cached": "1.000000001875", "input": "5.999999995", "output": "1.23456789"}
    assert rounded(found) == {"cached": 100, "input": 600, "output": 123}
    assert plain(found.exact_total) == "8.234567886875"
    assert (found.net_minor, found.total_minor, found.amount_due_minor) == (823, 823, 823)
    assert plain(found.rounding) == "0.004567886875"
    assert settled_locally(found) is None


def test_p02_a_line_is_quantised_half_even_at_twelve_decimals() -> None:
    # 20 000 000 003 × 5e-13 = 0.0100000000015 → …0002 (2 is even); 20 000 000 005 × 5e-13 = …0025 → …0002 (even).
    plan, used = by_model({"a": "0.0000000000005", "b": "0.0000000000005"}, {"a": 20000000003, "b": 20000000005})
    found = bill(plan, used)
    assert [plain(line.rated.amount) for line in found.lines] == ["0.010000000002", "0.010000000002"]
    assert rounded(found) == {"a": 1, "b": 1}
    assert (found.net_minor, plain(found.rounding)) == (2, "0.000000000004")


def test_p24_exactly_half_a_cent_goes_to_the_even_cent() -> None:
    # 2125 × 0.001 = 2.125 → 2.12; 2135 × 0.001 = 2.135 → 2.14.
    plan = version(charge("a", OUTPUT, "0.001"))
    october, november = (
        bill(plan, [usage(output_tokens=2125)]),
        bill(plan, [usage(output_tokens=2135)], period=NOVEMBER),
    )
    assert (october.net_minor, plain(october.rounding)) == (212, "0.005")
    assert (november.net_minor, plain(november.rounding)) == (214, "-0.005")


def test_p25_the_same_half_cent_where_the_contract_says_half_up() -> None:
    plan = version(charge("a", OUTPUT, "0.001"))
    found = bill(plan, [usage(output_tokens=2125)], rounding=Rounding.HALF_UP)
    assert (found.net_minor, plain(found.rounding)) == (213, "-0.005")


def test_p26_a_three_way_tie_goes_to_the_first_key() -> None:
    # 0.105 × 3 + 0.04 = 0.355 → 0.36 (even: 35.5 → 36). Floors 10 + 10 + 10 + 4 = 34; two cents to a and b.
    plan, used = by_model(dict.fromkeys("abcd", "0.001"), {"a": 105, "b": 105, "c": 105, "d": 40})
    assert rounded(bill(plan, used)) == {"a": 11, "b": 11, "c": 10, "d": 4}


def test_p27_250_lines_of_0_4_cent_are_one_dollar() -> None:
    # Rounded line by line they would be 0.00. All fractions are equal: the 100 cents go to the first 100 keys.
    keys = [f"l{number:03d}" for number in range(1, 251)]
    plan, used = by_model(dict.fromkeys(keys, "0.001"), dict.fromkeys(keys, 4))
    found = bill(plan, used)
    assert (found.net_minor, plain(found.exact_total), plain(found.rounding)) == (100, "1", "0")
    assert [line.amount_minor for line in found.lines] == [1] * 100 + [0] * 150


def test_p28_net_of_a_currency_without_decimals() -> None:
    # 2469 × 0.5 = 1234.5; 3082 × 0.25 = 770.5; together 2005 yen; the tie goes to a.
    plan, used = by_model({"a": "0.5", "b": "0.25"}, {"a": 2469, "b": 3082}, currency="JPY")
    found = bill(plan, used, currency="JPY")
    assert rounded(found) == {"a": 1235, "b": 770}
    assert (found.net_minor, plain(found.rounding)) == (2005, "0")


def test_p29_a_three_decimal_currency_ends_in_zero() -> None:
    # 12.3456 / 0.010 = 1234.56 → 1235 quanta. Floors 1012 + 222; the missing quantum goes to a (.34 against .22).
    plan, used = by_model({"a": "0.0001", "b": "0.0001"}, {"a": 101234, "b": 22222}, currency="KWD")
    found = bill(plan, used, currency="KWD")
    assert rounded(found) == {"a": 10130, "b": 2220}
    assert (found.net_minor, plain(found.rounding)) == (12350, "-0.0044")


def test_p30_net_of_three_lines_with_a_tie() -> None:
    # 10.494 + 5.003 + 20.004 = 35.501 → 35.50; floors 1049 + 500 + 2000, the cent: tie .4 of a and c → a.
    plan, used = by_model(dict.fromkeys("abc", "0.001"), {"a": 10494, "b": 5003, "c": 20004}, currency="EUR")
    found = bill(plan, used, currency="EUR")
    assert rounded(found) == {"a": 1050, "b": 500, "c": 2000}
    assert (found.net_minor, plain(found.rounding)) == (3550, "0.001")


def test_p40_below_stripes_minimum_is_carried_and_the_minimum_itself_is_not() -> None:
    # 300 × 0.001 = 0.30 < 0.50; 500 × 0.001 = 0.50 is not below the minimum.
    plan = version(charge("a", OUTPUT, "0.001"))
    assert settled_locally(bill(plan, [usage(output_tokens=300)])) is InvoiceEvent.CARRY
    assert settled_locally(bill(plan, [usage(output_tokens=494)])) is InvoiceEvent.CARRY
    assert settled_locally(bill(plan, [usage(output_tokens=500)])) is None
    assert settled_locally(bill(plan, [usage(output_tokens=4)])) is InvoiceEvent.SETTLE_AS_ZERO


def test_p42_request_gpu_second_and_total_tokens_are_metrics_of_their_own() -> None:
    # gpu 1.75 × 0.0004 = 0.0007; 2 × 0.01 = 0.02; (600 + 400 + 50) + (500 + 25) = 1575 × 0.00002 = 0.0315.
    plan = version(
        charge("gpu", Metric.GPU_SECOND, "0.0004"),
        charge("req", Metric.REQUEST, "0.01"),
        charge("tok", Metric.TOTAL_TOKENS, "0.00002"),
    )
    used = [
        usage(input_tokens=1000, cache_hit_tokens=400, output_tokens=50, gpu_us=1_500_000),
        usage(input_tokens=500, output_tokens=25, gpu_us=250_000),
    ]
    found = bill(plan, used)
    assert rounded(found) == {"gpu": 0, "req": 2, "tok": 3}
    assert (found.net_minor, plain(found.exact_total), plain(found.rounding)) == (5, "0.0522", "0.0022")


def test_the_lines_of_several_tenants_on_one_account_add_up() -> None:
    plan = version(charge("a", OUTPUT, "0.001"))
    lines: list[RatedLine] = [
        line for tenant in ("t1", "t2", "t3") for line in rated(plan, [usage(tenant, output_tokens=105)]).lines
    ]
    # The builder rates them for tenant_1: what tells them apart on the invoice is the tenant.
    lines = [
        replace(line, identity=replace(line.identity, tenant_id=tenant))
        for line, tenant in zip(lines, ("t1", "t2", "t3"), strict=True)
    ]
    found = invoice(lines)
    # 0.315 → 0.32 (31.5 → 32); floors 30: two cents to the first two keys.
    assert rounded(found) == {"a@t1": 11, "a@t2": 11, "a@t3": 10}
    assert found.exact_total == Decimal("0.315")
