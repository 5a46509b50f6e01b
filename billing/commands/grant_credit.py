"""Give credits to billing accounts, take back what is not used yet, and see what became of them."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, Engine

from billing.bills.credits import Grant, GrantKind
from billing.database import raw, retrying, transaction
from billing.errors import CreditRefused, NotAnAmount
from billing.invoicing import credit_store
from billing.invoicing.credit_store import CreditState, GivenCredit, Movement, MovementKind
from billing.invoicing.invoice_rows import StoredInvoice
from billing.money import ZERO, currency, exactly, plain, to_minor, whole_quanta
from billing.periods import add_months
from billing.plans import account_store, plan_store
from billing.plans.account_store import BillingAccount
from billing.plans.price_plans import PaidCreditFrom
from billing.posting import top_up_invoicing
from streams import audit

GRANT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
TIMES_MAX: Final = 120
"""Ten years of months: more is a mistake."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The same credit again every so many months, so many times in all."""

    months: int
    times: int


@dataclass(frozen=True, slots=True)
class CreditGranted:
    """A credit, and whether it was given now or was there before."""

    given: GivenCredit
    created: bool


@retrying
def grant_credit(
    engine: Engine, given: GivenCredit, *, actor: str, recurrence: Recurrence | None = None, dry_run: bool = False
) -> list[CreditGranted]:
    """Give a credit to a billing account, or one for each time that it recurs. Doing it again changes nothing.

    A paid one can be used, and is owed, once it is settled; or invoiced, where the contract says so. Raises
    CreditRefused.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        account = payer(connection, given.billing_account)
        check(given.grant, account)
        _check_charges(connection, given.grant, account)
        return [give(connection, each, actor) for each in repeated(given, recurrence)]


def repeated(given: GivenCredit, recurrence: Recurrence | None) -> list[GivenCredit]:
    """The credits of a recurrence: each holds as long as the first, so many months later. Raises CreditRefused."""
    if recurrence is None:
        return [given]
    if not 1 <= recurrence.times <= TIMES_MAX:
        raise CreditRefused(f"{recurrence.times} times: a credit recurs 1 to {TIMES_MAX} times")
    grant, found = given.grant, []
    for number in range(recurrence.times):
        later = number * recurrence.months
        expires = None if grant.expires is None else add_months(grant.expires, later)
        one = replace(
            grant, grant_id=f"{grant.grant_id}-{number + 1}", effective=add_months(grant.effective, later),
            expires=expires,
        )  # fmt: skip
        found.append(replace(given, grant=one))
    return found


@retrying
def invoice_credit(engine: Engine, grant_id: str, *, now: datetime, actor: str, dry_run: bool = False) -> StoredInvoice:
    """Invoice a paid credit before it is paid, where the account's contracts let it count from then. Again it is the
    same invoice. Raises UnknownCredit, CreditRefused."""
    with transaction(engine, dry_run=dry_run) as connection:
        state = credit_store.one(connection, grant_id)
        grant, account = state.grant, payer(connection, state.given.billing_account)
        if grant.invoiced_at is not None:
            return top_up_invoicing.invoice_of(connection, grant_id)
        if grant.kind is not GrantKind.PAID or grant.paid_at is not None or state.voided:
            raise CreditRefused(f"credit {grant_id} is {grant.kind}, paid, or voided: there is nothing to invoice")
        if paid_credit_from(connection, account.billing_account, now) is not PaidCreditFrom.INVOICE:
            raise CreditRefused(
                f"by the contracts of billing account {account.billing_account} a paid credit counts from its payment:"
                " `tollbook credit settle` it; a plan whose terms say `paid_credit_from: invoice` lets it count before"
            )
        return top_up_invoicing.invoice_before_payment(connection, account, grant, now=now, actor=actor)


def paid_credit_from(connection: Connection, billing_account: str, at: datetime) -> PaidCreditFrom:
    """From when paid credits of an account count: from the invoice where all its contracts at a moment say so."""
    told = {
        each.terms.paid_credit_from
        for each in account_store.subscriptions(connection, of_payers=[billing_account])
        if each.billing_account == billing_account
        and each.starts_at <= at
        and (each.ends_at is None or at < each.ends_at)
    }
    return PaidCreditFrom.INVOICE if told == {PaidCreditFrom.INVOICE} else PaidCreditFrom.PAYMENT


@retrying
def void_credit(
    engine: Engine, grant_id: str, *, reason: str, now: datetime, actor: str, dry_run: bool = False
) -> Decimal:
    """Take back what is left of a credit and not reserved by an invoice that is frozen; returns that, in major units.

    Of one that was invoiced and is not paid by a credit note against its invoice. Again it is nothing. Raises
    UnknownCredit, and CreditRefused for a paid one: that is refunded.
    """
    with transaction(engine, dry_run=dry_run) as connection:
        state = credit_store.one(connection, grant_id)
        grant = state.grant
        if grant.paid_at is not None:
            raise CreditRefused(f"credit {grant_id} is paid: what is left is refunded (`tollbook credit refund`)")
        left = unreserved(connection, state)
        if state.is_liability:
            left = whole_quanta(left, currency(grant.currency, now.date()).quantum)
        if state.voided or left <= 0:
            return ZERO
        movement = Movement(f"credit:{grant_id}:voided", grant_id, MovementKind.VOIDED, -left, now, reason=reason)
        if state.is_liability:
            account = payer(connection, state.given.billing_account)
            entry_id = top_up_invoicing.take_back(
                connection, account, grant, left, reason=reason, now=now, actor=actor
            )  # fmt: skip
            movement = movement.booked_as(entry_id)
        credit_store.move(connection, [movement], actor)
        audit.record(raw(connection), actor, "credit.void", grant_id, {"amount": plain(left), "reason": reason})
        return left


def unreserved(connection: Connection, state: CreditState) -> Decimal:
    """What is left of a credit beside what frozen invoices are about to draw. What they give back is not there yet."""
    held = credit_store.reserved(connection, [state.grant.grant_id], draws_alone=True).get(state.grant.grant_id, ZERO)
    with exactly():
        return max(ZERO, state.remaining - held)


def credits_of(
    engine: Engine, *, accounts: Collection[str] | None = None, as_of: datetime | None = None
) -> list[CreditState]:
    """Credits with what is left of them now, or by what happened before a moment."""
    with transaction(engine) as connection:
        return credit_store.states(connection, accounts=accounts, as_of=as_of)


def payer(connection: Connection, name: str) -> BillingAccount:
    """The billing account of a name. Raises CreditRefused."""
    account = account_store.accounts(connection, [name]).get(name)
    if account is None:
        raise CreditRefused(f"there is no billing account {name!r}")
    return account


def check(grant: Grant, account: BillingAccount) -> None:
    """Raises CreditRefused unless the account can have such a credit."""
    if not GRANT_ID.fullmatch(grant.grant_id):
        raise CreditRefused(f"{grant.grant_id!r} is no name of a credit: letters, digits, _ and -, up to 64")
    if grant.currency != account.currency:
        raise CreditRefused(f"billing account {account.billing_account} pays in {account.currency}")
    if grant.amount <= 0:
        raise CreditRefused(f"{plain(grant.amount)}: a credit is more than nothing")
    if grant.expires is not None and grant.expires <= grant.effective:
        raise CreditRefused(f"credit {grant.grant_id} would expire before it holds")
    if grant.kind is GrantKind.PAID:
        try:
            to_minor(grant.amount, currency(grant.currency, grant.effective.date()))
        except NotAnAmount as error:
            raise CreditRefused(f"a paid credit is an amount that can be paid: {error}") from None


def _check_charges(connection: Connection, grant: Grant, account: BillingAccount) -> None:
    subscribed = [s for s in account_store.subscriptions(connection) if s.billing_account == account.billing_account]
    plans = plan_store.plans(connection, {s.plan for s in subscribed})
    known = {c.key for plan in plans.values() for version in plan.versions for c in version.charges}
    if unknown := grant.applies_to.charges - known:
        raise CreditRefused(
            f"no plan of billing account {account.billing_account} has a charge {', '.join(sorted(unknown))}:"
            f" it has {', '.join(sorted(known)) or 'none'}"
        )


def give(connection: Connection, given: GivenCredit, actor: str) -> CreditGranted:
    """Append a checked credit, once. Raises CreditRefused where another has its id."""
    grant = given.grant
    credit_store.lock(connection, [grant.grant_id])
    for state in credit_store.states(connection, grant_ids=[grant.grant_id]):
        known = state.given
        as_known = replace(
            given, recorded_by=known.recorded_by,
            grant=replace(grant, granted_at=known.grant.granted_at, paid_at=known.grant.paid_at,
                          invoiced_at=known.grant.invoiced_at, tax_treatment=grant.treatment),
        )  # fmt: skip
        if as_known != known:
            raise CreditRefused(f"there is another credit {grant.grant_id}: give this one another --id")
        return CreditGranted(known, created=False)
    credit_store.add(connection, given, actor)
    detail = {
        "billing_account": given.billing_account,
        "kind": grant.kind.value,
        "amount": plain(grant.amount),
        "currency": grant.currency,
        "reason": given.reason,
    }
    audit.record(raw(connection), actor, "credit.grant", grant.grant_id, detail)
    return CreditGranted(given, created=True)
