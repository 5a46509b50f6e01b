"""The rating's part of `make bench-close`: a month of hourly windows rated and booked, beside the bare sum of them.

500 tenants × 20 models × the 720 hours of November. One tenant in a hundred moves to a dearer plan in mid-hour, so that
the hour's raw events decide; one in a hundred is on a plan that is priced by the start of a request and changes its
prices within the month. What comes out is compared with the same arithmetic in SQL.
"""

from __future__ import annotations

import re
import resource
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import text

from billing.commands.apply_plan import apply_plan
from billing.commands.change_subscription import change_subscription
from billing.commands.rate_period import rate_period
from billing.commands.start_subscription import start_subscriptions
from billing.database import engine_for, transaction
from billing.periods import parse_period
from billing.plans.subscriptions import version_name
from streams import tenants
from streams.database import connect
from streams.usage.usage_store import rating_quantities
from tests.benchmarks.report import QUICK, Report

TENANTS: Final = 50 if QUICK else 500
MODELS: Final = 20
RUNS: Final = 1 if QUICK else 3
MONTH: Final = parse_period("2026-11")
SINCE: Final = datetime(2026, 1, 1, tzinfo=UTC)
CHANGED_AT: Final = datetime(2026, 11, 14, 9, 26, 53, 589_793, tzinfo=UTC)
RAISED_AT: Final = datetime(2026, 11, 20, 6, tzinfo=UTC)
EVENTS: Final = 60
"""Requests a window stands for; those of the hour that is cut are there one by one."""
GOAL_SECONDS: Final = 60
GOAL_MIB: Final = 1024
PRICES: Final = {"input": Decimal("0.0000025"), "cached_input": Decimal("0.0000012"), "output": Decimal("0.00001")}


def main(report: Report, url: str) -> None:
    """Add the rating's figures to a report; `url` is of an empty database."""
    begun = time.monotonic()
    _fill(url)
    report.add("rating_windows", "rows", [_count(url)])
    print(f"  filled in {time.monotonic() - begun:.0f} s", flush=True)
    with connect(url) as connection:
        bare = []
        for _ in range(RUNS):
            begun = time.monotonic()
            assert sum(1 for _ in rating_quantities(connection, MONTH.start, MONTH.end)) >= TENANTS * MODELS
            bare.append(time.monotonic() - begun)
    figures = [_measured(url, dry_run=run < RUNS - 1) for run in range(RUNS)]
    again = _measured(url, dry_run=False)
    assert again["lines"] == 0, "a second rating posted something"
    amount, expected = figures[-1]["amount"], _expected(url)
    assert amount == expected, f"rated {amount}, by SQL {expected}"
    seconds = [each["seconds"] for each in figures]
    report.add("rating_seconds", "s", seconds, goal=GOAL_SECONDS, floor=min(bare))
    report.add("rating_sum_seconds", "s", bare)
    report.add("rating_again_seconds", "s", [again["seconds"]])
    report.add("rating_peak_mib", "MiB", [each["own"] + each["backend"] for each in figures], goal=GOAL_MIB)
    report.add("rating_own_peak_mib", "MiB", [each["own"] for each in figures])
    report.add("rating_lines", "", [figures[-1]["lines"]])


