"""`tollbook close unbillable` as finance uses it."""

from __future__ import annotations

import json
from typing import Any

from billing.database import engine_for, transaction
from billing.usage import unbillable_store
from billing.usage.unbillable_store import UnbillableEvent
from streams.rules.windows import AttemptUsage, UsageQuantity
from tests.billing_builders import OCTOBER
from tests.integration.billing.conftest import World
from tests.integration.console.conftest import Run

USED = UsageQuantity("acme", "llama", "", "", "", "ok", "none", "engine", "", 1, 300, 0, 70, 0)


def test_usage_that_is_too_old_to_bill_is_listed_and_approved_by_a_named_person_with_a_reason(
    run: Run, own_database_url: str
) -> None:
    engine = engine_for(own_database_url)
    World(engine).customers("acme")
    late = [
        UnbillableEvent("acme", "usage", 0, AttemptUsage(f"r{n}", 1, OCTOBER.start, USED), OCTOBER.end, 10)
        for n in range(2)
    ]
    with transaction(engine) as connection:
        unbillable_store.judged(connection, OCTOBER, {"source": 7}, late)
    engine.dispose()

    def rows(*more: str) -> list[dict[str, Any]]:
        done = run("close", "unbillable", "2026-10", "--as", "ada", *more, "--json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)
        return found

    first = rows()[0]
    assert (first["request_id"], first["output_tokens"], first["late_usage_days"], first["approved_by"]) == (
        "r0", 70, 10, None,
    )  # fmt: skip
    approve = ("close", "unbillable", "2026-10", "--approve", "--as", "bob")
    refused = run(*approve)
    assert (refused.returncode, "--reason" in refused.stderr) == (1, True)
    assert "2 events approved" in run(*approve, "--reason", "contract 7", "--dry-run").stdout
    assert [each["approved_by"] for each in rows()] == [None, None]
    assert "2 events approved to stay unbilled" in run(*approve, "--reason", "contract 7").stdout
    assert "0 events approved" in run(*approve, "--reason", "again").stdout
    assert [(each["approved_by"], each["reason"]) for each in rows()] == [("bob", "contract 7")] * 2
    written = run("close", "unbillable", "2026-10", "--as", "ada", "--csv").stdout.splitlines()
    assert written[0].startswith("tenant_id,completed_at,request_id")
    assert len(written) == 3
    assert "nothing came too late" in run("close", "unbillable", "2026-11", "--as", "ada").stdout
    assert run("close", "unbillable", "2026", "--as", "ada").returncode == 2
