"""`tollbook quota`: definitions by field, dry runs, who holds what, where it stands, why it was refused."""

from __future__ import annotations

import json
from typing import Any

import psycopg
import pytest

from tests.integration.console.conftest import Run
from tests.integration.streams.quotas.driver import Driver, Usage

SET = ("quota", "set", "a", "--period", "month", "--metric", "output_tokens", "--limit", "1000")


def listed(run: Run, *more: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run("quota", "list", "--json", *more).stdout)
    return found


def test_quotas_are_set_changed_listed_and_ended(run: Run) -> None:
    run("tenant", "add", "a", "b")
    assert run(*SET, "--thresholds", "80,100", "--as", "ada").returncode == 0
    assert run(*SET[:-1], "2000", "--soft").returncode == 0
    assert (
        run("quota", "set", "--tier", "free", "--period", "day", "--metric", "spend", "--limit", "2.5").returncode == 0
    )
    assert run("quota", "tier", "b", "free").returncode == 0
    assert [(q["owner"], q["limit"], q["hard"]) for q in listed(run)] == [
        ("tier free", "2.5", True),
        ("a", "2000", False),
    ]
    assert [q["quota_id"] for q in listed(run, "--tenant", "b")] == ["day-spend"]
    assert len(listed(run, "--tenant", "a", "--all")) == 2
    assert run("quota", "end", "month-output_tokens", "a").returncode == 0
    assert listed(run, "--tenant", "a") == []
    acts = [act["action"] for act in json.loads(run("audit", "list", "--json").stdout)]
    assert acts.count("quota.set") == 4
    assert acts.count("quota.tier") == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [(("--limit", "-5"), "limit"), (("--metric", "tokens"), "metric"), (("--thresholds", "80,120"), "thresholds"),
     (("--thresholds", "x"), "thresholds"), (("--tier", "free"), "tenant_id"), (("--from", "yesterday"), "from")],
)  # fmt: skip
def test_a_wrong_definition_is_refused_by_field(run: Run, change: tuple[str, str], field: str) -> None:
    refused = run(*SET, *change)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"tollbook: {field}: ")


def test_strangers_and_dry_runs_leave_nothing(run: Run) -> None:
    assert "not registered" in run(*SET).stderr
    run("tenant", "add", "a")
    assert "would set" in run(*SET, "--dry-run").stdout
    assert listed(run) == []
    assert run("quota", "end", "month-output_tokens", "a").returncode == 1


def test_show_and_why_need_no_service(run: Run, connection: psycopg.Connection, own_database_url: str) -> None:
    run("tenant", "add", "t1")
    run("quota", "set", "t1", *SET[3:])
    usage = Usage(connection)
    usage.happens("before", output=400)
    driver = Driver(own_database_url)
    driver.ask("r1", 600)
    driver.ask("r2", 100)
    driver.settle("r1", 50)
    (standing,) = json.loads(run("quota", "show", "t1", "--json").stdout)
    assert (standing["used"], standing["unconfirmed"], standing["remaining"]) == (450, 50, 550)
    (why,) = json.loads(run("quota", "why", "t1", "r2", "--json").stdout)["decisions"]
    wall = why["walls"][0]
    assert (wall["because"], wall["limit"], wall["needed"], wall["room"]) == ("in_flight", "1000", "16", "0")
    assert "in_flight; 16 needed, 0 of 1000 available" in run("quota", "why", "t1", "r2").stdout
    assert run("quota", "why", "t1", "unheard-of").returncode == 1
