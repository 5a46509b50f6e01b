"""`tollbook quota`: what tenants may use, where they stand, why a request was refused; and the service that decides."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from console import session
from console.output import AsCsv, AsJson, document, err, listing, out
from streams.quotas import definition_store
from streams.quotas.definitions import Quota, quota_from, shown
from streams.schema import check

app = typer.Typer(
    help="What tenants may use: define, list, show, explain; serve decides.", no_args_is_help=True, add_completion=False
)
COLUMNS = ("owner", "quota_id", "limit", "hard", "thresholds", "from", "version")
Tier = Annotated[str, typer.Option(help="The default of a tier, instead of a tenant's own.")]
From = Annotated[str | None, typer.Option("--from", help="RFC 3339: from when on it holds. Default: now.")]


@app.command("set")
def set_quota(
    actor: session.Actor,
    period: Annotated[str, typer.Option(help="second, minute, hour, day, month, billing_period; none (concurrency).")],
    metric: Annotated[
        str,
        typer.Option(
            help="requests, input_tokens, cached_input_tokens, output_tokens, total_tokens, gpu_seconds, spend,"
            " concurrency."
        ),
    ],
    limit: Annotated[str, typer.Option(help="How much; decimals for spend and gpu_seconds.")],
    tenant: Annotated[str, typer.Argument(help="Whose; leave it out with --tier.")] = "",
    tier: Tier = "",
    model: Annotated[str, typer.Option(help="Only usage of this model.")] = "",
    adapter: Annotated[str, typer.Option(help="Only usage of this adapter.")] = "",
    soft: Annotated[bool, typer.Option("--soft", help="Refuse nothing; put back, shorten and tell.")] = False,
    thresholds: Annotated[str, typer.Option(help="Percents at which to tell; soft: 80,90,100 if not given.")] = "",
    on_shrink: Annotated[str, typer.Option(help="allow or deny: may max_tokens be made smaller?")] = "allow",
    min_tokens: Annotated[int, typer.Option(help="Refuse rather than shrink below this.")] = 16,
    overshoot_allowance: Annotated[str | None, typer.Option(help="By how much a hard budget may be passed.")] = None,
    on_unavailable: Annotated[
        str | None, typer.Option(help="allow, safe_capacity or deny without the service.")
    ] = None,
    starts: From = None,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Define a quota, or change it: from a time on. A wrong definition is refused by field."""
    given: dict[str, Any] = {
        "tenant_id": tenant or None, "tier": tier or None, "period": period, "metric": metric, "limit": limit,
        "hard": not soft, "model": model, "adapter": adapter, "on_shrink": on_shrink, "min_tokens": min_tokens,
        "overshoot_allowance": overshoot_allowance, "on_unavailable": on_unavailable, "from": starts,
        "thresholds": [int(each) if each.strip().isdigit() else each for each in thresholds.split(",")]
        if thresholds
        else None,
    }  # fmt: skip
    quota = quota_from(given, now=datetime.now(UTC))
    with session.connection() as connection, session.change(connection, dry_run):
        stored = definition_store.define(connection, quota, actor=actor)
    if as_json:
        document(_row(stored))
    else:
        out.print(f"{'would set' if dry_run else 'set'} {_said(stored)}")


@app.command("end")
def end_quota(
    quota_id: Annotated[str, typer.Argument(metavar="QUOTA", help="As `quota list` names it.")],
    actor: session.Actor,
    tenant: Annotated[str, typer.Argument(help="Whose; leave it out with --tier.")] = "",
    tier: Tier = "",
    starts: From = None,
    dry_run: session.DryRun = False,
) -> None:
    """Take a quota away, from a time on. Of a tenant's own: the tier's default does not come back with it."""
    if bool(tenant) == bool(tier):
        raise typer.BadParameter("give either a tenant or --tier")
    at = _from(starts)
    with session.connection() as connection, session.change(connection, dry_run):
        stored = definition_store.end(connection, tenant_id=tenant, tier=tier, quota_id=quota_id, at=at, actor=actor)
    out.print(f"{'would end' if dry_run else 'ended'} {_said(stored)}")


