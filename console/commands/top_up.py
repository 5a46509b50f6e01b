"""`tollbook credit top-up`: credit that is bought where it runs low."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any

import typer

from billing.bills.top_ups import TopUpRule
from billing.commands.top_up_credit import (
    ToppedUp,
    set_top_up,
    top_up_by_hand,
    top_up_credits,
    top_up_rules,
)
from billing.money import LINE_DECIMALS, parse_decimal, plain
from console import session
from console.output import AsCsv, AsJson, listing, out

app = typer.Typer(help="Credit that is bought where it runs low.", no_args_is_help=True, add_completion=False)

Account = Annotated[str, typer.Argument(metavar="ACCOUNT", help="The billing account.")]
Since = Annotated[str, typer.Option("--from", help="From when on: a day (UTC) or an RFC 3339 time.")]


@app.command("set")
def set_rule(
    account: Account,
    amount: Annotated[str, typer.Argument(help="What is bought at a time, in major units, such as 100.00.")],
    currency: Annotated[str, typer.Argument(help="What the account pays in, such as USD.")],
    actor: session.Actor,
    below: Annotated[str, typer.Option(help="Where less than this is left.")],
    limit: Annotated[str, typer.Option(help="How much is bought in a calendar month (UTC) at most.")],
    since: Since,
    expires_months: Annotated[
        int | None, typer.Option(min=1, max=120, help="What is bought expires after so many months; default: never.")
    ] = None,
    dry_run: session.DryRun = False,
) -> None:
    """Buy credit from a day on wherever it runs low. Safe to repeat."""
    rule = TopUpRule(
        account,
        currency.upper(),
        _amount(below),
        _amount(amount),
        _amount(limit),
        session.moment(since),
        expires_months,
    )
    with session.engine() as engine:
        changed = set_top_up(engine, rule, actor=actor, dry_run=dry_run)
    out.print("nothing new" if not changed else "would be set" if dry_run else "set")


@app.command()
def end(
    account: Account,
    currency: Annotated[str, typer.Argument(help="What the account pays in, such as USD.")],
    actor: session.Actor,
    since: Since,
    dry_run: session.DryRun = False,
) -> None:
    """Buy nothing more by itself from a day on. Safe to repeat."""
    none = Decimal(0)
    rule = TopUpRule(account, currency.upper(), none, none, none, session.moment(since))
    with session.engine() as engine:
        changed = set_top_up(engine, rule, actor=actor, ends=True, dry_run=dry_run)
    out.print("nothing new" if not changed else "would be ended" if dry_run else "ended")


@app.command("list")
def list_rules(
    at: Annotated[str | None, typer.Option(help="In force at this RFC 3339 time; default: now.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """The rules in force."""
    with session.engine() as engine:
        found = top_up_rules(engine, at=session.clock(at))
    rows: list[dict[str, Any]] = [
        {
            "billing_account": rule.billing_account, "currency": rule.currency, "below": plain(rule.below),
            "amount": plain(rule.amount), "monthly_limit": plain(rule.monthly_limit),
            "expires_months": rule.expires_months, "from": rule.valid_from,
        }
        for rule in found
    ]  # fmt: skip
    columns = ("billing_account", "currency", "below", "amount", "monthly_limit", "expires_months", "from")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="no account is topped up")


@app.command()
def run(actor: session.Actor, as_json: AsJson = False, as_csv: AsCsv = False, dry_run: session.DryRun = False) -> None:
    """Buy what the rules ask for now. Safe to repeat; for a timer. `close run` does it, too."""
    with session.engine() as engine:
        found = top_up_credits(engine, now=session.clock(None), actor=actor, dry_run=dry_run)
    _show(found, as_json=as_json, as_csv=as_csv)


@app.command()
def buy(
    account: Account,
    amount: Annotated[str, typer.Argument(help="In major units, such as 100.00.")],
    actor: session.Actor,
    reason: Annotated[str, typer.Option(help="Why.")] = "top-up by hand",
    dry_run: session.DryRun = False,
) -> None:
    """Buy credit for an account now. It is usable once it is settled (`tollbook credit settle`)."""
    with session.engine() as engine:
        done = top_up_by_hand(
            engine, account, _amount(amount), reason=reason, now=session.clock(None), actor=actor, dry_run=dry_run
        )
    _show([done], as_json=False, as_csv=False)


def _show(found: list[ToppedUp], *, as_json: bool, as_csv: bool) -> None:
    rows = [
        {
            "billing_account": each.billing_account, "left": plain(each.left), "bought": plain(each.amount),
            "currency": each.currency, "credits": list(each.grant_ids),
        }
        for each in found
    ]  # fmt: skip
    columns = ("billing_account", "left", "bought", "currency", "credits")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="nothing is bought")


def _amount(text: str) -> Decimal:
    return parse_decimal(text, decimals=LINE_DECIMALS)
