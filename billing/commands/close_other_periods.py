"""Billing periods that are no calendar months: billed by the month that they end in, accrued where they go on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from sqlalchemy import Engine

from billing.bills.documents import GRACE
from billing.commands.draft_invoices import InvoicesDrafted, draft_invoices
from billing.commands.invoice_in_advance import NOTHING_IN_ADVANCE, AdvanceInvoiced, invoice_in_advance
from billing.commands.rate_period import Keep, PeriodRated, rate_period
from billing.commands.send_invoices import InvoicesSent, Outcome, send_invoices
from billing.database import transaction
from billing.invoicing.sending import SendingStep
from billing.periods import BillingPeriod
from billing.plans import account_store
from billing.plans.schedules import periods_in
from billing.stripe.stripe_accounts import Stripe

NOTHING_SENT: Final = InvoicesSent(())


@dataclass(frozen=True, slots=True)
class Choice:
    """What of a period is rated (None: all tenants), and who is told of it."""

    tenants: Collection[str] | None = None
    keep: Keep | None = None


Chosen = Callable[[BillingPeriod], Choice]


def everything(_: BillingPeriod) -> Choice:
    """All of every period."""
    return Choice()


@dataclass(frozen=True, slots=True)
class PeriodClosed:
    """A billing period after a run: rated as far as the month goes; drawn up and sent if it ends in it."""

    period: BillingPeriod
    rated: PeriodRated
    drafted: InvoicesDrafted | None = None
    sent: InvoicesSent = NOTHING_SENT
    in_advance: AdvanceInvoiced = NOTHING_IN_ADVANCE

    @property
    def problems(self) -> Iterator[str]:
        """What waits for a person or a later run, each in a line."""
        yield from self.in_advance.problems
        for text in (*map(str, self.rated.unpriced), *self.rated.unratable):
            yield f"{self.period.name}: {text}"
        for account, reason in self.drafted.blocked if self.drafted is not None else ():
            yield f"{self.period.name}: billing account {account} has no invoice: {reason}"
        for invoice in (*self.sent.having(Outcome.PARKED), *self.sent.having(Outcome.LATER)):
            yield (
                f"{self.period.name}: invoice of {invoice.billing_account}: {invoice.outcome.value}: {invoice.reason}"
            )


def rate_other_periods(
    engine: Engine, *, month: BillingPeriod, now: datetime, dry_run: bool = False, of: Chosen = everything
) -> tuple[PeriodClosed, ...]:
    """Rate every billing period with time in a month, but the month itself, as far as the month goes.

    In order of their ends. `of` says what of a period is rated.
    """
    with transaction(engine) as connection:
        held = account_store.subscriptions_billed_in(connection, month).values()
    found = []
    for period in periods_in((each for listed in held for each in listed), month):
        if period != month:
            chosen = of(period)
            rated = rate_period(
                engine, period=period, now=now, dry_run=dry_run, until=month.end, tenants=chosen.tenants,
                keep=chosen.keep,
            )  # fmt: skip
            found.append(PeriodClosed(period, rated))
    return tuple(found)


def bill_other_periods(
    engine: Engine,
    rated: Iterable[PeriodClosed],
    *,
    month: BillingPeriod,
    gateway: Stripe,
    now: datetime,
    actor: str,
    dry_run: bool = False,
    until: SendingStep = SendingStep.FINALIZED,
    billing_accounts: Collection[str] | None = None,
) -> tuple[PeriodClosed, ...]:
    """Draw up and send what has ended with a month, each after the fees in advance that begin until it is frozen.

    `until`: how far invoices go. Of some billing accounts, if given; fees in advance of all.
    """
    found = []
    for each in rated:
        if each.period.end > month.end:
            found.append(each)
            continue
        in_advance = invoice_in_advance(
            engine, until=each.period.end + GRACE, gateway=gateway, now=now, actor=actor, dry_run=dry_run
        )
        drafted = draft_invoices(
            engine, period=each.period, now=now, actor=actor, dry_run=dry_run, billing_accounts=billing_accounts
        )
        sent = send_invoices(
            engine, period=each.period, gateway=gateway, now=now, actor=actor, dry_run=dry_run, until=until,
            billing_accounts=billing_accounts,
        )  # fmt: skip
        found.append(replace(each, drafted=drafted, sent=sent, in_advance=in_advance))
    return tuple(found)
