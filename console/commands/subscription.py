"""`tollbook subscription`: which tenant is on which plan."""

from __future__ import annotations

from typing import Annotated

import typer

from billing.commands.change_subscription import cancel_subscription, change_subscription, resume_subscription
from billing.commands.start_subscription import start_subscriptions
from billing.database import transaction
from billing.periods import rfc3339
from billing.plans import account_store
from console import session
from console.output import AsCsv, AsJson, listing, out
from streams import tenants as register

Seats = Annotated[int | None, typer.Option(min=0, help="For fees by the seat.")]

app = typer.Typer(help="Which tenant is on which plan.", no_args_is_help=True, add_completion=False)


@app.command()
def start(
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    actor: session.Actor,
    tenants: Annotated[list[str] | None, typer.Argument(metavar="[TENANT…]")] = None,
    all_tenants: Annotated[bool, typer.Option("--all", help="Every registered tenant.")] = False,
    starts: Annotated[str, typer.Option("--from", help="First day (UTC), e.g. 2026-10-01, or an RFC 3339 time.")] = "",
    account: Annotated[str | None, typer.Option("--account", help="Default: the tenant's own.")] = None,
    seats: Seats = None,
    bill_status: Annotated[
        list[str] | None,
        typer.Option(help="A status that bills by these contracts, in place of the plan's; several times."),
    ] = None,
    email: Annotated[str, typer.Option(help="Where billing accounts that are made now get their invoices.")] = "",
    dry_run: session.DryRun = False,
) -> None:
    """Put tenants on a plan from a day on. Safe to repeat."""
    if not starts:
        raise typer.BadParameter("--from is needed: the day from which the plan's prices hold, e.g. --from 2026-10-01")
    if bool(tenants) == all_tenants:
        raise typer.BadParameter("name tenants, or give --all")
    starts_at = session.moment(starts)
    if not tenants:
        with session.connection() as connection:
            tenants = [tenant.tenant_id for tenant in register.all_tenants(connection)]
    with session.engine() as engine:
        done = start_subscriptions(
            engine, tenant_ids=tenants, plan=plan, starts_at=starts_at, actor=actor, billing_account=account,
            bill_statuses=bill_status or None, seats=seats, email=email, dry_run=dry_run,
        )  # fmt: skip
    session.warn_of_stale(each.stale for each in done if each.stale is not None)
    started = sum(1 for each in done if each.created)
    out.print(f"{started} {'would be started' if dry_run else 'started'}, {len(done) - started} there already")


@app.command()
def change(
    tenant: Annotated[str, typer.Argument(metavar="TENANT")],
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    actor: session.Actor,
    since: Annotated[str, typer.Option("--from", help="From when on: a day or an RFC 3339 time, also within an hour.")],
    seats: Seats = None,
    dry_run: session.DryRun = False,
) -> None:
    """Move a tenant to another plan, or other seats of its plan. Safe to repeat."""
    with session.engine() as engine:
        done = change_subscription(
            engine, tenant_id=tenant, plan=plan, at=session.moment(since), actor=actor, seats=seats, dry_run=dry_run
        )
    session.warn_of_stale(done.stale)
    assert done.after is not None, "a change goes on with a subscription"
    what = f"plan {done.after.plan}" + (f", {done.after.seats} seats" if done.after.seats is not None else "")
    how = ("would be" if dry_run else "is") if done.changed else "was already"
    out.print(f"tenant {tenant} {how} on {what} from {rfc3339(done.after.starts_at)}")


@app.command()
def cancel(
    tenant: Annotated[str, typer.Argument(metavar="TENANT")],
    actor: session.Actor,
    since: Annotated[str, typer.Option("--from", help="From when on: a day or an RFC 3339 time, also within an hour.")],
    dry_run: session.DryRun = False,
) -> None:
    """End a tenant's subscription, for good or until it is resumed. Safe to repeat.

    What it used until then is billed with its period.
    """
    with session.engine() as engine:
        done = cancel_subscription(engine, tenant_id=tenant, at=session.moment(since), actor=actor, dry_run=dry_run)
    session.warn_of_stale(done.stale)
    assert done.before.ends_at is not None, "it is cancelled"
    how = ("would end" if dry_run else "ends") if done.changed else "ended already"
    out.print(f"tenant {tenant}: plan {done.before.plan} {how} {rfc3339(done.before.ends_at)}")


@app.command()
def resume(
    tenant: Annotated[str, typer.Argument(metavar="TENANT")],
    actor: session.Actor,
    since: Annotated[str, typer.Option("--from", help="From when on: a day or an RFC 3339 time, also within an hour.")],
    dry_run: session.DryRun = False,
) -> None:
    """Go on with a cancelled subscription: a pause is over. No one-off fee or trial begins again. Safe to repeat."""
    with session.engine() as engine:
        done = resume_subscription(engine, tenant_id=tenant, at=session.moment(since), actor=actor, dry_run=dry_run)
    session.warn_of_stale(done.stale)
    assert done.after is not None, "it goes on"
    how = ("would go on" if dry_run else "goes on") if done.changed else "went on already"
    out.print(f"tenant {tenant}: plan {done.after.plan} {how} {rfc3339(done.after.starts_at)}")


@app.command("list")
def list_subscriptions(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    as_of: Annotated[str | None, typer.Option(help="As they were known at this RFC 3339 time.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Subscriptions, by tenant and start."""
    with session.engine() as engine, transaction(engine) as connection:
        known = None if as_of is None else session.clock(as_of)
        found = account_store.subscriptions(connection, tenant_id=tenant, as_of=known)
    rows = [
        {"tenant_id": s.tenant_id, "plan": s.plan, "from": s.starts_at, "to": s.ends_at,
         "seats": s.seats, "account": s.billing_account, "trial_until": s.trial_ends_at,
         "bill_statuses": list(s.bill_statuses)}
        for s in found
    ]  # fmt: skip
    columns = ("tenant_id", "plan", "from", "to", "seats", "account", "trial_until")
    listing(rows, (*columns, "bill_statuses") if as_json else columns, as_json=as_json, as_csv=as_csv, empty="none")
