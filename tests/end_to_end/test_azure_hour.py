"""The whole line on real parts, against answers that an outsider worked out: usage, bills, quarantine, agreement.

Two ways for the traffic to take: clean, and then all of it a second time; dirty (duplicates, late, bad messages) with
workers killed at random. Two workers share it. All commands are those that people type.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest

from devstack.traffic import azure_hour
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams.ingest import passed_positions, sources
from streams.ingest.logs import Log, LogReader
from streams.usage import quarantine
from tests.closing import close_by_two, draw_up
from tests.fixtures_stripe_twin import StripeTwin

EXPECTED = Path(__file__).parent / "azure_hour"
MONTHS = ("2026-10", "2026-11")
NOW = "2026-12-02T00:00:00Z"
KILLS = 4
WORKERS = ("one", "two")
DONE_WITHIN_S = 400
REASONS = {"conflict": 10, "invalid": 10, "torn": 10, "unknown_tenant": 10}

Usage = dict[tuple[str, str, str], tuple[int, ...]]


class Tollbook:
    """The command line, on services of this test's own."""

    def __init__(self, kafka: KafkaSettings, database_url: str, twin: StripeTwin) -> None:
        self._environ = os.environ | {
            "TOLLBOOK_KAFKA": kafka.bootstrap,
            "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix,
            "TOLLBOOK_DATABASE_URL": database_url,
            "TOLLBOOK_STRIPE_API": twin.url,
            "TOLLBOOK_STRIPE_KEY": twin.key,
        }
        self._workers: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run one command and return what it printed; it must end with `code`."""
        done = subprocess.run(
            self._command(*arguments), env=self._environ, capture_output=True, text=True, timeout=DONE_WITHIN_S,
            check=False,
        )  # fmt: skip
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """The JSON document that a command prints."""
        return json.loads(self(*arguments, "--json"))

    def worker(self, name: str) -> subprocess.Popen[str]:
        """Start a worker that ends when everything is applied. Small chunks: many moments to be killed at.

        With its name it has its place in the group again at once.
        """
        command = self._command("streams", "run", "--drain", "--chunk", "100", "--instance", name)
        worker = subprocess.Popen(
            command, env=self._environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._workers.append(worker)
        return worker

    def end_workers(self) -> None:
        """Kill what is left."""
        while self._workers:
            worker = self._workers.pop()
            worker.kill()
            worker.communicate()

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "console.main", *arguments]


@pytest.fixture
def tollbook(kafka: KafkaSettings, own_database_url: str, stripe_twin: StripeTwin) -> Iterator[Tollbook]:
    """The command line on an empty database, empty topics and an empty Stripe."""
    made = Tollbook(kafka, own_database_url, stripe_twin)
    yield made
    made.end_workers()


@pytest.mark.timeout(900)  # the whole line, once or twice over: minutes on a machine that does other things
@pytest.mark.parametrize("traffic", ["clean, twice", "dirty, with kills"])
def test_usage_and_bills_equal_the_outsiders_answers(
    traffic: str, tollbook: Tollbook, kafka: KafkaSettings, connection: psycopg.Connection, tmp_path: Path
) -> None:
    dirty = traffic == "dirty, with kills"
    register_everybody(tollbook, tmp_path)
    messages = send(tollbook, tmp_path, dirty)
    log = LogReader(kafka, USAGE.name(kafka.topic_prefix)).read()
    if dirty:
        kill_workers(tollbook, connection, log, messages)
    for worker in [tollbook.worker(name) for name in WORKERS]:
        output, _ = worker.communicate(timeout=DONE_WITHIN_S)
        assert worker.returncode == 0, output

    assert_usage(connection)
    assert_chunks_are_contiguous(connection, log)
    assert quarantine.counts(connection) == (REASONS if dirty else {})
    close_by_two(tollbook, MONTHS[0], NOW, waived="R9" if dirty else "")
    assert_bills(tollbook, MONTHS[0])
    tollbook("reconcile", "run", MONTHS[0])
    assert_usage_show(tollbook)
    if dirty:
        draw_up(tollbook, MONTHS[1], NOW, waived="R9")
        assert_amounts(tollbook, MONTHS[1])
    else:
        close_by_two(tollbook, MONTHS[1], NOW)
        assert_bills(tollbook, MONTHS[1])
        tollbook("reconcile", "run", MONTHS[1])
        assert_nothing_changes_when_everything_is_done_again(tollbook, tmp_path, connection)


def register_everybody(tollbook: Tollbook, tmp_path: Path) -> None:
    tenants, plan = tmp_path / "tenants.csv", tmp_path / "plan.yaml"
    tenants.write_text("tenant_id\n" + "\n".join(azure_hour.TENANTS) + "\n")
    plan.write_text(azure_hour.plan_text())
    tollbook("tenant", "import", str(tenants))
    tollbook("plan", "apply", str(plan))
    tollbook(
        "subscription", "start", "azure-hour", "--all", "--from", "2026-10-01", "--email", "billing@tenants.example"
    )


def send(tollbook: Tollbook, tmp_path: Path, dirty: bool) -> int:
    """Send the hour's lines as they are; returns how many."""
    file = tmp_path / "events.jsonl"
    lines = list(azure_hour.lines(dirty=dirty))
    file.write_text("\n".join(lines) + "\n")
    tollbook("events", "ingest", "--raw", str(file))
    return len(lines)


