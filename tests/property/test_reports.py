"""Parts of reports add up, whatever they are made of."""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from billing.money import total
from billing.reports.ageing import Receivable, Settled, ageing_report
from billing.reports.erp import OWN_CHART, erp_report
from billing.reports.focus import apportioned
from tests.billing_builders import OCTOBER

CENTS = st.integers(-(10**9), 10**9)
TODAY = date(2026, 10, 31)


@given(weights=st.lists(st.integers(1, 10**9), min_size=1, max_size=20), share=st.fractions(0, 1))
def test_parts_add_up_and_none_is_above_its_weight(weights: list[int], share: Fraction) -> None:
    amount = int(sum(weights) * share)
    parts = apportioned(amount, dict(enumerate(weights)))
    assert sum(parts.values()) == amount
    assert all(0 <= parts[at] <= weight for at, weight in enumerate(weights))


@given(
    documents=st.lists(st.tuples(CENTS, st.integers(-100, 400), st.booleans(), st.integers(0, 9)), max_size=10),
    settled=st.lists(st.tuples(CENTS, st.integers(0, 12)), max_size=10),
)
def test_what_is_open_is_what_was_asked_for_less_what_came(
    documents: list[tuple[int, int, bool, int]], settled: list[tuple[int, int]]
) -> None:
    asked = [
        Receivable(
            f"d{number}", "acme", "USD", Decimal(amount).scaleb(-2), f"d{number}",
            due=TODAY - timedelta(days=days), is_paid=paid, against=f"d{against}" if amount < 0 else None,
        )
        for number, (amount, days, paid, against) in enumerate(documents)
    ]  # fmt: skip
    came = [Settled("acme", "USD", Decimal(amount).scaleb(-2), f"d{of}") for amount, of in settled]
    whole = total([*(each.amount for each in asked), *(each.amount for each in came)])
    found = ageing_report(asked, came, TODAY, {("USD", "acme"): whole} if whole else {}, by_document=True)
    assert found.holds
    assert sum(row["open"] < 0 for row in found.rows) <= 1


AMOUNTS = st.lists(st.decimals("-1e9", "1e9", places=12), min_size=1, max_size=8)


@given(first=AMOUNTS, second=AMOUNTS)
def test_another_ledger_is_within_a_cent_of_ours_after_every_month(first: list[Decimal], second: list[Decimal]) -> None:
    codes = [str(code) for code in OWN_CHART]

    def balanced(amounts: list[Decimal]) -> dict[tuple[str, str], Decimal]:
        whole = [*amounts, -total(amounts)]
        return {("USD", code): amount for code, amount in zip(codes, whole, strict=False)}

    opening, closing = balanced(first), balanced(second)
    theirs: dict[str, list[Decimal]] = {code: [] for code in codes}
    for before, after in (({}, opening), (opening, closing)):
        found = erp_report(before, after, {}, OCTOBER, OWN_CHART, legal_entity="default")
        assert found.ties[0].holds
        for row in found.rows:
            theirs[row["account"]] += [row["debit"], -row["credit"]]
        for code in codes:
            assert abs(total([*theirs[code], -after.get(("USD", code), Decimal(0))])) < Decimal("0.01")
