"""`tollbook replay`: lost events again, planned as a dry run, applied once."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from console import replay_shown, session
from console.output import AsCsv, AsJson, document, err, listing, out
from console.progress import bars
from reconciliation.findings import finding_store, taking_back
from reconciliation.replay import applying, kafka_source, log_source, plan_store, spool_source, trial
from reconciliation.replay.material import Material, Wanted
from reconciliation.replay.planning import Planner
from serving_adapter.topics import USAGE

app = typer.Typer(help="Lost events again: planned, then applied once.", no_args_is_help=True, add_completion=False)
RATE: Final = 10_000
"""Events a second: half of what the platform's peak leaves, so that live ingestion keeps its latency."""

PlanId = Annotated[str, typer.Argument(metavar="PLAN", help="e.g. rp-0123456789ab")]
Where = "a folder, a file, or s3://bucket/prefix"


@app.command()
def plan(
    actor: session.Actor,
    spool: Annotated[str | None, typer.Option(help=f"Adapters' spools or their archive: {Where}.")] = None,
    kafka: Annotated[bool, typer.Option("--kafka", help="The usage topic, by append time (--from, --to).")] = False,
    log: Annotated[str | None, typer.Option(help=f"A gateway's access log: {Where}; with --mapping.")] = None,
    mapping: Annotated[Path | None, typer.Option(help="How the log's lines become events (docs/replay.md).")] = None,
    export: Annotated[str | None, typer.Option(help=f"Usage events as JSON lines: {Where}.")] = None,
    take_back: Annotated[
        int | None, typer.Option(help="Corrections of what this finding says is counted too much.", metavar="NO")
    ] = None,
    begin: Annotated[str | None, typer.Option("--from", help="Only events completed from here on.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Only events completed before this.")] = None,
    tenant: Annotated[list[str] | None, typer.Option(help="Only of this tenant; may be given again.")] = None,
    as_json: AsJson = False,
) -> None:
    """A dry run: what applying would add, what conflicts, and what that changes in windows, quotas and money."""
    if [bool(spool), kafka, bool(log), bool(export), take_back is not None].count(True) != 1:
        raise typer.BadParameter("give one of --spool, --kafka, --log, --export, --take-back")
    if bool(log) != bool(mapping):
        raise typer.BadParameter("--log and --mapping go together")
    since, until = (session.moment(text) if text else None for text in (begin, end))
    now = datetime.now(UTC)
    origin: dict[str, Any] = {"from": begin, "to": end, "tenants": tenant or []}
    wanted = Wanted(since, until, frozenset(tenant or ()))
    if spool:
        origin, material = origin | {"spool": spool}, spool_source.spooled(spool)
    elif kafka:
        if since is None:
            raise typer.BadParameter("--kafka needs --from")
        settings = session.kafka()
        topic = USAGE.name(settings.topic_prefix)
        origin, wanted = origin | {"topic": topic}, Wanted(tenants=frozenset(tenant or ()))
        material = kafka_source.appended(settings, topic, since, until or now)
    elif log and mapping:
        read = log_source.mapping_of(session.read_text(mapping), str(mapping))
        origin, material = origin | {"log": log, "name": read.log}, log_source.logged(log, read)
    elif take_back is not None:
        with session.connection() as connection:
            found = finding_store.require(connection, take_back)
            origin, material = origin | {"finding": take_back}, iter(taking_back.corrections(connection, found))
    else:
        origin, material = origin | {"export": export}, log_source.exported(str(export))
    _plan(wanted.of(material), origin, actor, now, as_json=as_json)


@app.command("apply")
def apply_plan(
    plan_id: PlanId,
    actor: session.Actor,
    rate: Annotated[int, typer.Option(min=0, help="Events a second at most; 0 for no bound.")] = RATE,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Apply a plan. Refused if the world has changed since. Safe to repeat, to kill, to start several times at once."""
    with session.engine() as engine, session.connection() as connection, bars() as progress:
        begun = applying.begin(engine, plan_id, actor, dry_run=dry_run)
        if dry_run:
            out.print(f"{plan_id}: {begun.records:,} events would be applied; dry run, nothing is changed")
            return
        replayer = applying.Replayer(engine, connection, begun, actor, session.archive)
        found = replayer.run(rate=rate or None, progress=lambda done, total: progress("replay", done, total))
        stored = plan_store.get(connection, plan_id)
    if as_json:
        document(asdict(found))
    else:
        replay_shown.report(stored, found)
    if not found.done:
        err.print(f"{found.records - found.through:,} events are still being applied by others; run it again to see")
        raise typer.Exit(1)


@app.command()
def show(
    plan_id: PlanId,
    left_out: Annotated[bool, typer.Option("--left-out", help="What would not be applied, and why.")] = False,
    messages: Annotated[bool, typer.Option("--messages", help="A draft for each customer.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """A plan: what it would do, what it would change, and what became of it."""
    with session.connection() as connection:
        stored = plan_store.get(connection, plan_id)
        rows = plan_store.left_out(connection, plan_id) if left_out else []
    if left_out:
        columns = ("fate", "reason", "detail", "tenant_id", "origin") + (("message",) if as_json else ())
        listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="nothing is left out")
    elif messages:
        drafts = replay_shown.messages(stored)
        if as_json:
            document(drafts)
        else:
            out.print("\n\n----\n\n".join(drafts.values()), soft_wrap=True)
    elif as_json:
        document(asdict(stored) | {"state": stored.state})
    else:
        replay_shown.plan(stored)


@app.command("list")
def list_plans(
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100, as_json: AsJson = False, as_csv: AsCsv = False
) -> None:
    """The plans, newest first."""
    with session.connection() as connection:
        found = plan_store.listed(connection, limit)
    rows = [
        {"plan_id": p.plan_id, "state": p.state, "made_at": p.made_at, "actor": p.actor, "records": p.records,
         "from": replay_shown.origin(p)}
        for p in found
    ]  # fmt: skip
    columns = ("plan_id", "state", "made_at", "actor", "records", "from")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="there is no plan")


def _plan(material: Material, origin: dict[str, Any], actor: str, now: datetime, *, as_json: bool) -> None:
    with session.connection() as connection, bars() as progress:
        planner = Planner(connection, now, session.archive)
        plan_id = planner.plan(material, origin, actor, lambda read: progress("read", read, read))
    with session.engine() as engine:
        trial.complete(engine, plan_id, now)
    with session.connection() as connection:
        stored = plan_store.get(connection, plan_id)
    if as_json:
        document(asdict(stored) | {"state": stored.state})
    else:
        replay_shown.plan(stored)