def kill_workers(tollbook: Tollbook, connection: psycopg.Connection, log: Log, messages: int) -> None:
    """Let two workers work and kill one or both of them at random moments, several times over."""
    seed = int(os.environ.get("TOLLBOOK_SEED") or 20261121)
    print(f"seed {seed}: TOLLBOOK_SEED={seed} repeats it")
    dice = random.Random(seed)
    sources.register(connection, log)
    workers = {name: tollbook.worker(name) for name in WORKERS}
    for threshold in sorted(dice.sample(range(1, messages), KILLS)):
        deadline = time.monotonic() + DONE_WITHIN_S
        while messages - sources.lag(connection, log) < threshold:
            for worker in workers.values():
                by_itself = worker.poll() is not None and sources.lag(connection, log) > 0
                assert not by_itself, f"the worker ended by itself: {worker.communicate()}"
            assert time.monotonic() < deadline, "the workers make no progress"
            time.sleep(dice.random() * 0.02)
        for name in dice.sample(WORKERS, dice.choice((1, 1, 2))):
            workers[name].kill()
            workers[name].wait()
            workers[name] = tollbook.worker(name)
    tollbook.end_workers()


def assert_usage(connection: psycopg.Connection) -> None:
    """Events and both windows hold exactly what the outsider counted."""
    expected: Usage = {}
    for month in MONTHS:
        for row in read_csv(f"expected_usage_{month}.csv"):
            sums = ("requests", "input_tokens", "cache_hit_tokens", "output_tokens")
            expected[month, row["tenant_id"], row["model"]] = tuple(int(row[name]) for name in sums)
    for table, time_column, requests in (
        ("events", "completed_at", "count(*)"),
        ("windows_1m", "bucket", "sum(requests)"),
        ("windows_1h", "bucket", "sum(requests)"),
    ):
        rows = connection.execute(
            f"select to_char({time_column}, 'YYYY-MM'), tenant_id, model, {requests}::int8, sum(input_tokens)::int8,"
            f" sum(cache_hit_tokens)::int8, sum(output_tokens)::int8 from usage.{table} group by 1, 2, 3"
        )
        assert {(row[0], row[1], row[2]): tuple(row[3:]) for row in rows} == expected


def assert_chunks_are_contiguous(connection: psycopg.Connection, log: Log) -> None:
    """The chunks of each partition follow one another from its beginning to its end."""
    chunks = defaultdict(list)
    for source, first, after, _ in passed_positions.runs(connection):
        chunks[source].append((first, after))
    for partition, end in log.ends.items():
        position = log.begins[partition]
        for first, after in chunks[sources.source_name(log.topic, partition)]:
            assert first == position
            position = after
        assert position == end


