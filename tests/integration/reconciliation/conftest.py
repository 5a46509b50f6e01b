"""A small month that went the whole way, from Kafka to Stripe, and ways to tamper with each record of it."""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import stripe
from confluent_kafka import Producer

from billing.commands.close_month import MonthClosed
from billing.database import engine_for, raw, transaction
from billing.periods import BillingPeriod
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation.period import PeriodReport, reconcile_period
from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import USAGE, ensure_topics
from streams.completeness import number_store
from streams.ingest import sources
from streams.ingest.apply import ChunkApplier
from streams.ingest.logs import Log, LogReader
from streams.rules.chunks import Chunk
from tests.billing_builders import NOW, OCTOBER
from tests.builders import event_json, make_record
from tests.closing import bill_month
from tests.fixtures_services import Databases, delete_topics
from tests.fixtures_stripe_twin import StripeTwin
from tests.integration.billing.conftest import World

PARTITION = 0
IN_OCTOBER = "2026-10-31T10:00:30.25Z"


@dataclass
class Line(World):
    """The line from Kafka to Stripe on services of the test's own."""

    kafka: KafkaSettings
    gateway: StripeGateway
    twin: StripeTwin
    twin_data: Path

    @property
    def topic(self) -> str:
        """The usage topic."""
        return USAGE.name(self.kafka.topic_prefix)

    def log(self) -> Log:
        """The usage topic as the broker has it."""
        return LogReader(self.kafka, self.topic).read()

    def produce(self, *messages: bytes) -> None:
        """Put messages into one partition of the topic."""
        producer = Producer(self.kafka.client())
        for message in messages:
            producer.produce(self.topic, message, b"acme", partition=PARTITION)
        producer.flush()

    def send_events(self, *messages: bytes) -> None:
        """Send messages and apply them."""
        self.produce(*messages)
        self.apply(*messages)

    def apply(self, *messages: bytes) -> None:
        """Apply messages that are in the topic."""
        log = self.log()
        with transaction(self.engine) as opened:
            sources.register(raw(opened), log)
            state = sources.states(raw(opened), self.topic)[PARTITION]
        first = state.next_position
        records = [make_record(first + number, message) for number, message in enumerate(messages)]
        with closing(self.engine.raw_connection()) as borrowed:
            driver: Any = borrowed.driver_connection
            driver.autocommit = True
            ChunkApplier(driver).apply(Chunk(state.as_source(), records))
            driver.autocommit = False

    def close(self, period: BillingPeriod = OCTOBER) -> MonthClosed:
        """Rate, book, invoice."""
        return bill_month(self.engine, period=period, gateway=self.gateway, now=NOW, actor="ada")

    def reconcile(self, period: BillingPeriod = OCTOBER) -> PeriodReport:
        """Compare everything, as `reconcile run` does."""
        return reconcile_period(self.engine, period=period, now=NOW, gateway=self.gateway, log=self.log)

    def tamper(self, table: str, statement: str) -> None:
        """Change a table as its owner can, with its guards off; those of a hypertable can only be dropped."""
        guarded = not table.startswith(("usage.events", "usage.windows"))
        if table == "usage.events":
            guards = self.rows(
                "select tgname from pg_trigger where tgrelid = 'usage.events'::regclass and not tgisinternal"
                " and tgname not like 'ts\\_%'"
            )
            self.as_owner(*(f"drop trigger {guard} on usage.events" for (guard,) in guards))
        if guarded:
            self.as_owner(
                f"alter table {table} disable trigger user", statement, f"alter table {table} enable trigger user"
            )
        else:
            self.as_owner(statement)

    def tamper_stripe(self, kind: str, **changed: Any) -> None:
        """Change the account's first object of a kind in the twin's own file; `_deleted` removes it."""
        with closing(sqlite3.connect(self.twin_data / "twin.sqlite3", timeout=30)) as twin, twin:
            row = twin.execute(
                "select seq, body from objects where type = ? and deleted = 0 and account ="
                " (select account from objects where id = ?) order by seq",
                (kind, self.customer),
            ).fetchone()
            body = json.loads(row[1]) | changed
            twin.execute(
                "update objects set body = ?, deleted = ? where seq = ?",
                (json.dumps(body), int(changed.pop("_deleted", False)), row[0]),
            )

    @property
    def customer(self) -> str:
        """Our customer in Stripe."""
        return str(self.rows("select stripe_customer_id from ledger.stripe_customers")[0][0])

    @property
    def stripe(self) -> stripe.StripeClient:
        """The real SDK, as somebody else at the account would use it."""
        return self.twin.client()


def event(number: int, **changed: Any) -> bytes:
    """An event of October."""
    values: dict[str, Any] = {"tenant_id": "acme", "request_id": f"req-{number}", "timestamp": IN_OCTOBER}
    return event_json(**(values | {"output_tokens": 1000} | changed))


@contextmanager
def opened_line(url: str, kafka: KafkaSettings, twin: StripeTwin, twin_data: Path) -> Iterator[Line]:
    """October of one tenant with three requests and a bad message, none of it billed."""
    engine = engine_for(url)
    made = Line(engine, kafka, StripeGateway(StripeSettings(twin.key, twin.url)), twin, twin_data)
    made.customers("acme")
    made.send_events(event(1, replica_id="r1", boot_id="b1", seq=1), event(2), event(3), b"torn")
    with transaction(engine) as opened:
        number_store.fold(raw(opened), NOW)
    yield made
    engine.dispose()


@pytest.fixture
def open_line(
    own_database_url: str, kafka: KafkaSettings, stripe_twin: StripeTwin, stripe_twin_data: Path
) -> Iterator[Line]:
    """As `opened_line`."""
    with opened_line(own_database_url, kafka, stripe_twin, stripe_twin_data) as made:
        yield made


@pytest.fixture
def second_line(
    make_database: Databases, kafka: KafkaSettings, stripe_twin_url: str, stripe_twin_data: Path
) -> Iterator[Line]:
    """Another one that has seen the same, on a topic and in an account of Stripe's of its own."""
    settings = replace(kafka, topic_prefix=f"test-{secrets.token_hex(5)}")
    ensure_topics(settings)
    url = make_database()
    with opened_line(url, settings, StripeTwin(stripe_twin_url), stripe_twin_data) as made:
        yield made
    make_database.drop(url)
    delete_topics(settings)


@pytest.fixture
def line(open_line: Line) -> Line:
    """The same, billed: everything agrees."""
    assert open_line.close().problems == []
    return open_line


def found(report: PeriodReport) -> dict[str, list[str]]:
    """The keys of the differences by check; only checks that found one."""
    return {check.name: [each.key for each in check.differences] for check in report.checks if check.differences}
