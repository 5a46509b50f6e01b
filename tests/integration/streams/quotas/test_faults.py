"""Faults on the real parts while requests come: workers that stand still, clocks that step, a period's end, late usage.

PostgreSQL killed and restarted: ../test_outages.py; kill -9 of the service: test_server.py.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from psycopg import sql

from serving_adapter.producer import EventProducer
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE
from streams.database import connect
from streams.quotas import definition_store
from streams.quotas.calendar import Anchor
from streams.quotas.definition_store import DatedAnchor
from tests.fixtures_quota_server import QuotaReply, QuotaServerProcess
from tests.integration.streams.quotas.driver import Driver, Usage, add_tenants, define
from tests.integration.streams.quotas.load import Load
from tests.simulation.line import Line, wait_for

Start = Callable[..., QuotaServerProcess]
LIMIT = 100_000
NUMBERS = ("confirmed", "unconfirmed", "reserved", "unreserved")


@pytest.fixture
def usage(connection: psycopg.Connection) -> Usage:
    add_tenants(connection, "t1")
    return Usage(connection)


def test_workers_that_stand_still_neither_open_a_hard_budget_nor_close_it(
    quota_server: Start, connection: psycopg.Connection, own_database_url: str, kafka: KafkaSettings
) -> None:
    """Kafka's lag, longer than metering may lag: that is a second here, so that the test is short. The worker is killed
    and started again only later, events wait; the service is killed meanwhile, and knows of each by its journal."""
    add_tenants(connection, "t1")
    define(connection, limit=2000)
    producer = EventProducer(kafka, USAGE.name(kafka.topic_prefix))

    def happens(request_id: str, output: int) -> None:
        event = {"tenant_id": "t1", "request_id": request_id, "model": "m-1", "input_tokens": 10,
                 "output_tokens": output, "timestamp": datetime.now(UTC).isoformat()}  # fmt: skip
        producer.send(b"t1", json.dumps(event).encode())

    def use_all(server: QuotaServerProcess, first: int) -> int:
        """Requests of 40 tokens until one is refused; how many."""
        for number in itertools.count(first):
            reply = server.ask(f"r{number}")
            if reply.status != 200:
                assert (reply.status, reply.body["because"]) == (429, "in_flight")
                return number
            output = min(40, reply.body["max_tokens"])
            assert server.settle(f"r{number}", output).status == 204
            happens(f"r{number}", output)
        raise AssertionError("counted to the end")

    with Line(kafka, own_database_url, 20261122) as line:
        line.reader = "bare"
        worker = line.worker(None)
        server = quota_server("--metering-lag", "1")
        happens("before", 20)
        producer.flush()
        wait_for(lambda: server.quota()["confirmed"] == 20, "usage is counted", worker)
        worker.kill()
        worker.wait()
        assert server.ask("vanishes").body["max_tokens"] == 100  # of which 40 are used, and nobody settles it
        happens("vanishes", 40)
        asked = use_all(server, 0)
        assert asked == (2000 - 20 - 100) // 40
        producer.flush()
        time.sleep(2.5)
        server.kill()
        server = quota_server("--metering-lag", "1")
        assert use_all(server, asked) == asked, "what is left may still be used by the one that vanished"
        standing = server.quota()
        assert [standing[name] for name in NUMBERS] == [20, 40 * asked, 100, 20]
        worker = line.worker(None)
        wait_for(lambda: server.quota()["confirmed"] == 60 + 40 * asked, "all of it is counted", worker)
        standing = server.quota()
        assert [standing[name] for name in NUMBERS[1:]] == [0, 0, 20]
        last = server.ask("last")
        assert (last.status, last.body["max_tokens"]) == (200, 2000 - 60 - 40 * asked)


def test_a_clock_that_steps_ends_nothing_early_and_holds_nobody_up(
    quota_server: Start, usage: Usage, connection: psycopg.Connection, owner: psycopg.Connection
) -> None:
    """The clock that counts is the database's: in this one `clock_timestamp()` is shifted, by half an hour forwards,
    which is twice as long as a request may run, then by as much backwards."""
    define(connection, limit=LIMIT)
    define(connection, period="second", metric="requests", limit=20)
    shift_clock(owner, timedelta(0))
    server = quota_server()
    load = Load(server, threads=2)

    def at(reply: QuotaReply) -> datetime:
        return datetime.fromisoformat(reply.body["expires_at"])

    def stepped(by: timedelta, at_least: datetime) -> None:
        """Requests go on, with the new time."""
        shift_clock(owner, by)
        load.until(lambda: (reply := server.ask(f"at-{time.monotonic_ns()}")).status == 200 and at(reply) > at_least)
        before = len(load.admitted)
        load.until(lambda: len(load.admitted) > before + 10)

    with load.running():
        load.until(lambda: len(load.admitted) > 5)
        load.until(lambda: server.ask("first", max_tokens=500).status == 200)
        first = datetime.now(UTC) + timedelta(seconds=960)
        stepped(timedelta(minutes=30), first + timedelta(minutes=29))
        stepped(timedelta(0), first + timedelta(minutes=29))
    assert load.statuses <= {200, 429, 503}
    assert sum(load.admitted.values()) + 500 <= server.quota()["reserved"] <= LIMIT
    assert "tollbook_quota_expired_total 0" in server.request("GET", "/metrics").body
    server.kill()
    standing = quota_server().quota()
    assert sum(load.admitted.values()) + 500 <= standing["reserved"] + standing["leased"] <= LIMIT


def shift_clock(owner: psycopg.Connection, by: timedelta) -> None:
    """From now on `clock_timestamp()` is shifted, also in sessions that are open; those that begin look here first."""
    owner.execute("create schema if not exists shifted")
    owner.execute(
        "create or replace function shifted.clock_timestamp() returns timestamptz language sql volatile as"
        f" $$ select pg_catalog.clock_timestamp() + interval '{by.total_seconds()} s' $$"
    )
    owner.execute("grant usage on schema shifted to public")
    owner.execute(
        sql.SQL("alter database {} set search_path = shifted, pg_catalog, public").format(
            sql.Identifier(owner.info.dbname)
        )
    )


def test_a_period_ends_under_load_at_its_instant_with_all_that_is_in_flight(
    quota_server: Start, usage: Usage, connection: psycopg.Connection
) -> None:
    usage.happens("before", output=900)
    define(connection, period="billing_period", limit=1000)
    server = quota_server()
    ends_at = datetime.now(UTC) + timedelta(seconds=4)
    anchor = DatedAnchor(Anchor(ends_at, 1), ends_at - timedelta(days=40))
    definition_store.set_anchors(connection, [("t1", anchor)])
    load = Load(server, threads=2)
    load.until(lambda: datetime.fromisoformat(server.quota("billing_period-output_tokens")["resets_at"]) >= ends_at)
    with load.running():
        load.until(lambda: sum(load.admitted.values()) > 900)  # in the new period: in the old one 100 are left
    in_the_old = [name for name, resets_at in load.resets.items() if resets_at == ends_at]
    assert sum(load.admitted[name] for name in in_the_old) <= 100
    standing = server.quota("billing_period-output_tokens")
    assert standing["used"] == 0
    assert standing["reserved"] == sum(load.admitted.values()) <= 1000
    assert datetime.fromisoformat(standing["resets_at"]) > ends_at + timedelta(days=27)


def test_usage_that_is_metered_a_minute_late_counts_once_all_along(
    connection: psycopg.Connection, own_database_url: str, usage: Usage
) -> None:
    """The minute is played: deadlines are looked at as if it had passed."""
    define(connection, limit=LIMIT)
    driver = Driver(own_database_url)
    names = [f"r{number}" for number in range(20)]
    for name in names:
        driver.ask(name, 100)
        driver.settle(name, 40)
    assert driver.budget() == (0, 800, 0)
    for second in range(0, 100, 5):
        driver.shard.tend(driver.now + second * 1_000_000)
        driver.look()
        assert driver.budget() == (0, 800, 0)
    assert driver.shard.counters.findings == len(names)
    driver.write()
    told = connection.execute("select key from usage.alerts where kind = 'quota_unconfirmed'").fetchall()
    assert 1 <= len(told) <= 2, "of the tenant, in an hour"
    driver.crash()
    again = Driver(own_database_url)
    again.ask("another", 16)
    assert again.budget() == (0, 800, 16)
    usage.happens(*names[:10], output=40)
    again.look()
    assert again.budget() == (400, 400, 16)
    usage.happens(*names[10:], output=40)
    again.look()
    assert again.budget() == (800, 0, 16)
    assert again.shard.counters.unreserved == 0


def test_a_service_that_can_find_out_nothing_more_ends_and_says_why(
    connection: psycopg.Connection, usage: Usage, own_database_url: str, quota_server: Start
) -> None:
    define(connection)
    server = quota_server()
    assert server.ask("r1").status == 200
    with connect(own_database_url, as_login=True) as owner:
        owner.execute("alter table usage.tenant_tiers rename to gone")
    assert server.process.wait(60) != 0
