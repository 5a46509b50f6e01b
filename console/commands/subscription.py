"""`tollbook subscription`: which tenant is on which plan."""

from __future__ import annotations

from typing import Annotated

import typer

from billing import account_store
from billing.commands.start_subscription import start_subscriptions
from billing.database import transaction
from console import session
from console.output import AsCsv, AsJson, listing, out
from streams import tenants as register

app = typer.Typer(help="Which tenant is on which plan.", no_args_is_help=True, add_completion=False)


@app.command()
def start(
    plan: Annotated[str, typer.Argument(metavar="PLAN")],
    actor: session.Actor,
    tenants: Annotated[list[str] | None, typer.Argument(metavar="[TENANT…]")] = None,
    all_tenants: Annotated[bool, typer.Option("--all", help="Every registered tenant.")] = False,
    starts: Annotated[str, typer.Option("--from", help="First day (UTC), e.g. 2026-10-01, or an RFC 3339 time.")] = "",
    account: Annotated[str | None, typer.Option("--account", help="Default: the tenant's own.")] = None,
    dry_run: session.DryRun = False,
) -> None:
    """Put tenants on a plan from a day on. Safe to repeat."""
    if not starts:
        raise typer.BadParameter("--from is needed: the day from which the plan's prices hold, e.g. --from 2026-10-01")
    if bool(tenants) == all_tenants:
        raise typer.BadParameter("name tenants, or give --all")
    starts_at = session.clock(f"{starts}T00:00:00Z" if len(starts) == len("2026-10-01") else starts)
    if not tenants:
        with session.connection() as connection:
            tenants = [tenant.tenant_id for tenant in register.all_tenants(connection)]
    with session.engine() as engine:
        done = start_subscriptions(
            engine, tenant_ids=tenants, plan=plan, starts_at=starts_at, actor=actor, billing_account=account,
            dry_run=dry_run,
        )  # fmt: skip
    started = sum(1 for each in done if each.created)
    out.print(f"{started} {'would be started' if dry_run else 'started'}, {len(done) - started} there already")


@app.command("list")
def list_subscriptions(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Subscriptions, by tenant and start."""
    with session.engine() as engine, transaction(engine) as connection:
        found = account_store.subscriptions(connection, tenant_id=tenant)
    rows = [
        {"tenant_id": s.tenant_id, "plan": s.plan, "from": s.starts_at, "to": s.ends_at, "account": s.billing_account}
        for s in found
    ]
    listing(rows, ("tenant_id", "plan", "from", "to", "account"), as_json=as_json, as_csv=as_csv, empty="none")
