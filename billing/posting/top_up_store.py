"""Top-ups in the database: rules, what was bought by them, and what is left of an account's prepaid credit."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select, text

from billing import tables
from billing.bills.credits import GrantKind
from billing.bills.top_ups import TopUpRule
from billing.invoicing import credit_store
from billing.invoicing.credit_store import CreditState
from billing.money import ZERO, exactly, total
from billing.rating import LineKind

_NO_USAGE: Final = tuple(k.value for k in (LineKind.FEE, LineKind.PREPAID_FEE, LineKind.TRUE_UP, LineKind.TOP_UP))

# What usage has come to and no frozen document bills yet, before credits and tax.
_UNBILLED: Final = text(
    """
    select coalesce((select sum(amount) from ledger.rated_lines
                     where billing_account = :account and kind <> all(cast(:no_usage as text[]))), 0)
         - coalesce((select sum(l.amount_exact) from ledger.invoice_lines l join ledger.invoices i using (invoice_id)
                     where i.billing_account = :account and i.frozen_at is not null and i.kind <> 'advance'
                       and l.kind <> 'credit' and l.kind <> all(cast(:no_usage as text[]))), 0)
    """
)


def add_rule(connection: Connection, rule: TopUpRule, actor: str, *, ends: bool = False) -> None:
    """Record a rule, or that there is none from its `valid_from` on; it replaces what was said of the same moment."""
    said = (None, None, None, None) if ends else (rule.below, rule.amount, rule.monthly_limit, rule.expires_months)
    below, amount, limit, months = said
    connection.execute(
        tables.top_up_rules.insert().values(
            billing_account=rule.billing_account,
            currency=rule.currency,
            below=below,
            amount=amount,
            monthly_limit=limit,
            expires_months=months,
            valid_from=rule.valid_from,
            recorded_by=actor,
        )
    )


def rules_at(connection: Connection, moment: datetime) -> list[TopUpRule]:
    """The rules in force at a moment, by billing account."""
    table = tables.top_up_rules
    query = (
        select(table)
        .where(table.c.valid_from <= moment)
        .order_by(table.c.billing_account, table.c.valid_from, table.c.top_up_rule_no)
    )
    latest: dict[str, Row[Any]] = {row.billing_account: row for row in connection.execute(query)}
    return [
        TopUpRule(
            row.billing_account, row.currency, row.below, row.amount, row.monthly_limit, row.valid_from,
            row.expires_months, row.top_up_rule_no,
        )
        for row in latest.values()
        if row.amount is not None
    ]  # fmt: skip


def lock(connection: Connection, billing_account: str) -> None:
    """Let top-ups of an account go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"top_up/{billing_account}", 0))))


def add(connection: Connection, grant_ids: Iterable[str], rule_no: int | None) -> None:
    """Record that credits are top-ups, by a rule or by hand."""
    rows = [{"grant_id": grant_id, "top_up_rule_no": rule_no} for grant_id in grant_ids]
    connection.execute(tables.top_ups.insert(), rows)


def is_top_up(connection: Connection, grant_id: str) -> bool:
    """Whether a credit is a top-up."""
    table = tables.top_ups
    return connection.execute(select(table.c.grant_id).where(table.c.grant_id == grant_id)).first() is not None


def bought_by_rule(
    connection: Connection, billing_account: str, since: datetime, until: datetime
) -> dict[str, Decimal]:
    """What rules bought for an account within [since, until), paid or not: credit → amount in major units."""
    given, bought = tables.credit_grants, tables.top_ups
    query = (
        select(given.c.grant_id, given.c.amount)
        .join(bought, bought.c.grant_id == given.c.grant_id)
        .where(
            given.c.billing_account == billing_account,
            given.c.effective_at >= since,
            given.c.effective_at < until,
            bought.c.top_up_rule_no.is_not(None),
        )
    )
    return {row[0]: row[1] for row in connection.execute(query)}


def left_of_prepaid(connection: Connection, billing_account: str, at: datetime) -> Decimal:
    """What is left of an account's paid credits at a moment, in major units; below zero where more was used.

    Top-ups that are not paid yet count, so that none is bought twice. What frozen invoices are about to draw is off,
    and so is usage that is rated and not invoiced.
    """
    waiting = set(connection.execute(select(tables.top_ups.c.grant_id)).scalars())
    held = [
        state
        for state in credit_store.states(connection, accounts=[billing_account])
        if state.grant.kind is GrantKind.PAID and _counts(state, at, waiting)
    ]
    reserved = credit_store.reserved(connection, [state.grant.grant_id for state in held], draws_alone=True)
    unbilled = connection.execute(_UNBILLED, {"account": billing_account, "no_usage": list(_NO_USAGE)}).scalar_one()
    with exactly():
        left: Decimal = total(state.remaining for state in held) - total(reserved.values()) - max(ZERO, unbilled)
    return left


def _counts(state: CreditState, at: datetime, top_ups: set[str]) -> bool:
    grant = state.grant
    if state.voided or (grant.expires is not None and grant.expires <= at) or grant.effective > at:
        return False
    return grant.owed_from is not None or grant.grant_id in top_ups
