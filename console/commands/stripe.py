"""`tollbook stripe`: what happened in Stripe, into the books and onto the invoices."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.commands import sync_stripe
from billing.commands.show_returns import returns_shown
from billing.stripe.stripe_accounts import SECRET, secrets_of, variable
from console import session
from console.output import AsJson, document, end_with, err, out, problems, table

app = typer.Typer(help="What comes back from Stripe.", no_args_is_help=True, add_completion=False)


Again = Annotated[bool, typer.Option("--again", help="Tell Stripe again at once what it has refused.")]


Test = Annotated[bool, typer.Option("--test", help="On a test key of Stripe itself: else it is refused.")]
Since = Annotated[
    str | None,
    typer.Option("--since", help="Read Stripe's lists again from this day or time on, or look at all."),
]


Opening = Annotated[
    str | None,
    typer.Option(
        "--opening", help="With the first run: what moved in Stripe before this day or time is one sum, in 1090."
    ),
]


@app.command()
def sync(
    actor: session.Actor, test: Test = False, again: Again = False, since: Since = None, opening: Opening = None,
    dry_run: session.DryRun = False, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Take in payments, refunds, disputes, payouts and events since the last time, of every account. Safe to repeat.

    The books of an entity follow the account of the first key that is used for it, and take no other's.
    """
    gateway, from_then = session.stripe_to_follow(test=test), None if since is None else session.moment(since)
    opens_at = None if opening is None else session.moment(opening)
    with session.engine() as engine:
        if dry_run:
            found = sync_stripe.look_ahead(engine, gateway=gateway, since=from_then)
        else:
            found = sync_stripe.sync_stripe(
                engine,
                gateway=gateway,
                now=session.clock(None),
                actor=actor,
                again=again,
                since=from_then,
                opening=opens_at,
            )
    if as_json:
        document({"booked": found.booked, "events": found.events, "invoices_paid": found.paid,
                  "corrected": found.corrected, "waiting": found.waiting,
                  "problems": list(found.problems)})  # fmt: skip
    elif dry_run:
        out.print(f"{found.booked} balance transactions would be booked, {found.events} events handled,"
                  f" {found.corrected} corrections told")  # fmt: skip
    else:
        out.print(f"{found.booked} balance transactions booked, {found.events} events handled,"
                  f" {found.paid} invoices paid, {found.corrected} corrections told,"
                  f" {found.waiting} events wait")  # fmt: skip
    end_with(found.problems)


@app.command()
def status(as_json: AsJson = False) -> None:
    """How far Stripe is read, and whether 1010 is what the balance transactions taken in come to (else exit code 1)."""
    with session.engine() as engine:
        found = returns_shown(engine, session.clock(None))
    if as_json:
        document(found.document)
    else:
        out.print(
            table(found.balances, ("legal_entity", "currency", "taken_in", "books", "difference"), "Booked from Stripe")
        )
        if found.cash:
            columns = ("billing_account", "currency", "amount")
            out.print(table(found.cash, columns, "Customers' cash in Stripe, applied to no payment yet"))
        out.print(f"events read to {found.events_read_to or 'never'}, money to {found.money_read_to or 'never'},"
                  f" {found.waiting} events wait")  # fmt: skip
    problems(found.problems)
    if not found.agrees:
        raise typer.Exit(1)


@app.command()
def listen(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; webhooks come to /stripe/webhooks.")] = 8643,
    every: Annotated[float, typer.Option(min=1, help="Seconds between two readings of Stripe's list of events.")] = 60,
    test: Test = False,
) -> None:
    """Take webhooks: checked, kept as they came, answered at once, handled right after. What is missed is asked for."""
    import uvicorn

    from console.stripe_receiver import build_app

    gateway = session.stripe_to_follow(test=test)
    secrets = secrets_of(gateway)
    if missing := [variable(SECRET, entity) for entity, secret in secrets.items() if not secret]:
        raise typer.BadParameter(f"{missing[0]} is not set: it is shown where the endpoint was made")
    with session.engine() as engine:
        app = build_app(engine, gateway, secrets, every_s=every)
        err.print(f"listening on http://{host}:{port}/stripe/webhooks")
        uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")
