"""`tollbook plan`: price plans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from billing.commands.apply_plan import apply_plan
from billing.database import transaction
from billing.money import parse_decimal
from billing.periods import written
from billing.plans import plan_store
from billing.plans.plan_documents import differences, plan_differences
from billing.plans.plan_file import parse_plan
from billing.plans.price_plans import Metric, version_at
from billing.presentation.plan_words import (
    contract_in_words,
    explain,
    price_in_words,
    terms_in_words,
    version_in_words,
)
from billing.rating import Usage
from console import session
from console.output import AsCsv, AsJson, err, listing, out

GPU_DECIMALS = 6
"""GPU time is counted in microseconds; nothing is counted finer."""

AsOf = Annotated[str | None, typer.Option("--as-of", help="What was recorded by this RFC 3339 time.")]

app = typer.Typer(help="Price plans: YAML files with dated versions.", no_args_is_help=True, add_completion=False)


@app.command()
def apply(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")],
    actor: session.Actor,
    dry_run: session.DryRun = False,
) -> None:
    """Apply a plan's file: new versions are added, applied ones never change. Safe to repeat.

    A new version from the same time as an applied one corrects it, as far as no invoice is frozen.
    """
    text = session.read_text(file)
    with session.engine() as engine:
        done = apply_plan(engine, text, file=file.name, actor=actor, now=session.clock(None), dry_run=dry_run)
    for warning in done.warnings:
        err.print(f"warning: {warning}")
    session.warn_of_stale(done.stale)
    added = f"{'would add' if dry_run else 'added'} {', '.join(done.added)}" if done.added else "nothing new"
    if done.corrected:
        added += f" in place of {', '.join(done.corrected)}"
    out.print(
        f"plan {done.plan.name}: {added}" + (f"; unchanged {', '.join(done.unchanged)}" if done.unchanged else "")
    )


@app.command()
def validate(file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")]) -> None:
    """Whether a plan's file can be read: every field that is wrong, with its line. Needs no database."""
    plan = parse_plan(session.read_text(file), file=file.name)
    told = ", ".join(f"{version.version} from {written(version.valid_from)}" for version in plan.versions)
    out.print(f"plan {plan.name}, {plan.currency}: {told}")


@app.command("list")
def list_plans(as_of: AsOf = None, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """All plans and their versions, the ones that were corrected as well. The last of a moment holds."""
    known = None if as_of is None else session.clock(as_of)
    with session.engine() as engine, transaction(engine) as connection:
        plans = plan_store.recorded(connection)
    rows = [
        {"plan": name, "version": each.version.version, "currency": each.version.currency,
         "from": each.version.valid_from, "charges": len(each.version.charges),
         "recorded_at": each.recorded_at, "recorded_by": each.recorded_by}
        for name, listed in plans.items()
        for each in sorted(listed, key=lambda each: each.version.valid_from)
        if known is None or each.recorded_at <= known
    ]  # fmt: skip
    columns = ("plan", "version", "currency", "from", "charges", "recorded_at", "recorded_by")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="no plans; `tollbook plan apply FILE` adds one")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="PLAN")],
    at: Annotated[str | None, typer.Option(help="Only the version in force at this RFC 3339 time.")] = None,
    as_of: AsOf = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """A plan's charges, version by version."""
    with session.engine() as engine, transaction(engine) as connection:
        plan = plan_store.plan(connection, name, as_of=None if as_of is None else session.clock(as_of))
    versions = plan.versions if at is None else (version_at(plan.versions, session.clock(at)),)
    rows: list[dict[str, Any]] = [
        {"version": version.version, "from": version.valid_from, "charge": charge.key,
         "model": charge.pricing.model, "metric": str(charge.metric),
         "where": ", ".join(f"{k} {v}" for k, v in charge.where.as_dict().items()) or "all",
         "price": price_in_words(charge.pricing), "terms": "; ".join(terms_in_words(charge))}
        for version in versions
        for charge in version.charges
    ]  # fmt: skip
    rows += [
        {"version": version.version, "from": version.valid_from, "charge": "", "model": what.replace(" ", "_"),
         "metric": "", "where": "", "price": "", "terms": told}
        for version in versions
        for what, told in version_in_words(version)
    ]  # fmt: skip
    rows.sort(key=lambda row: row["from"])
    columns = ("version", "from", "charge", "model", "metric", "where", "price", "terms")
    of_all = {"from": None, "model": "terms", "terms": "; ".join(contract_in_words(plan.terms))}
    rows.insert(0, dict.fromkeys(columns, "") | of_all)
    listing(rows, columns, as_json=as_json, as_csv=as_csv, title=f"{plan.name}, {plan.currency}")


@app.command()
def diff(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """What a plan's file says otherwise than what is applied, version by version."""
    given = parse_plan(session.read_text(file), file=file.name)
    with session.engine() as engine, transaction(engine) as connection:
        applied = plan_store.plans(connection, [given.name]).get(given.name)
    known = {version.version: version for version in applied.versions} if applied else {}
    begun = {version.valid_from: version for version in known.values()}
    rows: list[dict[str, Any]] = []
    if applied is not None:
        rows += [{"version": "", "difference": each} for each in plan_differences(applied, given)]
    for version in given.versions:
        if version.version in known:
            told = differences(known[version.version], version)
        elif version.valid_from in begun:
            corrected = begun[version.valid_from]
            told = [f"takes the place of {corrected.version}", *differences(corrected, version)]
        else:
            told = ["is new"]
        rows += [{"version": version.version, "difference": each} for each in told]
    missing = known.keys() - {v.version for v in given.versions}
    missing -= {begun[v.valid_from].version for v in given.versions if v.valid_from in begun}
    rows += [{"version": name, "difference": "is missing from the file"} for name in sorted(missing)]
    listing(rows, ("version", "difference"), as_json=as_json, as_csv=as_csv, empty="no difference")


@app.command()
def price(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, metavar="FILE")],
    metric: Annotated[str, typer.Option(help="What was counted, such as output or request.")],
    quantity: Annotated[str, typer.Option(help="How much of it, such as 1500000.")],
    at: Annotated[str | None, typer.Option(help="When, such as 2026-10-09T00:00:00Z (default: now).")] = None,
    model: Annotated[str, typer.Option(help="Of which model.")] = "",
    adapter: Annotated[str, typer.Option(help="Of which adapter.")] = "",
    region: Annotated[str, typer.Option(help="In which region.")] = "",
    tier: Annotated[str, typer.Option(help="In which service tier, such as batch.")] = "",
    context: Annotated[int | None, typer.Option(min=0, help="Input tokens of the request, for context steps.")] = None,
    seats: Annotated[int | None, typer.Option(min=0, help="How many seats, for fees by the seat.")] = None,
) -> None:
    """What a usage costs by a plan's file, step by step, as if it were all of its period. Nothing is stored."""
    plan = parse_plan(session.read_text(file), file=file.name)
    if metric not in (known := {*Metric, *plan.declared_metrics}):
        raise typer.BadParameter(f"{metric} is no metric of plan {plan.name}: {', '.join(sorted(known))}")
    if parse_decimal(quantity, decimals=GPU_DECIMALS) < 0:
        raise typer.BadParameter(f"{quantity}: a usage is not less than nothing")
    counted = {metric: parse_decimal(quantity, decimals=GPU_DECIMALS)}
    used = Usage(session.clock(at), counted, model, adapter, region, tier, context)
    for step in explain(plan, used, seats=seats):
        out.print(step)