@app.command("tier")
def assign_tier(
    tenant: str,
    tier: Annotated[str, typer.Argument(help='Whose defaults hold for it; "" for none.')],
    actor: session.Actor,
    starts: From = None,
    dry_run: session.DryRun = False,
) -> None:
    """Put a tenant into a tier."""
    at = _from(starts)
    with session.connection() as connection, session.change(connection, dry_run):
        definition_store.assign(connection, tenant, tier, at, actor=actor)
    out.print(f"{tenant} {'would be' if dry_run else 'is'} in tier {tier or '(none)'} from {at.isoformat()} on")


@app.command("list")
def list_quotas(
    tenant: Annotated[str, typer.Option(help="Only what holds for this tenant.")] = "",
    every_version: Annotated[bool, typer.Option("--all", help="Also what no longer holds, or not yet.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Definitions that hold now."""
    now = datetime.now(UTC)
    with session.connection() as connection:
        found = definition_store.read(connection)
    if tenant:
        tier = found.tier_of(tenant, now)
        quotas = found.versions_of(tenant, tier) if every_version else found.quotas_of(tenant, tier, now)
    else:
        owners = [("", tier) for tier in found.of_tiers] + [(name, "") for name in found.of_tenants]
        quotas = []
        for name, tier in owners:
            mine = found.of_tenants[name] if name else found.of_tiers[tier]
            held = [q for q in found.quotas_of(name, tier, now) if q in mine]
            quotas += mine if every_version else held
    rows = [_row(quota) for quota in quotas]
    listing(rows, COLUMNS, as_json=as_json, as_csv=as_csv, empty="no quotas; `tollbook quota set` makes one")


@app.command("show")
def show(tenant: str, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Where a tenant's quotas stand, from windows and journal: right also while no service runs."""
    from streams.quotas.standing_of import standing_of

    with session.connection() as connection:
        rows = standing_of(connection, tenant)
    columns = ("quota_id", "limit", "used", "unconfirmed", "reserved", "leased", "remaining", "resets_at")
    rows = [dict.fromkeys(columns, "") | row for row in rows]
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty=f"{tenant} has no quotas")


@app.command("why")
def why(tenant: str, request_id: str, as_json: AsJson = False) -> None:
    """Why a request was refused, with the numbers of then; or what was promised to it."""
    from streams.quotas.standing_of import decisions_of

    with session.connection() as connection:
        found = decisions_of(connection, tenant, request_id)
    if as_json:
        document({"tenant_id": tenant, "request_id": request_id, "decisions": found})
    elif not found:
        out.print(f"nothing is known of {request_id}: never asked for, or admitted and over")
    for each in [] if as_json else found:
        out.print(f"{each['at']} attempt {each['attempt']}: {each['decision']}", highlight=False)
        if each["decision"] == "unasked" and "mode" in each:
            out.print(said_without_the_service(each), highlight=False)
        for wall in each.get("walls", ()):
            out.print(
                f"  {wall['quota_id']} (version {wall['version']}): {wall['because']}; {wall['needed']} needed,"
                f" {wall['room']} of {wall['limit']} available",
                highlight=False,
            )
        for quota in each.get("quotas", ()):
            out.print(
                f"  then {quota['quota_id']}: {quota['remaining']} of {quota['limit']} left,"
                f" until {quota['resets_at']}",
                highlight=False,
            )
        if "state" in each:
            out.print(f"  {each['state']}: max_tokens {each.get('max_tokens')}, {each.get('used') or 'not settled'}")
    if not found:
        raise typer.Exit(1)


def said_without_the_service(decision: dict[str, Any]) -> str:
    """A decision without the service, and the numbers it was based on, in a line."""
    basis = decision.get("basis", {})
    text = f"  {'admitted' if decision['admitted'] else 'refused'} without the service, by {decision['mode']}"
    why = {
        "no_answer": f"no answer within {basis.get('deadline_ms')} ms",
        "breaker_open": "not asked: it had not answered lately",
        "not_served": f"it answered {basis.get('status')}",
    }.get(basis.get("cause", ""))
    text += f" ({why})" if why else ""
    text += f" at {basis['decided_at']}" if "decided_at" in basis else ""
    if "safe_requests" in basis:
        text += f"; {basis['in_flight']} of {basis['safe_requests']} requests at once in use"
    if "granted" in basis:
        asked = basis.get("max_tokens", "no")
        text += f"; {asked} max_tokens asked, {basis['granted']} granted"
        text += f" of {basis['safe_tokens']} at most" if "safe_tokens" in basis else ""
    return text


@app.command("serve")
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on. Keys go over it: TLS ends in a proxy before it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65000, help="Port of the first shard; the others follow.")] = 8720,
    shards: Annotated[int, typer.Option(min=1, max=64, help="Into how many processes tenants are divided.")] = 1,
    shard: Annotated[int | None, typer.Option(min=0, max=63, help="Run this shard alone.")] = None,
    envoy_port: Annotated[
        int | None, typer.Option(min=0, max=65000, help="Also answer Envoy (gRPC) here; the next for the next shard.")
    ] = None,
    envoy_name: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=FIELD", help="What an entry of Envoy's stands for: rule-*-match-0=tenant_id. Repeat."
        ),
    ] = None,
    learn: Annotated[bool, typer.Option("--learn", help="The database was restored: promise a share only.")] = False,
    default_max_tokens: Annotated[int, typer.Option(min=1, help="Where a request gives no max_tokens.")] = 1024,
    longest_request: Annotated[int, typer.Option(min=1, help="No request runs longer, seconds.")] = 900,
    metering_lag: Annotated[int, typer.Option(min=1, help="Usage is metered within, seconds.")] = 60,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Run before whatever else wants the core (SCHED_RR, CAP_SYS_NICE).")
    ] = False,
) -> None:
    """Answer admission's questions (POST /v1/reservations). Stop with Ctrl-C."""
    from streams.quotas import journal
    from streams.quotas.decisions import Limits
    from streams.quotas.envoy_calls import Names, NotUnderstood
    from streams.quotas.server import check_may_run_ahead
    from streams.quotas.server import serve as serve_shard

    try:
        names = Names.read(envoy_name or [])
    except NotUnderstood as error:
        raise typer.BadParameter(str(error), param_hint="--envoy-name") from None
    if realtime:
        check_may_run_ahead()  # before a shard is taken from anybody
    database = session.database()
    check(database.url)
    if shard is None:
        with session.connection() as connection:
            if journal.divide(connection, shards):
                err.print(f"tenants are divided into {shards} shards now")
    if shard is None and shards > 1:
        raise typer.Exit(_serve_all(shards))
    number = shard or 0
    serve_shard(
        database, host=host, port=port + number if port else 0, shard=number, of=shards,
        limits=Limits(default_max_tokens, longest_request * 1_000_000, metering_lag * 1_000_000), learn=learn,
        say=lambda text: err.print(text, soft_wrap=True), envoy_port=envoy_port + number if envoy_port else envoy_port,
        envoy_names=names, realtime=realtime,
    )  # fmt: skip


