"""The sending's part of `make bench-close`: invoices into a twin that is held to Stripe's rate limits.

The floor is what those limits leave: max(calls of one endpoint / 25, all calls / 100 live or 25 in a sandbox), in
seconds (docs/spec/money.md 10). Where this machine cannot do so many calls a second, both limits are scaled down by the
same factor, and the floor with them: what is measured is how close the sender keeps to it.
"""

from __future__ import annotations

import json
import os
import secrets
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, text

from billing.commands.apply_plan import apply_plan
from billing.commands.draft_invoices import draft_invoices
from billing.commands.rate_period import rate_period
from billing.commands.send_invoices import Outcome, send_invoices
from billing.commands.show_invoices import invoice_list
from billing.commands.start_subscription import start_subscriptions
from billing.commands.sync_stripe import sync_stripe
from billing.database import engine_for, transaction
from billing.periods import BillingPeriod, parse_period
from billing.settings import StripeSettings
from billing.stripe.rate_limits import ENDPOINT_PER_S, LIVE_PER_S, SANDBOX_PER_S, Limits
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.close.gates.evaluating import Outside, evaluate
from reconciliation.close.gates.gate import Gate
from reconciliation.stripe_records import money_seen
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE, ensure_topics
from streams import tenants
from streams.database import connect
from streams.ingest.logs import LogReader
from tests.benchmarks.gates import Stopwatch
from tests.benchmarks.report import QUICK, Report
from tests.billing_builders import EMAIL, NOW, PLAN, SINCE
from tests.fixtures_services import delete_topics
from tests.fixtures_stripe_twin import StripeTwin, TwinProcess, act, new_test_key

INVOICES: Final = int(os.environ.get("BENCH_INVOICES") or (60 if QUICK else 1_000))
SCALE: Final = float(os.environ.get("BENCH_STRIPE_SCALE") or 0.5)
"""Of Stripe's limits, so that two cores keep up with the sender and the twin at once."""
GOAL: Final = 1.25
NO_LIMITS: Final = Limits(1e6, 1e6)
"""While what is compared is made, and while it is compared: what Stripe allows for that is no matter of the gates."""
MODES: Final = {"live": (LIVE_PER_S, parse_period("2026-10")), "sandbox": (SANDBOX_PER_S, parse_period("2026-11"))}
RATIO: Final = {"live": "stripe_ratio_to_floor", "sandbox": "sending_sandbox_to_floor"}


def main(report: Report, url: str) -> None:
    """Add the sending's figures to a report; `url` is of an empty database."""
    engine = engine_for(url)
    names = [f"t{n:05d}" for n in range(INVOICES)]
    with connect(url) as connection:
        tenants.register(connection, [(name, name) for name in names], actor="bench")
    apply_plan(engine, PLAN, file="plan.yaml", actor="bench", now=SINCE)
    start_subscriptions(engine, tenant_ids=names, plan="p", starts_at=SINCE, actor="bench", email=EMAIL)
    key = new_test_key()
    with tempfile.TemporaryDirectory() as folder:
        twin = TwinProcess(Path(folder) / "twin")
        address = twin.start().url
        try:
            for mode, (all_per_s, month) in MODES.items():
                with transaction(engine) as opened:
                    _use(opened, month)
                rate_period(engine, period=month, now=NOW)
                draft_invoices(engine, period=month, now=NOW)
                limits = Limits(all_per_s * SCALE, ENDPOINT_PER_S * SCALE)
                gateway = StripeGateway(StripeSettings(key, address), limits)
                _limit(address, limits)
                _measure(report, mode, engine, month, gateway, limits)
            _limit(address, NO_LIMITS)
            gateway = StripeGateway(StripeSettings(key, address), NO_LIMITS)
            _pay(engine, StripeTwin(address, key), month, gateway)
            _compare(report, engine, month, gateway)
        finally:
            twin.kill()
            engine.dispose()


