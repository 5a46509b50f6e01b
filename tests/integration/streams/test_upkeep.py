"""Rounds of upkeep with the real database and Kafka: a step that fails keeps no other from being taken."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count

import psycopg
import pytest

from serving_adapter.settings import KafkaSettings
from streams import alerts
from streams.alerts import Alert
from streams.database import connect
from streams.ingest.apply import ChunkApplier
from streams.settings import CompletenessSettings, DatabaseSettings, RetentionSettings
from streams.workers.upkeep import Upkeep
from tests.builders import make_chunk, make_record

HORIZON = timedelta(days=50)
UNDELIVERED = "select key from usage.alerts where delivered_at is null"


@pytest.fixture
def upkeep(kafka: KafkaSettings, own_database_url: str) -> Iterator[Upkeep]:
    made = make_upkeep(kafka, own_database_url)
    yield made
    made.close()


def make_upkeep(kafka: KafkaSettings, database_url: str) -> Upkeep:
    """One that also sets the horizon, by which it is seen that it comes to letting go."""
    retention = replace(RetentionSettings.from_environment(), horizon=HORIZON)
    return Upkeep(kafka, DatabaseSettings(database_url), CompletenessSettings(), lambda _: None, retention)


def test_an_alert_about_a_message_of_a_megabyte_holds_back_no_other(
    upkeep: Upkeep, connection: psycopg.Connection
) -> None:
    now = datetime.now(UTC)
    large = Alert("quarantine", "tenant_1", {}, "\x7f" * 3_000_000, now)
    alerts.raise_all(connection, [large, Alert("gap", "r1", {}, "5 is missing", now)])
    assert upkeep.round()
    assert connection.execute(UNDELIVERED).fetchall() == []


def test_what_is_old_is_let_go_of_while_alerts_cannot_be_delivered(
    kafka: KafkaSettings, own_database_url: str, connection: psycopg.Connection
) -> None:
    upkeep = make_upkeep(replace(kafka, topic_prefix="there-is-no-such-topic"), own_database_url)
    alerts.raise_all(connection, [Alert("gap", "r1", {}, "5 is missing", datetime.now(UTC))])
    assert not upkeep.round()
    assert connection.execute(UNDELIVERED).fetchall() == [("r1",)]
    assert connection.execute("select horizon from usage.ingest_rules").fetchone() == (HORIZON,)
    assert upkeep.signs.failures == 1
    upkeep.close()


def test_a_long_reader_of_identities_stops_no_chunk_when_the_partition_of_a_week_is_due(
    upkeep: Upkeep, applier: ChunkApplier, kafka: KafkaSettings, own_database_url: str, owner: psycopg.Connection
) -> None:
    (week,) = owner.execute("select to_char(date_trunc('week', current_date + 14), 'YYYYMMDD')").fetchone() or ("",)
    name = f"usage.event_identities_{week}"
    there = f"select to_regclass('{name}') is not null"
    owner.execute(f"drop table {name}")
    with connect(own_database_url, autocommit=False) as reader, ThreadPoolExecutor(1) as thread:
        reader.execute("select count(*) from usage.event_identities")
        made = thread.submit(upkeep.round)
        for position in count():
            applier.apply(make_chunk(make_record(position)))
            if made.done():
                break
        assert made.result(), "a lock that is not to be had now is no failure"
        assert owner.execute(there).fetchone() == (False,)
    later = make_upkeep(kafka, own_database_url)
    assert later.round()
    assert owner.execute(there).fetchone() == (True,)
    later.close()