def _measured(url: str, *, dry_run: bool) -> dict[str, Any]:
    """One rating in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_rate, (url, dry_run))


def _rate(url: str, dry_run: bool) -> dict[str, Any]:
    engine = engine_for(url)
    begun = time.monotonic()
    found = rate_period(engine, period=MONTH, now=MONTH.end + timedelta(days=1), dry_run=dry_run)
    seconds = time.monotonic() - begun
    assert found.ok
    assert len(found.tenants) == TENANTS
    with transaction(engine) as connection:
        backend = _peak_of(int(connection.execute(text("select pg_backend_pid()")).scalar_one()))
    engine.dispose()
    return {
        "seconds": seconds,
        "own": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "backend": backend,
        "lines": found.lines_posted,
        "amount": sum((tenant.amount for tenant in found.tenants), Decimal(0)),
    }


def _peak_of(process: int) -> float:
    """The most memory of its own that the database's process for this connection had, MiB: not the shared buffers.

    0 where the database runs on another machine. What it had of the buffers only grows, so it is taken away as it is.
    """
    status = Path(f"/proc/{process}/status")
    if not status.exists():
        return 0.0
    found = {name: int(kib) for name, kib in re.findall(r"(VmHWM|RssShmem):\s+(\d+) kB", status.read_text())}
    return (found["VmHWM"] - found["RssShmem"]) / 1024


def _plan(name: str, factor: int, *, raised: bool = False) -> str:
    versions = [("v1", SINCE, factor), *([("v2", RAISED_AT, 2 * factor)] if raised else [])]
    lines = [f"plan: {name}", "currency: USD", *(["terms: {price_at: start}"] if raised else []), "versions:"]
    for version, since, times in versions:
        lines += [f"  - version: {version}", f"    from: {since:%Y-%m-%dT%H:%M:%SZ}", "    charges:"]
        lines += [
            f'      - {{key: m{model:02}-{metric}, model: per_unit, metric: {metric}, price: "{price * times}",'
            f" where: {{model: m{model:02}}}}}"
            for model in range(MODELS)
            for metric, price in PRICES.items()
        ]
    return "\n".join(lines) + "\n"


def _fill(url: str) -> None:
    names = [f"t{number:03}" for number in range(TENANTS)]
    share = max(1, TENANTS // 100)
    changed, started = names[:share], names[share : 2 * share]
    engine = engine_for(url)
    with connect(url) as connection, connection.transaction():
        tenants.register(connection, [(name, name) for name in names], actor="bench")
    for text_ in (_plan("plain", 1), _plan("dear", 2), _plan("by-start", 1, raised=True)):
        apply_plan(engine, text_, file="bench.yaml", actor="bench", now=SINCE)
    for plan, of in (("plain", [n for n in names if n not in started]), ("by-start", started)):
        start_subscriptions(engine, tenant_ids=of, plan=plan, starts_at=SINCE, actor="bench")
    for name in changed:
        change_subscription(engine, tenant_id=name, plan="dear", at=CHANGED_AT, actor="bench")
    engine.dispose()
    with connect(url, as_login=True) as owner:
        owner.execute("set synchronous_commit = off")
        for name in names:
            owner.execute(_WINDOWS, _given(tenant=name, by_start=name in started))
        for name in changed:
            owner.execute(_REQUESTS, _given(tenant=name))
        owner.execute("vacuum analyze usage.windows_1h")
        owner.execute("analyze usage.events")


def _given(**more: object) -> dict[str, object]:
    return more | {
        "start": MONTH.start, "end": MONTH.end, "models": MODELS, "events": EVENTS, "raised": RAISED_AT,
        "mark": f"price={version_name(RAISED_AT)}", "changed": CHANGED_AT,
    }  # fmt: skip


# A window's sums follow from its model and hour; a request is a sixtieth of them, so that its hour adds up.
_WINDOWS: Final = """
    insert into usage.windows_1h (bucket, tenant_id, model, adapter, region, tier, pool, status, fault, purpose,
        usage_source, rating_band, events, requests, input_tokens, cache_hit_tokens, output_tokens, gpu_us)
    select bucket, %(tenant)s, 'm' || lpad(m::text, 2, '0'), '', 'eu', '', '', 'ok', 'none', 'tenant', 'engine',
        case when %(by_start)s and bucket >= %(raised)s then %(mark)s else '' end,
        %(events)s, %(events)s, %(events)s * (1000 + 7 * m), %(events)s * (100 + m),
        %(events)s * (200 + extract(hour from bucket)::int), %(events)s * 1000
    from generate_series(%(start)s::timestamptz, %(end)s::timestamptz - interval '1 hour', interval '1 hour') as bucket,
        generate_series(0, %(models)s - 1) as m
"""
_REQUESTS: Final = """
    insert into usage.events (completed_at, tenant_id, request_id, attempt, kind, correction_no, model, adapter, region,
        tier, pool, status, fault, purpose, usage_source, rating_band, input_tokens, cache_hit_tokens, output_tokens,
        gpu_us, source, position, ingested_at, raw)
    select date_trunc('hour', %(changed)s::timestamptz) + n * interval '1 minute', %(tenant)s, 'r' || m || '-' || n, 1,
        'usage', 0, 'm' || lpad(m::text, 2, '0'), '', 'eu', '', '', 'ok', 'none', 'tenant', 'engine', '',
        1000 + 7 * m, 100 + m, 200 + extract(hour from %(changed)s::timestamptz)::int, 1000, 'bench',
        m * %(events)s + n, now(), ''
    from generate_series(0, %(events)s - 1) as n, generate_series(0, %(models)s - 1) as m
"""
_EXPECTED: Final = """
    with used as (
        select input_tokens - cache_hit_tokens as input, cache_hit_tokens as cached, output_tokens as output,
            case when rating_band <> '' then 2
                 when tenant_id = any(%(moved)s) and bucket > %(changed)s then 2 else 1 end as times
        from usage.windows_1h
        where tenant_id <> all(%(moved)s) or bucket <> date_trunc('hour', %(changed)s::timestamptz)
        union all
        select input_tokens - cache_hit_tokens, cache_hit_tokens, output_tokens,
            case when completed_at >= %(changed)s then 2 else 1 end
        from usage.events
    )
    select sum((input * %(input)s + cached * %(cached_input)s + output * %(output)s) * times) from used
"""


def _expected(url: str) -> Decimal:
    with connect(url) as connection:
        moved = connection.execute("select distinct tenant_id from usage.events").fetchall()
        row = connection.execute(
            _EXPECTED, {"moved": [tenant for (tenant,) in moved], "changed": CHANGED_AT, **PRICES}
        ).fetchone()
    assert row is not None
    return Decimal(row[0])


def _count(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from usage.windows_1h").fetchone()
    return int(row[0]) if row else 0
