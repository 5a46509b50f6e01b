"""Archive, retain, explain and recall, as people type them: from Kafka to Parquet and back."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.integration.console.conftest import Run

NOW = "2027-02-01T00:00:00Z"
PLAN = """\
plan: p
currency: USD
versions:
  - {version: v1, from: 2026-01-01, charges: [{key: in, model: per_unit, metric: input, price: "0.001"}]}
"""


@pytest.fixture
def ingested(run: Run, tmp_path: Path) -> Run:
    """October and November events of one tenant, applied and rated."""
    lines = [
        {"tenant_id": "acme", "request_id": f"r{n}", "model": "llama", "input_tokens": 100 + n, "output_tokens": n,
         "timestamp": f"2026-{month}-0{1 + n % 3}T10:{n:02}:00Z"}
        for month in (10, 11) for n in range(month, month + 12)
    ]  # fmt: skip
    for n, line in enumerate(lines):
        line["request_id"] = f"r{n}"
    (tmp_path / "events.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "plan.yaml").write_text(PLAN)
    for command in (
        ("tenant", "add", "acme"),
        ("plan", "apply", str(tmp_path / "plan.yaml")),
        ("subscription", "start", "p", "--all", "--from", "2026-10-01"),
        ("events", "ingest", str(tmp_path / "events.jsonl")),
        ("streams", "run", "--drain"),
    ):
        done = run(*command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    return run


def test_a_closed_month_is_archived_and_dropped_and_can_be_explained_rebuilt_and_recalled(
    ingested: Run, connection: psycopg.Connection, tmp_path: Path
) -> None:
    where = {"TOLLBOOK_ARCHIVE": str(tmp_path / "archive")}

    def run(*arguments: str, code: int = 0) -> str:
        done = ingested(*arguments, **where)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return str(done.stdout)

    listed = ("usage", "explain", "acme", "--period", "2026-10", "--limit", "3", "--csv")
    before = run(*listed)
    assert before.count(",database") == 3
    assert "equal to the hourly windows" in run("usage", "explain", "acme", "--period", "2026-10", "--limit", "3")
    assert "no period is closed" in run("streams", "retain", "--now", NOW, "--test")
    run("streams", "retain", "--now", NOW, code=2)
    connection.execute(
        "insert into ledger.accounting_periods (legal_entity, month, state)"
        " select legal_entity, '2026-10', 'closed' from ledger.legal_entities"
        " on conflict (legal_entity, month) do update set state = 'closed'"
    )
    dry = run("streams", "retain", "--now", NOW, "--dry-run")
    assert "closed before 2026-11-01" in dry
    assert "12 other identities and 0 boots would be forgotten" in dry
    assert "0 days of raw events would be dropped" in dry
    assert "not more, because 2026-10-01 is not in the archive" in dry
    assert connection.execute("select forgotten_before from usage.ingest_rules").fetchone() == (None,)

    assert "12 events of 3 days would be written; 0 days are there" in run(
        "events", "archive", "--period", "2026-10", "--dry-run"
    )
    assert not (tmp_path / "archive").exists() or not list((tmp_path / "archive").rglob("*.*"))
    assert "12 events of 3 days are in the archive (3 days written now)" in run(
        "events", "archive", "--period", "2026-10"
    )
    assert "(0 days written now)" in run("events", "archive", "--period", "2026-10")
    there = json.loads(run("events", "archive", "--period", "2026-10", "--dry-run", "--json"))["days"]
    assert [(day["rows"], day["there"]) for day in there] == [(4, True)] * 3
    done = json.loads(run("streams", "retain", "--now", NOW, "--test", "--json"))
    assert (done["identities"], done["days_dropped"]) == (12, ["2026-10-01", "2026-10-02", "2026-10-03"])
    assert connection.execute("select count(*) from usage.events").fetchone() == (12,)

    assert "equal to the hourly windows" in run("usage", "explain", "acme", "--period", "2026-10", "--limit", "3")
    assert run(*listed) == before.replace(",database", ",archive")
    span = ("--from", "2026-10-01T00:00:00Z", "--to", "2026-11-01T00:00:00Z")
    assert "events recall" in ingested("streams", "rebuild", *span, **where).stderr
    would = run("events", "recall", "--period", "2026-10", "--dry-run")
    assert "3 days with 12 events would be recalled" in would
    assert connection.execute("select count(*) from usage.recalled_days").fetchone() == (0,)
    assert "3 days are recalled" in run("events", "recall", "--period", "2026-10")
    assert "0 listed that differ" in run("streams", "rebuild", *span)
    assert "3 recalled days would be taken away" in run("events", "recall", "--end", "--dry-run")
    assert connection.execute("select count(*) from usage.recalled_days").fetchone() == (3,)
    assert "3 recalled days are taken away" in run("events", "recall", "--end")
    run("streams", "rebuild", *span, code=1)


def test_intervals_of_chunks_are_worked_out_and_set(run: Run, connection: psycopg.Connection) -> None:
    wanted = ("streams", "plan-chunks", "--events-per-day", "500000000", "--memory-gib", "8")
    shown = json.loads(run(*wanted, "--json").stdout)
    assert shown["edition"] == "apache"
    minutes = {each["table"]: each["minutes"] for each in shown["chunks"]}
    assert minutes["events"] < 24 * 60
    assert run(*wanted, "--apply").returncode == 0
    rows = connection.execute(
        "select hypertable_name, extract(epoch from time_interval)::int / 60"
        " from timescaledb_information.dimensions where hypertable_name in ('events', 'windows_1m')"
    )
    assert dict(rows.fetchall()) == minutes


def test_the_archive_must_be_named_to_be_written(run: Run) -> None:
    done = run("events", "archive", "--period", "2026-10", TOLLBOOK_ARCHIVE="")
    assert done.returncode == 1
    assert "TOLLBOOK_ARCHIVE" in done.stderr
    assert run("streams", "retain", TOLLBOOK_HORIZON_DAYS="44").returncode == 1
