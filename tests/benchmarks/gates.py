"""The gates' part of `make bench-close`: what each gate of a month takes, once of much usage and once of many tenants.

Every window stands for one request, which is there as a raw event with its message: 500 tenants × 20 models × the 720
hours of November, and 10,000 tenants of two requests each. Rated, cut and drafted as `close run` does; then the gates
are asked, but for what Stripe and Kafka would be asked (R5b, R6, Kafka's end). All of them must be green.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import Engine

from billing.commands.apply_plan import apply_plan
from billing.commands.seal_journal import seal_journals
from billing.commands.start_subscription import start_subscriptions
from billing.database import engine_for
from billing.periods import parse_period
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.close.gates.evaluating import Outside, evaluate
from reconciliation.close.gates.gate import GATE_OF, Gate, Result
from reconciliation.close.preparing import Preparing
from reconciliation.close.run_context import Run
from reconciliation.close.states import State
from streams import tenants
from streams.database import connect
from streams.ingest.logs import Log
from tests.benchmarks.report import QUICK, Report
from tests.billing_builders import PLAN, SINCE

MONTH: Final = parse_period("2026-11")
NOW: Final = MONTH.end + timedelta(days=2)
HOURS: Final = int(os.environ.get("BENCH_GATE_HOURS") or (24 if QUICK else 720))
SEND: Final = "the gates' benchmark asks Stripe and Kafka nothing"


@dataclass(frozen=True, slots=True)
class Size:
    """A month of `tenants`, each with one request of each of `models` in each of the first `hours`."""

    name: str
    tenants: int
    models: int
    hours: int


SIZES: Final = (
    Size("gates", 50 if QUICK else 500, 20, HOURS),
    Size("gates_10k_tenants", 500 if QUICK else 10_000, 2, 1),
)


class Stopwatch:
    """Adds up the time since it was told of something last, by the gate of what it is told of."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._last = time.monotonic()

    def __call__(self, name: str) -> None:
        now = time.monotonic()
        self.seconds[GATE_OF[name].value if name in GATE_OF else "beside"] += now - self._last
        self._last = now


def main(report: Report, url: str, size: Size) -> None:
    """Add the gates' figures of one size to a report; `url` is of an empty database."""
    begun = time.monotonic()
    engine = engine_for(url)
    _fill(url, engine, size)
    report.add(f"{size.name}_events", "events", [size.tenants * size.models * size.hours])
    print(f"  filled in {time.monotonic() - begun:.0f} s", flush=True)
    run = Run(engine, MONTH, _no_stripe(), _no_log, NOW, "bench", None, lambda name: None)
    preparing = Preparing(run)
    begun = time.monotonic()
    preparing.collect()
    preparing.freeze_and_draft(test=True)
    report.add(f"{size.name}_cut_seconds", "s", [time.monotonic() - begun])
    assert run.found.moved[State.DRAFTED] == size.tenants, run.found.problems[:5]
    seal_journals(engine)
    watch, begun = Stopwatch(), time.monotonic()
    found = evaluate(engine, MONTH, now=NOW, outside=Outside(), made=watch)
    report.add(f"{size.name}_seconds", "s", [time.monotonic() - begun])
    for gate in [*map(str, Gate), "beside"]:
        if gate in watch.seconds:
            report.add(f"{size.name}_{gate.lower()}_seconds", "s", [watch.seconds[gate]])
    assert _red(found) == {}, _red(found)
    engine.dispose()


def _red(found: dict[Gate, Result]) -> dict[str, list[str]]:
    """What nobody expects: no draft was sent, so that none is in Stripe, and none is issued."""
    expected = ("drafts are in Stripe", "invoices are issued")
    red = {gate: [e.key for e in each.open if e.check not in expected] for gate, each in found.items()}
    return {gate: keys[:3] for gate, keys in red.items() if keys}


def _no_stripe() -> StripeGateway:
    return StripeGateway(StripeSettings("sk_test_of_a_benchmark", "http://127.0.0.1:9"))


def _no_log() -> Log:
    raise AssertionError(SEND)


def _fill(url: str, engine: Engine, size: Size) -> None:
    names = [f"t{number:05}" for number in range(size.tenants)]
    with connect(url) as connection:
        tenants.register(connection, [(name, name) for name in names], actor="bench")
    apply_plan(engine, PLAN, file="bench.yaml", actor="bench", now=SINCE)
    start_subscriptions(engine, tenant_ids=names, plan="p", starts_at=datetime(2026, 11, 1, tzinfo=UTC), actor="bench")
    each = size.models * size.hours
    with connect(url, as_login=True) as owner:
        owner.execute("set synchronous_commit = off")
        owner.execute(_SOURCE, {"events": each * size.tenants})
        for number, name in enumerate(names):
            given = {"tenant": name, "start": MONTH.start, "hours": size.hours, "models": size.models}
            owner.execute(_EVENTS, given | {"first": number * each})
            owner.execute(_CHUNK, {"first": number * each, "next": (number + 1) * each, "events": each})
            for table, width in (("windows_1m", "minute"), ("windows_1h", "hour")):
                owner.execute(_WINDOWS.format(table=table, width=width), given)  # type: ignore[arg-type]
        for table in ("events", "windows_1m", "windows_1h", "applied_chunks"):
            owner.execute(f"vacuum analyze usage.{table}")  # type: ignore[arg-type]


_SOURCE: Final = """
    insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)
    values ('bench', 'c', 't', 0, 0, %(events)s)
"""
_CHUNK: Final = """
    insert into usage.applied_chunks (source, first_position, next_position, applied, duplicates, retimed, quarantined,
        content_digest)
    values ('bench', %(first)s, %(next)s, %(events)s, 0, 0, 0, '')
"""
_EVENTS: Final = """
    insert into usage.events (completed_at, tenant_id, request_id, attempt, kind, correction_no, model, adapter, region,
        tier, pool, status, fault, purpose, usage_source, rating_band, input_tokens, cache_hit_tokens, output_tokens,
        gpu_us, source, position, ingested_at, raw)
    select at, %(tenant)s, id, 1, 'usage', 0, model, '', 'eu', '', '', 'ok', 'none', 'tenant', 'engine', '',
        1000, 100, 200, 1000, 'bench', %(first)s + n, now(), convert_to(
            '{"tenant_id":"' || %(tenant)s || '","request_id":"' || id || '","model":"' || model || '","region":"eu",'
            '"input_tokens":1000,"cache_hit_tokens":100,"output_tokens":200,"gpu_us":1000,"duration_ms":900,"timestamp":'
            || extract(epoch from at)::int8 * 1000 || '}', 'utf8')
    from (
        select %(tenant)s || '-' || hour || '-' || m as id, 'm' || lpad(m::text, 2, '0') as model,
            %(start)s::timestamptz + hour * interval '1 hour' + interval '30 minutes' as at, hour * %(models)s + m as n
        from generate_series(0, %(hours)s - 1) as hour, generate_series(0, %(models)s - 1) as m
    ) as made
"""
_WINDOWS: Final = """
    insert into usage.{table} (bucket, tenant_id, model, adapter, region, tier, pool, status, fault, purpose,
        usage_source, rating_band, events, requests, input_tokens, cache_hit_tokens, output_tokens, gpu_us)
    select date_trunc('{width}', completed_at), tenant_id, model, adapter, region, tier, pool, status, fault, purpose,
        usage_source, rating_band, 1, 1, input_tokens, cache_hit_tokens, output_tokens, gpu_us
    from usage.events where tenant_id = %(tenant)s
"""