def assert_bills(tollbook: Tollbook, month: str) -> None:
    """Amounts are the outsider's; each one that is due is in Stripe."""
    found = assert_amounts(tollbook, month)
    for invoice in found:
        due = invoice["total"] + sum(row["amount"] for row in invoice["carried"])
        if due >= 50:
            assert (invoice["state"], bool(invoice["number"])) == ("finalized", True)
            assert invoice["stripe_invoice_id"].startswith("in_")
        else:
            assert invoice["state"] == ("carried_below_minimum" if due else "zero")
            assert (invoice["stripe_invoice_id"], bool(invoice["reason_not_in_stripe"])) == (None, True)
    numbers = [invoice["number"] for invoice in found if invoice["number"]]
    assert len(set(numbers)) == len(numbers)


def assert_amounts(tollbook: Tollbook, month: str) -> list[dict[str, Any]]:
    """Exact and rounded amounts equal the outsider's to the last unit; gives the invoices."""
    expected = {row["tenant_id"]: (Decimal(row["exact_usd"]), Decimal(row["usd"])) for row in
                read_csv(f"expected_bills_{month}.csv")}  # fmt: skip
    found = tollbook.json("invoice", "list", "--period", month)
    assert {i["tenant_id"]: (Decimal(i["exact_total"]), Decimal(i["total"]) / 100) for i in found} == expected
    for invoice in found:
        assert sum(line["amount"] for line in invoice["lines"]) == invoice["net"] == invoice["total"]
    listed: list[dict[str, Any]] = found
    return listed


def assert_usage_show(tollbook: Tollbook) -> None:
    """What a tenant is shown is what the outsider counted."""
    shown = tollbook.json("usage", "show", "tenant_003", "--period", "2026-10", "--by", "model")
    expected = [row for row in read_csv("expected_usage_2026-10.csv") if row["tenant_id"] == "tenant_003"]
    assert len(shown["rows"]) == len(expected)
    for row, answer in zip(shown["rows"], expected, strict=True):
        assert row["model"] == answer["model"]
        for name in ("requests", "input_tokens", "cache_hit_tokens", "output_tokens"):
            assert row[name] == int(answer[name])
            assert shown["total"][name] == sum(int(each[name]) for each in expected)


def assert_nothing_changes_when_everything_is_done_again(
    tollbook: Tollbook, tmp_path: Path, connection: psycopg.Connection
) -> None:
    """Register, send, apply and close a second time: the same invoices, the same books, no further entry."""
    before = [tollbook.json("invoice", "list", "--period", month) for month in MONTHS]
    books = tollbook("ledger", "trial-balance", "--json")
    counts = {
        table: count(connection, table) for table in ("usage.events", "ledger.journal_entries", "ledger.rated_lines")
    }
    register_everybody(tollbook, tmp_path)
    send(tollbook, tmp_path, dirty=False)
    worker = tollbook.worker(WORKERS[0])
    output, _ = worker.communicate(timeout=DONE_WITHIN_S)
    assert worker.returncode == 0, output
    for month in MONTHS:
        tollbook("close", "run", month, "--test", "--now", NOW)
        tollbook("reconcile", "run", month)
    assert_usage(connection)
    assert quarantine.counts(connection) == {}
    assert [tollbook.json("invoice", "list", "--period", month) for month in MONTHS] == before
    assert tollbook("ledger", "trial-balance", "--json") == books
    assert {table: count(connection, table) for table in counts} == counts


def count(connection: psycopg.Connection, table: str) -> int:
    row = connection.execute(f"select count(*) from {table}").fetchone()
    assert row is not None
    return int(row[0])


def read_csv(name: str) -> list[dict[str, str]]:
    with (EXPECTED / name).open(newline="") as lines:
        return list(csv.DictReader(lines))
