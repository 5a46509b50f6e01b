"""`adapter scrape` on a running engine, through Kafka, to `streams status` and `reconcile run`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from serving_adapter import replica_reports
from serving_adapter.producer import EventProducer
from serving_adapter.replica_reports import Farewell, Heartbeat, Report
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams.completeness.completeness_check import CompletenessCheck
from streams.database import connect
from streams.settings import CompletenessSettings
from tests.builders import event_json
from tests.fake_engine import FakeEngine, FakeServer, serving
from tests.integration.console.conftest import Run
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """These replicas beat once at most, and this machine may be busy."""
    monkeypatch.setenv("TOLLBOOK_REPLICA_SILENT_AFTER_S", "3600")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with serving(FakeEngine(started=time.time() - 60)) as started:
        yield started


class Replica:
    """A replica that tells Kafka what it did."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._usage = EventProducer(kafka, USAGE.name(kafka.topic_prefix))
        self._reports = EventProducer(kafka, REPLICAS.name(kafka.topic_prefix))

    def event(self, seq: int, boot: str = "b1", **changed: Any) -> None:
        now = datetime.now(UTC).isoformat()
        numbered = {"replica_id": "r1", "boot_id": boot, "seq": seq, "request_id": f"{boot}-{seq}", "timestamp": now}
        self._usage.send(b"tenant_1", event_json(**(numbered | changed)))
        self._usage.flush()

    def report(self, report: Report) -> None:
        replica_reports.send(self._reports, report)
        self._reports.flush()

    def heartbeat(self, at: datetime, ended: int) -> None:
        self.report(Heartbeat(replica_id="r1", boot_id="b1", at=at.isoformat(), last_seq=ended, started=ended,
                              ended=ended, open=0))  # fmt: skip


def status(run: Run, url: str) -> dict[str, Any]:
    """Apply what is in Kafka, check once as a worker does each second, and read the status."""
    assert run("streams", "run", "--drain").returncode == 0
    with connect(url) as connection:
        CompletenessCheck(connection, CompletenessSettings.from_environment()).run()
    told: dict[str, Any] = json.loads(run("streams", "status", "--json").stdout)["engines"]
    return told


def standing(told: dict[str, Any]) -> dict[str, str]:
    return {boot["boot_id"]: boot["standing"] for boot in told["boots"]}


def test_engine_and_events_are_equal_until_the_engine_counts_a_token_that_no_event_has(
    run: Run, kafka: KafkaSettings, server: FakeServer, own_database_url: str
) -> None:
    run("tenant", "add", "tenant_1")
    engine, replica = server.engine, Replica(kafka)
    assert engine is not None
    begun = datetime.now(UTC)
    for seq in (1, 2):
        engine.serve(30, 15, 4)
        replica.event(seq, engine_input_tokens=30, engine_output_tokens=15)
    replica.heartbeat(begun.replace(microsecond=0), ended=2)
    time.sleep(1.1)  # a scrape counts from a second after the last work
    done = run("adapter", "scrape", "--url", server.url, "--replica", "r1", "--once", "--json")
    assert json.loads(done.stdout)["models"][0]["finished"]["stop"] == 2
    told = status(run, own_database_url)
    assert (told["witnesses"].startswith("two witnesses: events, engine counters"), standing(told)) == (
        True,
        {"b1": "equal"},
    )
    engine.serve(1, 1)
    run("adapter", "scrape", "--url", server.url, "--replica", "r1", "--once")
    replica.report(Farewell(replica_id="r1", boot_id="b1", at=begun.isoformat(), last_seq=2, started=2, ended=2))
    told = status(run, own_database_url)
    assert standing(told) == {"b1": "differs"}
    assert told["boots"][0]["difference"] == {"prompt_tokens": 1, "generation_tokens": 1, "cached_tokens": 0}
    shown = run("streams", "status").stdout
    assert "two witnesses: events, engine counters" in shown
    assert "differs" in shown
    period = f"{begun:%Y-%m}"
    reconciled = run("reconcile", "run", period, "--no-stripe", "--json")
    assert reconciled.returncode == 1
    checks = {check["name"]: check for check in json.loads(reconciled.stdout)["checks"]}
    keys = [found["key"] for found in checks["engines counted what events say"]["differences"]]
    assert keys == ["r1/b1/llama/prompt_tokens", "r1/b1/llama/generation_tokens"]
    assert checks["requests have ended"]["agrees"]


def test_without_a_scrape_status_and_reconciliation_say_so(run: Run) -> None:
    told = "two witnesses, not independent"
    assert told in run("streams", "status").stdout
    assert (
        told in json.loads(run("reconcile", "run", "2026-10", "--no-stripe", "--json").stdout)["engines"]["witnesses"]
    )


def test_the_process_follows_a_restart_and_ends_on_sigterm_with_a_last_scrape(
    run: Run, kafka: KafkaSettings, server: FakeServer, own_database_url: str
) -> None:
    run("tenant", "add", "tenant_1")
    assert server.engine is not None
    server.engine.serve(10, 5, 4)
    command = [sys.executable, "-m", "console.main", "adapter", "scrape", "--url", server.url, "--replica", "r1",
               "--interval", "1"]  # fmt: skip
    environ = os.environ | {"TOLLBOOK_KAFKA": kafka.bootstrap, "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: server.scrapes >= 2, "two scrapes")
        server.engine = FakeEngine(started=time.time(), boot="b2")
        seen = server.scrapes
        wait_for(lambda: server.scrapes >= seen + 2, "two more scrapes")
        server.engine.serve(20, 10, 8)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (0, "")
    replica = Replica(kafka)
    replica.event(1)
    replica.event(1, boot="b2")
    replica.event(2, boot="b2")
    assert standing(status(run, own_database_url)) == {"b1": "equal", "b2": "equal"}


@pytest.mark.parametrize("wrong", [("--url", "ftp://x"), ("--url", "http://h", "--interval", "0"),
                                   ("--url", "http://h", "--json")])  # fmt: skip
def test_wrong_use_is_told(run: Run, wrong: tuple[str, ...]) -> None:
    assert run("adapter", "scrape", "--replica", "r1", *wrong).returncode == 2


def test_an_engine_that_is_not_there_is_one_line(run: Run) -> None:
    done = run("adapter", "scrape", "--url", "http://127.0.0.1:9/metrics", "--replica", "r1", "--once")
    assert done.returncode == 1
    assert done.stderr.startswith("tollbook: http://127.0.0.1:9/metrics cannot be read")
