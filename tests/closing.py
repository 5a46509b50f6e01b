"""A month's close on the command line, as two people do it; and a month's bills alone, for tests of billing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import Engine

from billing.commands.close_month import MonthClosed, finalize_month, prepare_month
from billing.periods import BillingPeriod
from billing.stripe.stripe_gateway import StripeGateway

Tollbook = Callable[..., str]
"""Runs a command that must end with `code` (default 0) and returns what it printed."""
WORTH = ("--low", "0", "--high", "1", "--currency", "USD")


def bill_month(
    engine: Engine, *, period: BillingPeriod, gateway: StripeGateway, now: datetime, actor: str, test: bool = False
) -> MonthClosed:
    """Rate a month, draw up and issue, without the gates and the approval of a close."""
    prepared = prepare_month(engine, period=period, gateway=gateway, now=now, actor=actor, test=test)
    return finalize_month(engine, prepared, gateway=gateway, now=now, actor=actor)


def close_by_two(tollbook: Tollbook, month: str, now: str, *, waived: str = "") -> None:
    """Close a month: ada runs it, bob approves, ada runs it again."""
    draw_up(tollbook, month, now, waived=waived)
    tollbook("close", "approve", month, "--as", "bob")
    tollbook("close", "explain", month, "--all", "--reason", "traffic of a test", "--as", "bob")
    tollbook("close", "run", month, "--test", "--now", now, "--as", "ada")


def draw_up(tollbook: Tollbook, month: str, now: str, *, waived: str = "") -> None:
    """Have every draft of a month compared. `waived`: the gate that holds it up until bob waives what it finds."""
    run = ("close", "run", month, "--test", "--now", now, "--as", "ada")
    if waived:
        tollbook(*run, code=1)
        tollbook("close", "waive", month, waived, "--all", "--reason", "looked at", *WORTH, "--as", "bob")
    tollbook(*run)
