"""Exchange rates as records, and books that are remeasured by them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from billing.commands.decide_proposal import decide, propose
from billing.commands.remeasure_balances import remeasure_balances
from billing.commands.set_exchange_rate import exchange_rates, set_exchange_rate
from billing.database import transaction
from billing.errors import ProposalRefused, RateRefused, UnknownCurrency
from billing.ledger.exchange_rates import ExchangeRate
from billing.posting.period_closing import close_book
from billing.posting.proposal_store import ProposalKind
from tests.billing_builders import NOVEMBER, NOW, OCTOBER
from tests.integration.billing.conftest import World

WAITING = (
    "select pid from pg_locks where locktype = 'advisory' and not granted"
    " and database = (select oid from pg_database where datname = current_database())"
)


def set_rate(world: World, rate: str, day: str, base: str = "EUR", quote: str = "USD") -> bool:
    at = datetime.fromisoformat(day).replace(tzinfo=UTC)
    return set_exchange_rate(world.engine, ExchangeRate(base, quote, Decimal(rate), at, "ECB"), actor="ada")


def book(world: World, day: str, *legs: tuple[int, str, str, str]) -> None:
    content: dict[str, Any] = {
        "effective_at": f"{day}T12:00:00Z",
        "memo": "m",
        "legs": [{"account": c, "currency": cur, "amount": a, "subledger": s} for c, cur, a, s in legs],
    }
    number = propose(world.engine, ProposalKind.POST_ENTRY, "default", content, document="d", now=NOW, actor="ada")
    decide(world.engine, number, approved=True, now=NOW, actor="bob")


def close(world: World, month: str) -> None:
    with transaction(world.engine) as connection:
        close_book(connection, "default", month, NOW)


def clearing(world: World) -> list[tuple[str, str, Decimal]]:
    return world.rows(
        "select e.accounting_period, a.currency, p.amount from ledger.postings p join ledger.journal_entries e"
        " using (entry_id) join ledger.accounts a using (account_id)"
        " where a.code = 5300 and e.kind = 'remeasurement' order by e.entry_id"
    )


def test_rates_are_recorded_once_kept_one_way_round_and_never_changed(world: World) -> None:
    assert set_rate(world, "1.1", "2026-10-01")
    assert not set_rate(world, "1.1", "2026-10-01")
    assert set_rate(world, "1.15", "2026-10-01")
    assert [each.rate for each in exchange_rates(world.engine)] == [Decimal("1.1"), Decimal("1.15")]
    for rate, base, quote, told in (
        ("0.9", "USD", "EUR", "kept as EUR in USD"), ("0", "EUR", "USD", "more than nothing"),
        ("1", "EUR", "EUR", "two currencies"),
    ):  # fmt: skip
        with pytest.raises(RateRefused, match=told):
            set_rate(world, rate, "2026-10-02", base, quote)
    with pytest.raises(UnknownCurrency):
        set_rate(world, "1", "2026-10-02", "XXX")
    row = "insert into ledger.exchange_rates (base, quote, rate, valid_from, document, recorded_by) values"
    for statement, told in (
        ("update ledger.exchange_rates set rate = 2", "append-only|permission denied"),
        ("delete from ledger.exchange_rates", "append-only|permission denied"),
        (f"{row} ('USD', 'EUR', 1, now(), 'd', 'x')", "kept as EUR in USD"),
        (f"{row} ('USD', 'GBP', 0, now(), 'd', 'x')", "rate_check"),
    ):
        with pytest.raises(DBAPIError, match=told):
            world.execute(statement)


def test_balances_in_another_currency_are_remeasured_at_each_months_end_and_again_where_something_came(
    world: World,
) -> None:
    for rate, day in (("1.1", "2026-10-01"), ("1.2", "2026-10-31"), ("1.16", "2026-11-10"), ("1.3", "2026-11-30")):
        set_rate(world, rate, day)
    # 100 EUR earned at 1.10 = 110, worth 120 at the end.
    book(world, "2026-10-05", (1100, "EUR", "100", "acme"), (4000, "EUR", "-100", ""))
    assert [(each.loss, each.problem) for each in remeasure_balances(world.engine, OCTOBER, now=NOW)] == [(-10, None)]
    assert [each.loss for each in remeasure_balances(world.engine, OCTOBER, now=NOW)] == [0]
    book(world, "2026-10-31", (1100, "EUR", "-30", "acme"), (1020, "EUR", "30", ""))
    book(world, "2026-10-06", (1100, "EUR", "10", "acme"), (4000, "EUR", "-10", ""))
    close(world, "2026-10")
    assert clearing(world) == [("2026-10", "USD", -10), ("2026-10", "USD", -1)]
    # 110 EUR at 1.20 = 132. 100 become 115 USD at a rate of 1.16; 10 are left at 1.30 = 13: 132 - 115 - 13 = 4 lost.
    book(
        world, "2026-11-10", (1020, "EUR", "-100", ""), (1190, "EUR", "100", ""), (1020, "USD", "115", ""),
        (1190, "USD", "-115", ""),
    )  # fmt: skip
    assert [each.loss for each in remeasure_balances(world.engine, NOVEMBER, now=NOW)] == [4]
    with pytest.raises(RateRefused, match="2026-10 is closed"):
        set_rate(world, "1.5", "2026-10-31")


def test_a_book_with_another_currency_and_no_rate_is_not_closed_and_one_without_needs_none(world: World) -> None:
    book(world, "2026-10-05", (1100, "USD", "5", "acme"), (4000, "USD", "-5", ""))
    assert [each.problem for each in remeasure_balances(world.engine, OCTOBER, now=NOW)] == [None]
    book(world, "2026-10-05", (1100, "EUR", "5", "acme"), (4000, "EUR", "-5", ""))
    (found,) = remeasure_balances(world.engine, OCTOBER, now=NOW)
    assert "no exchange rate of EUR in USD" in str(found.problem)
    with pytest.raises(ProposalRefused, match="tollbook exchange set EUR USD"):
        close(world, "2026-10")
    assert clearing(world) == []


def test_no_rate_slips_into_a_book_while_it_closes(world: World) -> None:
    set_rate(world, "1.1", "2026-10-01")
    with ThreadPoolExecutor(1) as other:
        with transaction(world.engine) as closing:
            close_book(closing, "default", "2026-10", NOW)
            setting = other.submit(set_rate, world, "1.2", "2026-10-31")
            while not setting.done() and not world.rows(WAITING):
                time.sleep(0.01)
        with pytest.raises(RateRefused, match="2026-10 is closed"):
            setting.result()
    assert [each.rate for each in exchange_rates(world.engine)] == [Decimal("1.1")]
