"""Faults on the real parts while requests come: the database away and back, a period's end, usage that comes late."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from streams.database import connect
from streams.quotas import definition_store
from streams.quotas.calendar import Anchor
from streams.quotas.definition_store import DatedAnchor
from tests.fixtures_quota_server import QuotaServerProcess
from tests.integration.streams.quotas.driver import Driver, Usage, add_tenants, define

Start = Callable[..., QuotaServerProcess]
LIMIT = 100_000


@pytest.fixture
def usage(connection: psycopg.Connection) -> Usage:
    add_tenants(connection, "t1")
    return Usage(connection)


class Load:
    """Threads that ask, one request after another, and what they were answered."""

    def __init__(self, server: QuotaServerProcess, threads: int = 3) -> None:
        self.admitted: dict[str, int] = {}
        self.resets: dict[str, datetime] = {}
        self.statuses: set[int] = set()
        self.longest = 0.0
        self._server = server
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(threads)]

    def _ask(self, thread: int) -> None:
        number = 0
        while not self._ends.is_set():
            name = f"load-{thread}-{number}"
            number += 1
            began = time.monotonic()
            try:
                reply = self._server.ask(name, max_tokens=16)
            except (OSError, http.client.HTTPException):
                self.statuses.add(0)
                continue
            self.longest = max(self.longest, time.monotonic() - began)
            self.statuses.add(reply.status)
            if reply.status == 200:
                self.admitted[name] = reply.body["max_tokens"]
                self.resets[name] = datetime.fromisoformat(reply.body["quotas"][0]["resets_at"])

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            for thread in self._threads:
                thread.join()

    def until(self, what: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, f"it did not happen: {self.statuses}"
            time.sleep(0.02)


@contextmanager
def database_away(server_url: str, url: str) -> Iterator[None]:
    """As while its server restarts: every connection is cut, none can be made."""
    name = url.partition("?")[0].rsplit("/", 1)[1]
    with psycopg.connect(server_url, autocommit=True) as admin:
        admin.execute(f'alter database "{name}" with allow_connections false')
        # Workers of the server itself (TimescaleDB's among them) are a superuser's, and not to be ended by its owner.
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = %s and backend_type = 'client backend'",
            (name,),
        )
        try:
            yield
        finally:
            admin.execute(f'alter database "{name}" with allow_connections true')


def test_a_restart_of_the_database_under_load_costs_answers_but_forgets_none(
    quota_server: Start, usage: Usage, connection: psycopg.Connection, server_url: str, own_database_url: str
) -> None:
    define(connection, limit=LIMIT)
    server = quota_server()
    load = Load(server)
    with load.running():
        load.until(lambda: len(load.admitted) > 20)
        with database_away(server_url, own_database_url):
            load.until(lambda: 503 in load.statuses)
            time.sleep(1.0)
        before = len(load.admitted)
        load.until(lambda: len(load.admitted) > before + 20)
    assert load.statuses <= {200, 503}
    assert server.process.poll() is None
    assert sum(load.admitted.values()) <= server.quota()["reserved"] <= LIMIT
    server.kill()
    assert sum(load.admitted.values()) <= quota_server().quota()["reserved"] <= LIMIT


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
    assert driver.shard.counters.findings >= len(names)
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
    server.process.wait(20)
    assert server.process.returncode not in (0, None)