def _measure(
    report: Report, mode: str, engine: Engine, month: BillingPeriod, gateway: StripeGateway, limits: Limits
) -> None:
    begun = time.monotonic()
    sent = send_invoices(engine, period=month, gateway=gateway, now=NOW, actor="bench")
    took = time.monotonic() - begun
    assert len(sent.having(Outcome.FINALIZED)) == INVOICES, "not all were sent"
    calls = gateway.limiter.calls
    floor = floor_s(calls, limits)
    report.add(f"sending_{mode}", "s", [took], floor=round(floor, 1))
    report.add(RATIO[mode], "times", [took / floor], goal=GOAL)
    report.add(f"sending_{mode}_calls", "per invoice", [calls.total() / INVOICES])
    report.add(f"sending_{mode}_refused", "429s", [gateway.limiter.refusals])
    print("  " + ", ".join(f"{count:,} {endpoint}" for endpoint, count in sorted(calls.items())), flush=True)
    full = floor_s(calls, Limits(limits.all_per_s / SCALE)) * 10_000 / INVOICES
    print(f"  10,000 invoices under Stripe's own limits: at least {full:,.0f} s", flush=True)


def _compare(report: Report, engine: Engine, month: BillingPeriod, gateway: StripeGateway) -> None:
    """What R5b and R6 take, which ask Stripe for every invoice and for all that moved, and what it takes to ask Kafka's
    end for R1, of a topic that nothing waits in; that windows have no events is no matter of these."""
    kafka = KafkaSettings(os.environ["TOLLBOOK_KAFKA"], topic_prefix=f"bench-{secrets.token_hex(4)}")
    ensure_topics(kafka)
    log = LogReader(kafka, USAGE.name(kafka.topic_prefix)).read
    begun = time.monotonic()
    log()
    report.add("gates_kafkas_end_seconds", "s", [time.monotonic() - begun])
    begun = time.monotonic()
    moved = len(money_seen(gateway).moved)
    listed = time.monotonic() - begun
    watch = Stopwatch()
    found = evaluate(engine, month, now=NOW, outside=Outside(gateway, log), made=watch)
    for gate in (Gate.R5B, Gate.R6):
        assert found[gate].is_green, found[gate].open[:3]
    assert found[Gate.R6].compared > moved == INVOICES
    report.add("gates_r5b_seconds", "s", [watch.seconds[Gate.R5B]])
    report.add("gates_r6_moved", "balance transactions", [moved])
    report.add("gates_r6_seconds", "s", [listed + watch.seconds[Gate.R6]])
    delete_topics(kafka)


def _pay(engine: Engine, twin: StripeTwin, month: BillingPeriod, gateway: StripeGateway) -> None:
    """Each invoice of a month is paid, and that is booked."""
    for invoice in invoice_list(engine, period=month):
        act(twin, "pay", invoice=invoice["stripe_invoice_id"])
    assert sync_stripe(engine, gateway=gateway, now=NOW).problems == ()


def floor_s(calls: Counter[str], limits: Limits) -> float:
    """The least time in which Stripe takes so many calls by endpoint (docs/spec/money.md 10)."""
    return max(max(calls.values(), default=0) / limits.endpoint_per_s, calls.total() / limits.all_per_s)


def _use(opened: Connection, month: BillingPeriod) -> None:
    opened.execute(
        text(
            "insert into usage.windows_1h (tenant_id, bucket, model, adapter, region, tier, pool, status, fault,"
            " purpose, usage_source, rating_band, events, requests, input_tokens, cache_hit_tokens, output_tokens,"
            " gpu_us)"
            " select tenant_id, cast(:at as timestamptz), 'm' || n, '', '', '', '', 'ok', 'none', 'tenant', 'engine',"
            " '', 1, 1, 1000, 400, 2500, 0 from usage.tenants, generate_series(1, 2) n"
        ),
        {"at": month.start},
    )


def _limit(address: str, limits: Limits) -> None:
    given = json.dumps({"all_per_s": limits.all_per_s, "endpoint_per_s": limits.endpoint_per_s}).encode()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(f"{address}/_twin/limits", method="POST", data=given), timeout=10).close()
