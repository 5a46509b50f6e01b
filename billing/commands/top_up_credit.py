"""Buy credit where it runs low: rules by billing account, and by hand. It is usable, and owed, once it is settled; or
at once, with its invoice, where the contract lets it count from then."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, Engine

from billing.bills.credits import Grant, GrantKind
from billing.bills.top_ups import TopUpRule, top_ups_due
from billing.commands.grant_credit import check, give, paid_credit_from, payer
from billing.database import raw, retrying, transaction
from billing.errors import CreditRefused, NotAnAmount
from billing.invoicing.credit_store import GivenCredit
from billing.money import currency, plain, to_minor, total
from billing.periods import accounting_month, add_months, parse_period, rfc3339
from billing.plans.account_store import BillingAccount
from billing.plans.price_plans import PaidCreditFrom
from billing.posting import top_up_invoicing, top_up_store
from streams import audit

MOST_IN_A_MONTH: Final = 1_000
"""Of one rule's top-ups: each is a grant of its own, and all that are due are given in one transaction."""


@dataclass(frozen=True, slots=True)
class ToppedUp:
    """Credits that were bought for an account, and what was left of its prepaid credit before."""

    billing_account: str
    grant_ids: tuple[str, ...]
    amount: Decimal
    currency: str
    left: Decimal


@retrying
def set_top_up(engine: Engine, rule: TopUpRule, *, actor: str, ends: bool = False, dry_run: bool = False) -> bool:
    """Let a rule hold from its `valid_from` on, or (`ends`) none; False if that is so already. Raises CreditRefused."""
    with transaction(engine, dry_run=dry_run) as connection:
        account = payer(connection, rule.billing_account)
        if account.currency != rule.currency:
            raise CreditRefused(f"billing account {rule.billing_account} pays in {account.currency}")
        top_up_store.lock(connection, rule.billing_account)
        in_force = top_up_store.rules_at(connection, rule.valid_from)
        known = [each for each in in_force if each.billing_account == rule.billing_account]
        if ends:
            if not known:
                return False
        else:
            _check(rule)
            if known and _said(known[0]) == _said(rule):
                return False
        top_up_store.add_rule(connection, rule, actor, ends=ends)
        detail: dict[str, object] = {"from": rfc3339(rule.valid_from)}
        if not ends:
            detail |= {
                "below": plain(rule.below), "amount": plain(rule.amount), "monthly_limit": plain(rule.monthly_limit),
                "expires_months": rule.expires_months,
            }  # fmt: skip
        action = f"credit.top_up.{'end' if ends else 'set'}"
        audit.record(raw(connection), actor, action, rule.billing_account, detail)
    return True


def top_up_rules(engine: Engine, *, at: datetime) -> list[TopUpRule]:
    """The rules in force at a moment."""
    with transaction(engine) as connection:
        return top_up_store.rules_at(connection, at)


@retrying
def top_up_credits(engine: Engine, *, now: datetime, actor: str, dry_run: bool = False) -> list[ToppedUp]:
    """Buy for each account what its rule asks for now; those that got something. Again it buys nothing more."""
    with transaction(engine) as connection:
        accounts = [rule.billing_account for rule in top_up_store.rules_at(connection, now)]
    found = []
    for account in accounts:
        with transaction(engine, dry_run=dry_run) as connection:
            done = _top_up(connection, account, now, actor)
        if done is not None:
            found.append(done)
    return found


@retrying
def top_up_by_hand(
    engine: Engine, billing_account: str, amount: Decimal, *, reason: str, now: datetime, actor: str,
    dry_run: bool = False,
) -> ToppedUp:  # fmt: skip
    """Buy credit for an account now, whatever its rule says. Raises CreditRefused."""
    with transaction(engine, dry_run=dry_run) as connection:
        account = payer(connection, billing_account)
        top_up_store.lock(connection, billing_account)
        left = top_up_store.left_of_prepaid(connection, billing_account, now)
        said = hashlib.sha256(f"{billing_account}\n{plain(amount)}\n{rfc3339(now)}".encode()).hexdigest()[:10]
        grant = Grant(f"top-up-{said}", GrantKind.PAID, amount, account.currency, now, granted_at=now)
        check(grant, account)
        give(connection, GivenCredit(grant, billing_account, reason), actor)
        top_up_store.add(connection, [grant.grant_id], None)
        _invoice(connection, account, [grant], now, actor)
        return ToppedUp(billing_account, (grant.grant_id,), amount, account.currency, left)


def _top_up(connection: Connection, account: str, now: datetime, actor: str) -> ToppedUp | None:
    top_up_store.lock(connection, account)
    rules = [rule for rule in top_up_store.rules_at(connection, now) if rule.billing_account == account]
    if not rules:
        return None
    rule, month = rules[0], parse_period(accounting_month(now))
    bought = top_up_store.bought_by_rule(connection, account, month.start, month.end)
    left = top_up_store.left_of_prepaid(connection, account, now)
    count = top_ups_due(rule, left=left, bought=total(bought.values()))
    if not count:
        return None
    grants = _grants(rule, month.name, len(bought), count, now)
    for grant in grants:
        give(connection, GivenCredit(grant, account, f"top-up: {plain(left)} were left"), actor)
    top_up_store.add(connection, [grant.grant_id for grant in grants], rule.rule_no)
    _invoice(connection, payer(connection, account), grants, now, actor)
    return ToppedUp(account, tuple(g.grant_id for g in grants), total(g.amount for g in grants), rule.currency, left)


def _invoice(
    connection: Connection, account: BillingAccount, grants: Sequence[Grant], now: datetime, actor: str
) -> None:
    """What is bought is invoiced at once where it counts from its invoice; else when it is paid."""
    if paid_credit_from(connection, account.billing_account, now) is PaidCreditFrom.INVOICE:
        for grant in grants:
            top_up_invoicing.invoice_before_payment(connection, account, grant, now=now, actor=actor)


def _grants(rule: TopUpRule, month: str, before: int, count: int, now: datetime) -> Sequence[Grant]:
    of = hashlib.sha256(rule.billing_account.encode()).hexdigest()[:10]
    expires = None if rule.expires_months is None else add_months(now, rule.expires_months)
    return [
        Grant(
            f"top-up-{of}-{month}-{number}", GrantKind.PAID, rule.amount, rule.currency, now, expires=expires,
            granted_at=now,
        )
        for number in range(before + 1, before + count + 1)
    ]  # fmt: skip


def _said(rule: TopUpRule) -> tuple[object, ...]:
    return rule.below, rule.amount, rule.monthly_limit, rule.expires_months


def _check(rule: TopUpRule) -> None:
    if rule.below < 0:
        raise CreditRefused(f"below {plain(rule.below)}: a balance to keep is not negative")
    try:
        minor = to_minor(rule.amount, currency(rule.currency, rule.valid_from.date()))
    except NotAnAmount as error:
        raise CreditRefused(f"a top-up is an amount that can be paid: {error}") from None
    if minor <= 0:
        raise CreditRefused(f"{plain(rule.amount)}: a top-up is more than nothing")
    if rule.monthly_limit < rule.amount:
        raise CreditRefused(f"a limit of {plain(rule.monthly_limit)} a month is less than one top-up")
    if rule.monthly_limit > MOST_IN_A_MONTH * rule.amount:
        raise CreditRefused(
            f"a limit of {plain(rule.monthly_limit)} a month is more than {MOST_IN_A_MONTH:,} top-ups a month of"
            f" {plain(rule.amount)}: buy more at once"
        )
