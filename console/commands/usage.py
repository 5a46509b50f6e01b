"""`tollbook usage`: what a tenant used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from datetime import datetime
from typing import Annotated

import typer

from billing.periods import parse_period
from console import session
from console.output import AsCsv, AsJson, document, listing, out
from streams import tenants
from streams.completeness import completeness_store
from streams.usage import event_reader, usage_store

app = typer.Typer(help="What tenants used.", no_args_is_help=True, add_completion=False)
SUMS = tuple(field.name for field in fields(usage_store.UsageTotals))
EVENT_COLUMNS = (
    "completed_at", "request_id", "attempt", "kind", "model", "status", "usage_source", "rating_band", "input_tokens",
    "cache_hit_tokens", "output_tokens", "counts", "kept_in",
)  # fmt: skip


@app.callback()
def _group() -> None:
    """What tenants used."""


@app.command()
def show(
    tenant_id: Annotated[str, typer.Argument(metavar="TENANT")],
    period: Annotated[str | None, typer.Option(help="2026-10, 2026-Q4, 2026 or 2026-10-17..2026-11-17 (UTC).")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Beginning, a whole hour in RFC 3339.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="End, not included, a whole hour in RFC 3339.")] = None,
    by: Annotated[str, typer.Option(help=f"Break down by some of {', '.join(usage_store.BY)}, with commas.")] = "model",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Requests and tokens of one tenant in a period, by completion."""
    begins, ends = _bounds(period, start, end)
    names = [name.strip() for name in by.split(",") if name.strip()]
    if unknown := [name for name in names if name not in usage_store.BY]:
        raise typer.BadParameter(f"--by {unknown[0]}: choose from {', '.join(usage_store.BY)}")
    with session.connection() as connection:
        if not tenant_id.startswith("_"):  # the platform's own ids are known without being registered
            tenants.get(connection, tenant_id)
        rows = usage_store.usage_of(connection, tenant_id, begins, ends, names)
        total = usage_store.usage_of(connection, tenant_id, begins, ends, ())[0].totals
        as_of = usage_store.last_ingested(connection)
        complete_to = completeness_store.complete_to_of(connection, tenant_id).complete_to
    shown = [dict(zip(names, row.by, strict=True)) | asdict(row.totals) for row in rows]
    if as_json:
        document(
            {"tenant_id": tenant_id, "from": begins, "to": ends, "rows": shown, "total": asdict(total),
             "as_of": as_of, "complete_to": complete_to}
        )  # fmt: skip
        return
    title = f"{tenant_id}, {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC"
    listing(shown, (*names, *SUMS), as_csv=as_csv, title=title, empty=f"{tenant_id} used nothing in this time")
    if not as_csv and shown:
        if complete_to is not None:
            out.print(f"complete to {complete_to:%Y-%m-%d %H:%M:%S} UTC, as far as replicas are known")
        out.print("total: " + ", ".join(f"{name} {value:,}" for name, value in asdict(total).items()))


@app.command()
def explain(
    tenant_id: Annotated[str, typer.Argument(metavar="TENANT")],
    period: Annotated[str | None, typer.Option(help="2026-10, 2026-Q4, 2026 or 2026-10-17..2026-11-17 (UTC).")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Beginning, a whole hour in RFC 3339.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="End, not included, a whole hour in RFC 3339.")] = None,
    request: Annotated[str | None, typer.Option("--request", help="Only this request.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Events shown, at most; all are added up.")] = 50,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """A tenant's single requests, from the database or the archive, and whether they add up to its hourly windows."""
    begins, ends = _bounds(period, start, end)
    with session.connection() as connection:
        if not tenant_id.startswith("_"):
            tenants.get(connection, tenant_id)
        found = event_reader.events_of(connection, session.archive, tenant_id, begins, ends, request)
        shown: list[event_reader.StoredEvent] = []
        summed = event_reader.totals_of(_keeping(found, shown, limit))
        windows = usage_store.usage_of(connection, tenant_id, begins, ends, ())[0].totals
    rows = [asdict(event) for event in shown]
    compared = None if request else windows
    if as_json:
        document({"tenant_id": tenant_id, "from": begins, "to": ends, "events": rows, "sums": asdict(summed),
                  "hourly_windows": asdict(compared) if compared else None})  # fmt: skip
    else:
        listing(rows, EVENT_COLUMNS, as_csv=as_csv, empty=f"no event of {tenant_id} in this time")
        if not as_csv:
            out.print("sums: " + ", ".join(f"{name} {value:,}" for name, value in asdict(summed).items()))
            if compared is not None:
                out.print("equal to the hourly windows" if summed == compared else f"hourly windows: {compared}")
    if compared is not None and summed != compared:
        raise typer.Exit(1)


def _keeping(
    events: Iterator[event_reader.StoredEvent], shown: list[event_reader.StoredEvent], limit: int
) -> Iterator[event_reader.StoredEvent]:
    """All events, the first of them kept to be shown."""
    for event in events:
        if len(shown) < limit:
            shown.append(event)
        yield event


def _bounds(period: str | None, start: str | None, end: str | None) -> tuple[datetime, datetime]:
    """The time asked for, as [begin, end)."""
    if period and not (start or end):
        parsed = parse_period(period)
        return parsed.start, parsed.end
    if not (start and end) or period:
        raise typer.BadParameter("give --period, or --from and --to")
    return session.whole_hours(start, end)
