"""What a customer is told of a replay is what the plan says follows from it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from reconciliation.replay.outcome import MoneyEffect, came_out, customer_message

USAGE = {"month": "2026-10", "requests": 3, "input_tokens": 30, "cache_hit_tokens": 0, "output_tokens": 3}


def told(**changed: Any) -> str:
    values: dict[str, Any] = {
        "tenant_id": "t", "billing_account": "t", "period": "2026-10", "currency": "USD", "amount": Decimal(5),
        "frozen": True, "books_closed": False,
    }  # fmt: skip
    effect = MoneyEffect(**values | changed)
    message = customer_message("t", [USAGE], [effect.as_document()], first="", last="")
    return message.split("What it means for your bill:\n")[1].split("\n\n")[0]


def test_a_closed_tenant_is_told_of_an_invoice_of_its_own_as_the_plan_says() -> None:
    said = told(tenant_closed=True)
    assert "5.00 USD" in said
    assert "1,235 JPY" in told(currency="JPY", amount=Decimal("1234.5678"))
    assert "an invoice of its own" in said
    assert "next" not in said
    assert "a line of its own on the next one" in told()
    assert "credit note" in told(tenant_closed=True, amount=Decimal(-5))


def test_who_is_given_back_usage_is_not_told_that_some_was_added() -> None:
    """As of a tenant under whose name another's was counted."""
    usage = {"month": "2026-10", "requests": 0, "input_tokens": -60, "cache_hit_tokens": -24, "output_tokens": -30}
    message = customer_message("t", [usage], [], first="", last="")
    assert "2026-10: 0 requests, 60 input tokens (24 of them cached), 30 output tokens" in message
    assert "taken it back" in message
    assert "added" not in message


def test_who_had_no_invoice_is_not_told_of_one() -> None:
    said = told(without_invoice=True)
    assert "You had no invoice for 2026-10; the amount is a line of its own on the next one" in said
    assert "stays as it is" not in told(without_invoice=True, amount=Decimal(0))
    values = ("t", "t", "2026-10", "USD", Decimal(5), True, True)
    assert MoneyEffect(*values, without_invoice=True).follows.startswith("2026-10 is closed without an invoice: a line")


def test_of_what_is_cut_no_invoice_is_promised_and_reopening_only_where_it_may_be() -> None:
    assert "is drawn up without it; the amount is a line of its own on the next one" in told(cut=True)
    values = ("t", "t", "2026-10", "USD", Decimal(5), True, False)
    assert "close reopen 2026-10 t" in MoneyEffect(*values, cut=True, reopen="2026-10").follows
    assert "reopen" not in MoneyEffect(*values, cut=True).follows


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_later_than_the_contract_bills_is_not_said_to_be_on_an_invoice(frozen: bool) -> None:
    only = told(unbillable=3, amount=Decimal(0), frozen=frozen)
    assert "3 of these requests" in only
    assert "not charged" in only
    assert "your invoice" not in only.lower()
    some = told(unbillable=2, frozen=frozen)
    assert "2 of these requests" in some
    assert "your invoice for 2026-10" in some.lower(), "the rest is billed"


def test_of_a_period_that_was_cut_while_a_plan_was_applied_nothing_is_promised() -> None:
    values: dict[str, Any] = {"currency": "USD", "amount": Decimal(5), "frozen": False, "books_closed": False}
    money = [MoneyEffect("t", payer, "2026-10", **values).as_document() for payer in ("t", "group")]
    usage = [USAGE | {"tenant_id": "t"}]
    cut, open_ = came_out(money, usage, usage, ["t 2026-10"])
    assert "2026-10 is changed while it was applied" in cut["follows"]
    assert "billed as any usage" in cut["problem"]
    assert open_ == money[1]


@pytest.mark.parametrize("frozen", [True, False])
def test_what_could_not_be_rated_is_named_without_an_amount(frozen: bool) -> None:
    said = told(problem="no price for llama", amount=Decimal(0), currency="", frozen=frozen)
    assert "2026-10: We are still working out" in said
    assert "0.00" not in said
    assert "your invoice" not in said.lower()
    assert "no price for llama" not in said, "ours, not the customer's"
