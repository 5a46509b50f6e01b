"""`tollbook credit`: credits of billing accounts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final

import typer

from billing.bills.credits import Applicability, Grant, GrantKind, TaxTreatment
from billing.commands.expire_credits import expire_credits
from billing.commands.grant_credit import Recurrence, credits_of, grant_credit, invoice_credit, void_credit
from billing.invoicing.credit_store import CreditState, GivenCredit
from billing.money import LINE_DECIMALS, parse_decimal, plain
from billing.posting.proposal_store import ProposalKind
from console import session
from console.commands import breakage, top_up
from console.output import AsCsv, AsJson, listing, out
from console.proposing import propose

app = typer.Typer(
    help="Credits: paid in advance, promotional, for service levels.", no_args_is_help=True, add_completion=False
)

app.add_typer(top_up.app, name="top-up")
app.add_typer(breakage.app, name="breakage")

COLUMNS: Final = (
    "credit_id", "billing_account", "kind", "state", "currency", "amount", "remaining", "from", "expires", "paid_at",
    "invoiced_at", "priority", "tax_treatment", "charges", "fees", "models", "funding_invoice", "reason",
)  # fmt: skip
SHOWN: Final = ("credit_id", "billing_account", "kind", "state", "currency", "amount", "remaining", "from", "expires")

Credit = Annotated[str, typer.Argument(metavar="CREDIT", help="Its id.")]
Document = Annotated[str, typer.Option(help="What it rests on, such as a bank statement.")]


class Every(StrEnum):
    """How often a credit recurs."""

    MONTH = "month"
    QUARTER = "quarter"
    YEAR = "year"


MONTHS: Final = {Every.MONTH: 1, Every.QUARTER: 3, Every.YEAR: 12}


@app.command()
def grant(
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="The billing account.")],
    amount: Annotated[str, typer.Argument(help="In major units, such as 100.00.")],
    currency: Annotated[str, typer.Argument(help="Such as USD: what the account pays in.")],
    actor: session.Actor,
    since: Annotated[str, typer.Option("--from", help="First day (UTC), e.g. 2026-10-01, or an RFC 3339 time.")],
    reason: Annotated[str, typer.Option(help="Why.")],
    kind: Annotated[GrantKind, typer.Option(help="Why it is given.")] = GrantKind.PROMO,
    expires: Annotated[str | None, typer.Option(help="First day on which it does not hold; default: never.")] = None,
    credit_id: Annotated[str | None, typer.Option("--id", help="Its id; default: made from what is said here.")] = None,
    charge: Annotated[list[str] | None, typer.Option(help="Only these charges, by key; default: all usage.")] = None,
    fees: Annotated[bool, typer.Option("--fees", help="Fees, too.")] = False,
    model: Annotated[list[str] | None, typer.Option(help="Only usage of these models; default: of all.")] = None,
    priority: Annotated[int, typer.Option(help="Lower is drawn first.")] = 50,
    tax_treatment: Annotated[TaxTreatment | None, typer.Option(help="Default: by kind.")] = None,
    funding_invoice: Annotated[str | None, typer.Option(help="The invoice by which it is paid.")] = None,
    every: Annotated[Every | None, typer.Option(help="Give it again so often.")] = None,
    times: Annotated[int, typer.Option(help="How often in all.")] = 1,
    dry_run: session.DryRun = False,
) -> None:
    """Give a credit. A paid one is usable once it is settled. Safe to repeat."""
    wanted = Grant(
        grant_id="",
        kind=kind,
        amount=parse_decimal(amount, decimals=LINE_DECIMALS),
        currency=currency.upper(),
        effective=session.moment(since),
        expires=None if expires is None else session.moment(expires),
        granted_at=session.clock(None),
        priority=priority,
        tax_treatment=tax_treatment,
        applies_to=Applicability(frozenset(charge or ()), fees, frozenset(model or ())),
    )
    named = credit_id or _made_id(account, wanted, reason)
    given = GivenCredit(replace(wanted, grant_id=named), account, reason, funding_invoice)
    recurrence = None if every is None else Recurrence(MONTHS[every], times)
    with session.engine() as engine:
        done = grant_credit(engine, given, actor=actor, recurrence=recurrence, dry_run=dry_run)
    for each in done:
        one = each.given.grant
        what = "would be granted" if dry_run and each.created else "granted" if each.created else "there already"
        out.print(f"{one.grant_id}: {plain(one.amount)} {one.currency} from {one.effective:%Y-%m-%d}: {what}")


@app.command("list")
def list_credits(
    account: Annotated[str | None, typer.Option(help="Only this billing account.")] = None,
    as_of: Annotated[str | None, typer.Option(help="What was left before this RFC 3339 time.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Credits with what is left of them."""
    at = None if as_of is None else session.clock(as_of)
    with session.engine() as engine:
        found = credits_of(engine, accounts=None if account is None else [account], as_of=at)
    rows = [_row(state, at or session.clock(None)) for state in found]
    listing(rows, COLUMNS if as_json or as_csv else SHOWN, as_json=as_json, as_csv=as_csv, empty="no credits")


