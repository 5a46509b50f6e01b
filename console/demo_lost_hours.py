"""The demo's lost hours: two shippers drop six hours of three tenants, and say that all is well.

Found by reconciliation without being told, and replayed from the spools' archive before the month is closed. The
replicas' journals, heartbeats, shipper and archive are the real ones; their two days are made (docs/lost-hours.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import psycopg
from sqlalchemy import Engine

from billing.commands.start_subscription import start_subscriptions
from billing.periods import parse_period
from console import findings_shown, replay_shown, session
from console.output import out
from devstack.locations import locations
from devstack.traffic.azure_hour import TRACES
from devstack.traffic.lossy_fleet import LOSERS, REPLICAS_OF_IT, TENANTS, Fleet, times_of_producers
from reconciliation.findings import finding_store
from reconciliation.findings.finding_store import StoredFinding
from reconciliation.findings.look import look
from reconciliation.numbers_received import numbers_received
from reconciliation.replay import applying, plan_store, spool_source, trial
from reconciliation.replay.applying import Replayed
from reconciliation.replay.plan_store import StoredPlan
from reconciliation.replay.planning import Planner
from streams import tenants
from streams.completeness import completeness_store
from streams.completeness.completeness_check import CompletenessCheck
from streams.settings import CompletenessSettings

BEGIN: Final = datetime(2026, 10, 14, tzinfo=UTC)
MONTH: Final = parse_period("2026-10")
MODEL: Final = TRACES[0][1]
SETTLED: Final = timedelta(seconds=10)
"""After this a number that has not come is missing (streams/completeness)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How gate R1's numbers stand, and which findings are open."""

    missing: tuple[str, ...]
    findings: tuple[StoredFinding, ...]


@dataclass(frozen=True, slots=True)
class Back:
    """What was planned and replayed, and how all stands then."""

    plan: StoredPlan
    replayed: Replayed
    seen: Seen


def archive() -> Path:
    """Where the spools' segments go once they are read, sent or not."""
    return locations().home / "lost-hours" / "archive"


def serve(engine: Engine, connection: psycopg.Connection, plan: str, actor: str) -> int:
    """Let three replicas serve four tenants for two days; how many events their shippers sent. 0 where they have."""
    tenants.register(connection, [(name, name) for name in TENANTS], actor=actor)
    start_subscriptions(
        engine, tenant_ids=TENANTS, plan=plan, starts_at=MONTH.start, actor=actor, email="billing@tenants.example"
    )
    if any(boot.replica_id in REPLICAS_OF_IT for boot in completeness_store.all_boots(connection)):
        return 0
    kafka = session.kafka()
    fleet = Fleet(kafka, archive().parent, BEGIN, model=MODEL)
    with times_of_producers(kafka):
        fleet.serve()
    return len(fleet.made) - len(fleet.lost())


def find(connection: psycopg.Connection) -> Seen:
    """What the workers and `reconcile run` do by themselves: look at the numbers once they have settled, and at all."""
    row = connection.execute("select clock_timestamp()").fetchone()
    assert row is not None
    check = CompletenessCheck(connection, CompletenessSettings())
    for now in (row[0], row[0] + SETTLED):
        check.run(now)
    look(connection, BEGIN - timedelta(days=1), BEGIN + timedelta(days=3), session.clock(None))
    gaps = (each.key for check in numbers_received(connection, MONTH.start, MONTH.end) for each in check.differences)
    return Seen(tuple(gaps), tuple(finding_store.listed(connection, kind="lost_events")))


def get_back(engine: Engine, connection: psycopg.Connection, actor: str) -> Back:
    """Plan what the archive holds, apply the plan, look again."""
    where, now = str(archive()), session.clock(None)
    plan_id = Planner(connection, now, session.archive).plan(
        spool_source.spooled(where), {"spool": where}, actor, lambda _: None
    )
    trial.complete(engine, plan_id, now)
    begun = applying.begin(engine, plan_id, actor)
    replayer = applying.Replayer(engine, connection, begun, actor, session.archive)
    replayed = replayer.run(rate=None, progress=lambda *_: None)
    return Back(plan_store.get(connection, plan_id), replayed, find(connection))


def show(served: int, found: Seen, back: Back | None) -> list[str]:
    """What was lost, how it came back, and what a customer could be told; what of it could not be shown."""
    if back is None:
        return ["the events that were lost were not found"] if served else []
    out.print("\nSix hours that were lost", style="bold")
    findings_shown.table(found.findings, as_json=False, as_csv=False)
    replay_shown.plan(back.plan)
    done = back.replayed
    out.print(f"{done.applied:,} of {done.records:,} events were added, none twice: {_gate('before', found.missing)}")
    out.print(f"{len(back.seen.findings)} findings are open; {_gate('now', back.seen.missing)}")
    out.print(f"what {LOSERS[0]} could be told, for a person to read and send:\n")
    out.print(replay_shown.messages(back.plan)[LOSERS[0]], soft_wrap=True, style="dim")
    return ["not all that was lost came back"] if back.seen.findings or back.seen.missing or not found.missing else []


def _gate(when: str, missing: Sequence[str]) -> str:
    return f"gate R1 {when}: " + (f"red, {len(missing)} gaps in numbers" if missing else "green, no number is missing")
