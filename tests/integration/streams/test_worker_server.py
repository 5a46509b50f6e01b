"""`/healthz`, `/readyz` and `/metrics` of a running worker, by either reader."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import psycopg
import pytest

from serving_adapter.settings import KafkaSettings
from streams.workers.busiest_tenants import NAMED_AT_MOST, OTHERS
from tests.integration.streams.conftest import BOTH_READERS
from tests.simulation.line import Line, wait_for

Ask = Callable[[str], tuple[int, str]]


@pytest.fixture
def ask(line: Line, kafka: KafkaSettings, reader: str) -> Iterator[Ask]:
    """A running `tollbook streams run --listen`; asks it for a path."""
    environ = os.environ | {"TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix, "TOLLBOOK_DATABASE_URL": line.database_url}
    command = [sys.executable, "-m", "console.main", "streams", "run", "--reader", reader, "--listen", "127.0.0.1:0"]
    worker = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert worker.stdout is not None
    ready, _, _ = select.select([worker.stdout], [], [], 60)
    said = worker.stdout.readline() if ready else ""
    found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
    assert found, said

    def get(path: str) -> tuple[int, str]:
        with closing(http.client.HTTPConnection("127.0.0.1", int(found.group(1)), timeout=60)) as connection:
            connection.request("GET", path)
            reply = connection.getresponse()
            return reply.status, reply.read().decode()

    yield get
    worker.terminate()
    worker.communicate(timeout=60)
    assert worker.returncode in (0, 1)  # 1: a partition stands still


def value_of(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels."""
    found = re.findall(rf"^tollbook_streams_{name}(?:{{(.*)}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for has, value in found if all(f'{n}="{v}"' in has for n, v in labels.items()))


@BOTH_READERS
def test_a_worker_tells_what_it_does(line: Line, ask: Ask) -> None:
    line.send(300)
    line.wait_for_positions(line.traffic.expected.messages)
    wait_for(lambda: ask("/readyz")[0] == 200, "the worker is ready")
    assert ask("/healthz") == (200, '{"healthy":true,"reason":""}')
    assert len(json.loads(ask("/readyz")[1])["assigned"]) == 9
    wait_for(lambda: "_lag{" in ask("/metrics")[1], "both ends of the lag were read")
    wait_for(lambda: value_of(ask("/metrics")[1], "lag") == 0, "the lag is seen to be 0")
    text = ask("/metrics")[1]
    done = line.connection.execute(
        "select sum(applied)::int8, sum(duplicates)::int8, sum(retimed)::int8, sum(quarantined)::int8, sum(late)::int8,"
        " count(*) from usage.applied_chunks where starts_with(source, 'kafka:')"
    ).fetchone()
    outcomes = [value_of(text, "messages_total", outcome=outcome) for outcome in ("applied", "duplicates")]
    counted = [value_of(text, f"{name}_total") for name in ("retimed", "quarantined", "late_events", "commits")]
    assert (*outcomes, *counted) == done
    assert value_of(text, "chunk_seconds_count") == done[-1]
    assert value_of(text, "quarantined_total", reason="conflict") == line.traffic.expected.quarantine["conflict"]
    tenants = re.findall(r'tenant_messages_total{tenant="(.*)"}', text)
    assert len(tenants) == NAMED_AT_MOST + 1
    assert OTHERS in tenants


def test_open_gaps_are_told_upkeep_that_fails_is_counted_and_usage_goes_on(
    line: Line, ask: Ask, owner: psycopg.Connection
) -> None:
    wait_for(lambda: ask("/readyz")[0] == 200, "the worker is ready")
    wait_for(lambda: value_of(ask("/metrics")[1], "open_gaps") == 0, "there is no gap")
    owner.execute(
        "insert into usage.gaps (replica_id, boot_id, first_number, last_number, missing, since, closed_at) values"
        " ('r', 'b', 2, 4, 3, now(), null), ('r', 'b', 8, 8, 1, now(), null), ('r', 'b', 6, 6, 0, now(), now())"
    )
    wait_for(lambda: value_of(ask("/metrics")[1], "open_gaps") == 2, "the gaps that are open are told")
    before = value_of(ask("/metrics")[1], "upkeep_failures_total")
    owner.execute("alter table usage.completeness_watch rename to not_there")
    wait_for(lambda: value_of(ask("/metrics")[1], "upkeep_failures_total") > before + 1, "failures are counted")
    line.send(20)
    line.wait_for_positions(line.traffic.expected.messages)


def test_a_stopped_partition_makes_a_worker_unready_and_is_named(line: Line, ask: Ask) -> None:
    wait_for(lambda: ask("/readyz")[0] == 200, "the worker is ready")
    line.connection.execute(
        "update usage.sources set topic_id = 'another' where starts_with(source, %s)", (f"kafka:{line.topic}/",)
    )
    line.send(100)
    wait_for(lambda: ask("/readyz")[0] == 503, "the worker is not ready")
    stopped = json.loads(ask("/readyz")[1])["stopped"]
    assert all(name.startswith(f"{line.topic}/") and "the topic was" in why for name, why in stopped.items())
    assert ask("/healthz")[0] == 200
    assert value_of(ask("/metrics")[1], "stopped_partitions") >= 1