@app.command()
def expire(
    actor: session.Actor,
    up_to: Annotated[str | None, typer.Option(help="Those that expired by this RFC 3339 time; default: now.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    dry_run: session.DryRun = False,
) -> None:
    """Expire what is left of credits whose time is over; what was paid is breakage. `close run` does it, too."""
    now = session.clock(None)
    with session.engine() as engine:
        found = expire_credits(
            engine, up_to=now if up_to is None else session.clock(up_to), now=now, actor=actor, dry_run=dry_run
        )
    rows = [
        {"credit_id": e.grant_id, "billing_account": e.billing_account, "currency": e.currency, "amount": e.amount}
        for e in found
    ]
    columns = ("credit_id", "billing_account", "currency", "amount")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="nothing to expire")


@app.command()
def void(
    credit: Credit,
    actor: session.Actor,
    reason: Annotated[str, typer.Option(help="Why.")],
    dry_run: session.DryRun = False,
) -> None:
    """Take back what is left of a credit that nobody paid for; by a credit note where it was invoiced."""
    with session.engine() as engine:
        amount = void_credit(engine, credit, reason=reason, now=session.clock(None), actor=actor, dry_run=dry_run)
    out.print(f"{credit}: {plain(amount)} {'would be' if dry_run else ''} taken back".replace("  ", " "))


@app.command("invoice")
def invoice(credit: Credit, actor: session.Actor, dry_run: session.DryRun = False) -> None:
    """Invoice a paid credit before its payment: usable from then, by a contract with `paid_credit_from: invoice`."""
    with session.engine() as engine:
        stored = invoice_credit(engine, credit, now=session.clock(None), actor=actor, dry_run=dry_run)
    out.print(f"{credit}: {'would be invoiced' if dry_run else f'invoice {stored.number}'}, due {stored.due_date}")


@app.command("settle")
def settle(
    credit: Credit,
    actor: session.Actor,
    document: Document,
    paid_at: Annotated[str, typer.Option(help="When it was paid, RFC 3339.")],
    dry_run: session.DryRun = False,
) -> None:
    """Propose that a credit was paid outside Stripe. Another person approves it (`tollbook approval`)."""
    content = {"paid_at": session.clock(paid_at).isoformat()}
    propose(ProposalKind.SETTLE_CREDIT, credit, content, document, actor, dry_run)


@app.command()
def refund(credit: Credit, actor: session.Actor, document: Document, dry_run: session.DryRun = False) -> None:
    """Propose to refund what is left of a paid credit. Another person approves it (`tollbook approval`)."""
    propose(ProposalKind.REFUND_CREDIT, credit, {}, document, actor, dry_run)


def _row(state: CreditState, at: datetime) -> dict[str, Any]:
    grant = state.grant
    return {
        "credit_id": grant.grant_id,
        "billing_account": state.given.billing_account,
        "kind": grant.kind.value,
        "state": _state(state, at),
        "currency": grant.currency,
        "amount": grant.amount,
        "remaining": Decimal(plain(state.remaining)),
        "from": grant.effective,
        "expires": grant.expires,
        "paid_at": grant.paid_at,
        "invoiced_at": grant.invoiced_at,
        "priority": grant.priority,
        "tax_treatment": grant.treatment.value,
        "charges": sorted(grant.applies_to.charges),
        "fees": grant.applies_to.fees,
        "models": sorted(grant.applies_to.models),
        "funding_invoice": state.given.funding_invoice,
        "reason": state.given.reason,
    }


def _state(state: CreditState, at: datetime) -> str:
    grant = state.grant
    if state.voided:
        return "voided"
    if grant.expires is not None and grant.expires <= at:
        return "expired"
    if not state.remaining:
        return "used_up"
    if grant.usable_from is None:
        return "unpaid"
    return "usable" if grant.usable_from <= at else "scheduled"


def _made_id(account: str, wanted: Grant, reason: str) -> str:
    said = [account, wanted.kind, plain(wanted.amount), wanted.currency, wanted.effective, wanted.expires, reason]
    return f"{wanted.kind}-{hashlib.sha256(repr([str(each) for each in said]).encode()).hexdigest()[:10]}"
