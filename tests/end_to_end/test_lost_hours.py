"""Six hours of events of three tenants are lost by the shippers of two replicas, and nobody tells.

They are found, sized, replayed from the spools' archive, and billed, whether the month is still open or was closed. All
commands are those that people type; TOLLBOOK_TRANSCRIPT names a file that keeps what they print, of which
docs/lost-hours.md is made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from devstack.traffic.lossy_fleet import LOSERS, STEP, Fleet, summed, times_of_producers
from serving_adapter.events import UsageEvent
from serving_adapter.settings import KafkaSettings
from streams.completeness.completeness_check import CompletenessCheck
from streams.quotas import definition_store
from streams.quotas.definitions import quota_from
from streams.settings import CompletenessSettings
from tests.closing import close_by_two
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import World, world
from tests.integration.console.conftest import Done, Run, run

__all__ = ["run", "world"]
IN, CACHED, OUT = Decimal("0.001"), Decimal("0.0005"), Decimal("0.002")
"""What tests.billing_builders.PLAN says."""
BEGIN = datetime(2026, 10, 14, tzinfo=UTC)
BUDGET = {"tenant_id": "acme", "period": "month", "metric": "output_tokens", "limit": 200_000}
LOOK = ("reconcile", "run", "--from", "2026-10-13", "--to", "2026-10-17")


class Case:
    """The command line on one fleet's month; keeps what was typed and printed."""

    def __init__(self, run: Run, twin: StripeTwin, fleet: Fleet) -> None:
        self._run, self._twin, self.fleet = run, twin, fleet
        self.transcript: list[str] = []

    def __call__(self, *arguments: str, code: int = 0) -> str:
        done: Done = self._run(*arguments, TOLLBOOK_STRIPE_API=self._twin.url, TOLLBOOK_STRIPE_KEY=self._twin.key)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.transcript.append(f"$ tollbook {' '.join(arguments)}\n{done.stdout}")
        return str(done.stdout)

    def json(self, *arguments: str, code: int = 0) -> Any:
        found = json.loads(self(*arguments, "--json", code=code))
        self.transcript.pop()
        return found

    def close(self, month: str, now: str, waived: str = "") -> None:
        close_by_two(self, month, now, waived=waived)

    def gate(self, code: int) -> Mapping[str, Any]:
        """What `reconcile run` says of the numbers of October."""
        checks = self.json("reconcile", "run", "2026-10", code=code)["checks"]
        found: Mapping[str, Any] = next(check for check in checks if check["name"] == "numbered events are here")
        return found


@pytest.fixture
def case(
    run: Run,
    world: World,
    stripe_twin: StripeTwin,
    kafka: KafkaSettings,
    tmp_path: Path,
    connection: psycopg.Connection,
) -> Case:
    world.customers("acme", "beta", "gamma", "delta")
    made = Case(run, stripe_twin, Fleet(kafka, tmp_path, BEGIN, model="llama"))
    with times_of_producers(kafka):
        made.fleet.serve()
    made("streams", "run", "--drain", "--dev", "--reader", "bare")
    settle(connection)
    return made


def settle(connection: psycopg.Connection) -> None:
    """What workers do each second, until numbers that are missing have settled."""
    check = CompletenessCheck(connection, CompletenessSettings())
    row = connection.execute("select clock_timestamp()").fetchone()
    assert row is not None
    for later in (0, 10):
        check.run(row[0] + timedelta(seconds=later))


def price(events: list[UsageEvent]) -> dict[str, Decimal]:
    """What events cost by hand."""
    return {t: (i - c) * IN + c * CACHED + o * OUT for t, (_, i, c, o) in summed(events).items()}