def _serve_all(shards: int) -> int:
    """A process for each shard; all end when one does, and on SIGTERM or SIGINT. The exit code of the first to end."""
    own = [sys.executable, "-m", "console.main", *sys.argv[1:]]
    children = [subprocess.Popen([*own, "--shard", str(number)]) for number in range(shards)]

    def end(*_: object) -> None:
        for child in children:
            child.terminate()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    ended, status = os.wait()
    end()
    for child in children:
        if child.pid != ended:
            child.wait()
    return abs(os.waitstatus_to_exitcode(status))


def _from(starts: str | None) -> datetime:
    """From when a change holds: now, or a time to come. Raises typer.BadParameter."""
    now = datetime.now(UTC)
    at = session.clock(starts) if starts else now
    if at < now:
        raise typer.BadParameter(f"{starts} is over: what was decided then stays as it was", param_hint="--from")
    return at


def _row(quota: Quota) -> dict[str, Any]:
    row = msgspec.to_builtins(quota)
    return {
        "owner": quota.tenant_id or f"tier {quota.tier}",
        "quota_id": quota.quota_id,
        "from": quota.starts_at,
        **row,
        "limit": shown(quota.limit, quota.metric),
        "overshoot_allowance": shown(quota.overshoot_allowance, quota.metric),
        "thresholds": " ".join(f"{each}%" for each in quota.thresholds),
    }


def _said(quota: Quota) -> str:
    owner = quota.tenant_id or f"tier {quota.tier}"
    kind = "hard" if quota.hard else "soft"
    return f"{owner} {quota.quota_id}: {shown(quota.limit, quota.metric)}, {kind}, from {quota.starts_at.isoformat()}"
