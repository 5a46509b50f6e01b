"""`tollbook cost`: what GPUs cost, for whom, and what is left of what they pay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from billing.commands.allocate_costs import allocate_costs, month_margins
from billing.commands.set_gpu_pool import gpu_pools, set_gpu_pool
from billing.costs.pools import read_pool
from billing.money import plain, quantise_line, total
from console import session
from console.output import AsCsv, AsJson, document, end_with, listing, out

app = typer.Typer(help="What GPUs cost, for whom, and what is left.", no_args_is_help=True, add_completion=False)
pools_app = typer.Typer(help="What pools of GPUs cost an hour, dated.", no_args_is_help=True, add_completion=False)
app.add_typer(pools_app, name="pools")

BY: tuple[str, ...] = ("tenant", "model", "adapter")
WHY_MONTHS = "costs are divided by the month"


@pools_app.command()
def apply(
    file: Annotated[Path, typer.Argument(help="YAML: pool, currency, versions (docs/gpu-cost.md).")],
    actor: session.Actor,
    dry_run: session.DryRun = False,
) -> None:
    """Record what a pool costs from a file. Safe to repeat; a version of an hour replaces the one before."""
    pool = read_pool(session.read_text(file), file=session.shown(file))
    with session.engine() as engine:
        new = set_gpu_pool(engine, pool, actor=actor, dry_run=dry_run)
    done = "would be recorded" if dry_run else "recorded"
    out.print(f"{pool.name}: {len(new)} versions {done}" if new else f"{pool.name}: nothing new")


@pools_app.command("list")
def list_pools(
    as_of: Annotated[str | None, typer.Option(help="What was recorded by this RFC 3339 time.")] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """All pools and their versions."""
    with session.engine() as engine:
        found = gpu_pools(engine, as_of=None if as_of is None else session.clock(as_of))
    rows = [
        {"pool": pool.name, "from": each.since, "gpus": each.gpus, "gpu_hour": plain(each.gpu_hour),
         "overhead_hour": plain(each.overhead_hour), "currency": pool.currency}
        for pool in found for each in pool.versions
    ]  # fmt: skip
    columns = ("pool", "from", "gpus", "gpu_hour", "overhead_hour", "currency")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, empty="no pools: `tollbook cost pools apply FILE`")


@app.command()
def allocate(month: session.Month, as_json: AsJson = False, as_csv: AsCsv = False) -> None:
    """Each pool's bill of a month, divided: tenants by GPU time, idle time and overhead as lines of their own."""
    period = session.month_of(month, WHY_MONTHS)
    with session.engine() as engine:
        found = allocate_costs(engine, period)
    rows: list[dict[str, Any]] = [
        {"pool": line.pool, "kind": line.kind.value, "tenant_id": line.consumer.tenant_id,
         "model": line.consumer.model, "adapter": line.consumer.adapter,
         "gpu_seconds": f"{line.gpu_us // 1_000_000}.{line.gpu_us % 1_000_000:06d}", "amount": plain(line.amount),
         "currency": line.currency}
        for line in found.lines
    ]  # fmt: skip
    columns = ("pool", "kind", "tenant_id", "model", "adapter", "gpu_seconds", "amount", "currency")
    listing(rows, columns, as_json=as_json, as_csv=as_csv, title=period.name, empty="no pool had a price then")
    if rows and not (as_json or as_csv):
        for name in sorted({line.pool for line in found.lines}):
            mine = [line for line in found.lines if line.pool == name]
            out.print(f"{name}: {plain(total(line.amount for line in mine))} {mine[0].currency} in all")
    end_with(found.problems)


@app.command()
def margin(
    month: session.Month,
    by: Annotated[str, typer.Option(help=f"Some of {', '.join(BY)}, with commas.")] = "tenant",
    currency: Annotated[str, typer.Option(help="Others are converted at the rates of the month's end.")] = "USD",
    losing: Annotated[bool, typer.Option("--losing", help="Only those that cost more than they bring.")] = False,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """What tenants bring less what their GPU time cost, the least margin first; and why some cost more than that."""
    period, names = session.month_of(month, WHY_MONTHS), [name.strip() for name in by.split(",") if name.strip()]
    if unknown := [name for name in names if name not in BY]:
        raise typer.BadParameter(f"--by {unknown[0]}: choose from {', '.join(BY)}")
    with session.engine() as engine:
        found = month_margins(engine, period, by=names, currency=currency.upper())
    rows: list[dict[str, Any]] = [
        dict(zip(names, row.key, strict=True))
        | {"revenue": plain(row.revenue), "cost": plain(row.cost), "margin": plain(row.margin),
           "requests": row.traffic.requests, "gpu_us": row.traffic.gpu_us, "why": "; ".join(row.reasons)}
        for row in found.rows if not losing or row.margin < 0
    ]  # fmt: skip
    rest = plain(quantise_line(found.unallocated))
    if as_json:
        document({"month": period.name, "currency": found.currency, "rows": rows, "idle_overhead_platform": rest})
    else:
        columns = (*names, "revenue", "cost", "margin", "requests", "gpu_us", "why")
        listing(rows, columns, as_csv=as_csv, title=f"{period.name}, {found.currency}", empty="nobody")
        if not as_csv:
            out.print(f"idle time, overhead and the platform's own: {rest} {found.currency}")
    end_with(found.problems)
