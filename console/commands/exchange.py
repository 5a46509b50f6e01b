"""`tollbook exchange`: what currencies are worth in each other, and what that does to the books."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from billing.commands.remeasure_balances import remeasure_balances
from billing.commands.set_exchange_rate import exchange_rates, set_exchange_rate
from billing.ledger.exchange_rates import ExchangeRate
from billing.money import PRICE_DECIMALS, parse_decimal, plain
from console import session
from console.output import AsCsv, AsJson, end_with, listing, out

app = typer.Typer(
    help="Exchange rates, dated, and what they do to the books.", no_args_is_help=True, add_completion=False
)


@app.command("set")
def set_rate(
    base: Annotated[str, typer.Argument(help="Such as EUR.")],
    quote: Annotated[str, typer.Argument(help="Such as USD.")],
    rate: Annotated[str, typer.Argument(help="How many QUOTE one BASE is worth, such as 1.0850.")],
    actor: session.Actor,
    since: Annotated[str, typer.Option("--from", help="First day (UTC), e.g. 2026-10-31, or an RFC 3339 time.")],
    document: Annotated[str, typer.Option(help="Who published it, such as the ECB's reference rates.")],
    dry_run: session.DryRun = False,
) -> None:
    """Let a rate hold from a moment on, until the next. Safe to repeat.

    Nothing is priced or invoiced by it: plans and accounts have one currency. The books of a legal entity are
    remeasured by it at the end of each month.
    """
    given = ExchangeRate(
        base.upper(), quote.upper(), parse_decimal(rate, decimals=PRICE_DECIMALS), session.moment(since), document
    )
    with session.engine() as engine:
        changed = set_exchange_rate(engine, given, actor=actor, dry_run=dry_run)
    out.print("nothing new" if not changed else "would be set" if dry_run else "set")


@app.command("list")
def list_rates(
    as_of: Annotated[str | None, typer.Option(help="What was recorded by this RFC 3339 time.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """All exchange rates, the ones that were replaced as well. The last of a moment holds."""
    with session.engine() as engine:
        found = exchange_rates(engine, as_of=None if as_of is None else session.clock(as_of))
    rows: list[dict[str, Any]] = [
        {
            "base": each.base,
            "quote": each.quote,
            "rate": plain(each.rate),
            "from": each.valid_from,
            "document": each.document,
            "recorded_at": each.recorded_at,
            "recorded_by": each.recorded_by,
        }
        for each in found
    ]
    columns = ("base", "quote", "rate", "from", "document", "recorded_at", "recorded_by")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="no exchange rates")


@app.command()
def remeasure(
    month: session.Month,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
    dry_run: session.DryRun = False,
) -> None:
    """Book what rates did in a month to what is held in other currencies. Safe to repeat; `close run` does it, too."""
    period = session.month_of(month, "the books are kept by the month")
    with session.engine() as engine:
        found = remeasure_balances(engine, period, now=session.clock(None), dry_run=dry_run)
    rows = [asdict(each) | {"loss": plain(each.loss)} for each in found]
    listing(rows, ("legal_entity", "loss", "problem"), as_json=as_json, as_csv=as_csv, empty="no legal entity")
    wrong = [each.problem for each in found if each.problem is not None]
    end_with(wrong)
