"""The real services: a database and a topic prefix of its own for each test that asks.

`make test` starts Kafka and TimescaleDB and names them in the environment; `make up` does the same for a run of
pytest by hand.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import psycopg
import pytest
from confluent_kafka import KafkaException
from sqlalchemy import Engine, event

from serving_adapter.kafka_client import admin_client
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import TOPICS, ensure_topics
from streams.database import connect
from streams.schema import upgrade

NOT_RUNNING = "needs the local services: run `make test`, or `make up` and then `eval $(.venv/bin/tollbook dev env)`"


@pytest.fixture(scope="session")
def server_url() -> str:
    """The database server's URL, from the environment."""
    url = os.environ.get("TOLLBOOK_DATABASE_URL", "")
    if not url:
        pytest.fail(NOT_RUNNING)
    return url


@pytest.fixture(scope="session")
def make_database(server_url: str) -> Iterator[Databases]:
    """Makes migrated databases and drops them at the end."""
    made = Databases(server_url)
    yield made
    made.drop_all()


@pytest.fixture(scope="session")
def shared_database_url(make_database: Databases) -> str:
    """One migrated database for all tests of this worker process that keep out of each other's way in it."""
    return make_database()


@pytest.fixture
def own_database_url(make_database: Databases) -> Iterator[str]:
    """A migrated database that nobody else uses."""
    url = make_database()
    yield url
    make_database.drop(url)


@pytest.fixture
def connection(own_database_url: str) -> Iterator[psycopg.Connection]:
    """An autocommit connection to an empty database, which a busy machine may keep waiting in mid-transaction."""
    with connect(own_database_url) as opened:
        opened.execute("set idle_in_transaction_session_timeout = 0")
        yield opened


@pytest.fixture
def owner(own_database_url: str) -> Iterator[psycopg.Connection]:
    """A connection to the same database as the tables' owner, who may do more than the application."""
    with connect(own_database_url, as_login=True) as opened:
        yield opened


@pytest.fixture
def kafka() -> Iterator[KafkaSettings]:
    """Kafka with topics of this test's own, under a prefix, deleted at its end."""
    bootstrap = os.environ.get("TOLLBOOK_KAFKA", "")
    if not bootstrap:
        pytest.fail(NOT_RUNNING)
    settings = KafkaSettings(bootstrap, topic_prefix=f"test-{secrets.token_hex(5)}")
    ensure_topics(settings)
    yield settings
    delete_topics(settings)


def delete_topics(kafka: KafkaSettings) -> None:
    """Delete the topics under a prefix; one that a test has deleted is gone already."""
    admin = admin_client(kafka)  # held: its futures are never done once it is gone
    for deleted in admin.delete_topics([topic.name(kafka.topic_prefix) for topic in TOPICS]).values():
        with contextlib.suppress(KafkaException):
            deleted.result()


DROP_TIMES: Final = 20


class Databases:
    """Creates migrated databases, copies of one that is migrated once; drops them beside what goes on."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._names: list[str] = []
        self._dropping = ThreadPoolExecutor(1, thread_name_prefix="drop")
        self._template: str | None = None

    def __call__(self) -> str:
        """A new migrated database's URL."""
        if self._template is None:
            self._template = self._make_template()
        # Of the ways to copy the one that leaves least to write when the copy is dropped
        return self._create(f'template "{self._template}" strategy file_copy')

    def without_schema(self) -> str:
        """A new database's URL, without any schema."""
        return self._create("")

    def drop(self, url: str) -> None:
        """Have a database removed that is needed no more; dropping takes longer than most tests."""
        name = url.partition("?")[0].rpartition("/")[2]
        self._names.remove(name)
        self._dropping.submit(self._drop, name)

    def drop_all(self) -> None:
        """Remove what was made."""
        for name in reversed(self._names):
            self._dropping.submit(self._drop, name)
        self._names.clear()
        self._dropping.shutdown()

    def _drop(self, name: str) -> None:
        with psycopg.connect(self._server_url, autocommit=True) as server:
            for _ in range(DROP_TIMES):
                try:
                    server.execute(f'drop database if exists "{name}" with (force)')
                    return
                except psycopg.errors.InsufficientPrivilege:  # a vacuum is in it, which only a superuser may end
                    time.sleep(0.5)

    def _make_template(self) -> str:
        """A migrated database that nobody else ever enters: a copy can only be made of one that is empty.

        TimescaleDB's worker goes into each database that has the extension and lets it in, belongs to the superuser,
        and cannot be told to leave: the door is shut once the migration is inside.
        """
        url = self.without_schema()
        name = self._names[-1]

        def shut(*_: object) -> None:
            with psycopg.connect(self._server_url, autocommit=True) as server:
                server.execute(f'alter database "{name}" with allow_connections false')

        event.listen(Engine, "connect", shut)
        try:
            upgrade(url)
        finally:
            event.remove(Engine, "connect", shut)
        return name

    def _create(self, like: str) -> str:
        name = f"tollbook_test_{secrets.token_hex(6)}"
        with psycopg.connect(self._server_url, autocommit=True) as server:
            server.execute(f'create database "{name}" {like}')
        self._names.append(name)
        head, _, options = self._server_url.partition("?")
        return f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{options}" if options else "")