@pytest.mark.timeout(900)  # two closes against the twin, on a machine that does other things
@pytest.mark.parametrize("month", ["open", "closed"])
def test_lost_hours_are_found_replayed_once_and_billed(
    month: str, case: Case, connection: psycopg.Connection, tmp_path: Path
) -> None:
    lost, made = case.fleet.lost(), case.fleet.made
    if month == "closed":
        case.close("2026-10", "2026-11-02T00:00:00Z", waived="R1")
        issued = case.json("invoice", "list", "--period", "2026-10")
    assert_found_and_sized(case, lost)
    assert {each["key"].split("/")[0] for each in case.gate(1)["differences"]} == {"replica-1", "replica-2"}

    definition_store.define(connection, quota_from(BUDGET, now=BEGIN), actor="ada")
    case("replay", "plan", "--spool", str(case.fleet.archive))
    (listed,) = case.json("replay", "list")
    plan = case.json("replay", "show", listed["plan_id"])
    assert plan["counts"]["add"] == len(lost)
    assert plan["counts"]["there"] == len(made) - len(lost)
    (budget,) = plan["effects"]["quotas"]
    outputs = [summed(events)["acme"][3] for events in (made, lost)]
    assert [int(budget[name]) for name in ("used", "after")] == [outputs[0] - outputs[1], outputs[0]]
    assert {row["tenant_id"]: Decimal(row["amount"]) for row in plan["money"]} == price(lost)
    follows = {row["follows"].partition(":")[0] for row in plan["money"]}
    assert follows == ({"counted"} if month == "open" else {"2026-10 is invoiced"})

    case("replay", "apply", plan["plan_id"])
    case("replay", "apply", plan["plan_id"])
    assert windows(connection) == summed(made)
    case("replay", "plan", "--spool", str(case.fleet.archive), "--tenant", "acme")
    assert case.json("replay", "list")[0]["records"] == 0

    if month == "open":
        case.close("2026-10", "2026-11-02T00:00:00Z")
        assert exact(case, "2026-10") == price(made)
    else:
        case.close("2026-11", "2026-12-02T00:00:00Z")
        assert case.json("invoice", "list", "--period", "2026-10") == issued, "an issued invoice is never edited"
        assert exact(case, "2026-11") == price(lost)
    case(*LOOK)
    assert case.gate(0)["agrees"]
    for tenant, (requests, given, cached, made_tokens) in summed(lost).items():
        told = case.json("replay", "show", plan["plan_id"], "--messages")[tenant]
        assert f"{requests:,} requests, {given:,} input tokens ({cached:,} of them cached), {made_tokens:,}" in told
        assert f"{price(lost)[tenant]:,.2f} USD" in told
    case("replay", "show", plan["plan_id"], "--messages")
    if (keep := os.environ.get("TOLLBOOK_TRANSCRIPT")) is not None:
        Path(f"{keep}.{month}").write_text("\n".join(case.transcript).replace(str(tmp_path), ""))


def assert_found_and_sized(case: Case, lost: list[UsageEvent]) -> None:
    """Replicas, hours, tenants, and the truth to the token; and nothing else is found."""
    case(*LOOK, code=1)
    found = case.json("reconcile", "list")
    assert [(each["kind"], each["subject"]["replica_id"]) for each in found] == [
        ("lost_events", "replica-2"), ("lost_events", "replica-1")
    ]  # fmt: skip
    for each in found:
        truth = summed([event for event in lost if event.replica_id == each["subject"]["replica_id"]])
        shares = {share["tenant_id"]: share for share in each["size"]["shares"]}
        assert sorted(shares) == sorted(LOSERS)
        for tenant, (requests, given, cached, out) in truth.items():
            wanted = {"events": requests, "input_tokens": given, "cache_hit_tokens": cached, "output_tokens": out}
            assert {name: shares[tenant][name] for name in wanted} == {n: [v, v] for n, v in wanted.items()}
        begins, ends = each["begins"], each["ends"]
        assert told(case.fleet.lost_from - STEP) <= begins <= told(case.fleet.lost_from)
        assert told(case.fleet.lost_to - STEP) <= ends <= told(case.fleet.lost_to)
        assert "its shipper did not deliver" in each["cause"]
    worth = sum(Decimal(each["size"]["money"][0]["high"]) for each in found)
    assert worth == sum(price(lost).values())


def told(at: Any) -> str:
    return str(at.isoformat().replace("+00:00", "Z"))


def windows(connection: psycopg.Connection) -> dict[str, tuple[int, int, int, int]]:
    rows = connection.execute(
        "select tenant_id, sum(requests)::int8, sum(input_tokens)::int8, sum(cache_hit_tokens)::int8,"
        " sum(output_tokens)::int8 from usage.windows_1h group by 1"
    )
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}


def exact(case: Case, period: str) -> dict[str, Decimal]:
    """What a period's invoices come to, by account."""
    return {
        each["billing_account"]: Decimal(each["exact_total"])
        for each in case.json("invoice", "list", "--period", period)
    }  # fmt: skip
