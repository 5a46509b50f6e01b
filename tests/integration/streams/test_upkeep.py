"""Rounds of upkeep with the real database and Kafka: a step that fails keeps no other from being taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace

import psycopg
import pytest

from serving_adapter.settings import KafkaSettings
from streams import alerts
from streams.alerts import Alert
from streams.database import connect, is_passing
from streams.ingest.apply import ChunkApplier
from streams.retention import retention_store
from streams.settings import CompletenessSettings, DatabaseSettings, RetentionSettings
from streams.workers import upkeep as upkeep_module
from streams.workers.upkeep import Upkeep
from tests.builders import make_chunk, make_record, uuid_v7
from tests.simulation.line import wait_for

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


def drop_last_week(owner: psycopg.Connection) -> str:
    """Take the partition of the last of the coming weeks away; returns a query that says whether it is there."""
    retention_store.add_weeks(owner)  # the database's template may be of the week before
    (week,) = owner.execute("select to_char(date_trunc('week', current_date + 14), 'YYYYMMDD')").fetchone() or ("",)
    owner.execute(f"drop table usage.event_identities_{week}")
    return f"select to_regclass('usage.event_identities_{week}') is not null"


def test_partitions_of_coming_weeks_are_made_for_as_long_as_a_worker_runs(
    upkeep: Upkeep, owner: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upkeep.round()
    there = drop_last_week(owner)  # as if a week had gone by
    assert upkeep.round(at_once=True)
    assert owner.execute(there).fetchone() == (False,)
    an_hour_later = time.monotonic() + upkeep_module.WEEKS_AHEAD_EVERY_S
    monkeypatch.setattr(upkeep_module, "time", SimpleNamespace(monotonic=lambda: an_hour_later))
    assert upkeep.round(at_once=True)
    assert owner.execute(there).fetchone() == (True,)


def test_a_chunk_that_meets_the_new_partition_of_a_week_goes_through_the_second_time(
    applier: ChunkApplier, own_database_url: str, owner: psycopg.Connection
) -> None:
    """Its statement had begun when the ids of that week still went into the rest."""
    drop_last_week(owner)
    owner.execute(
        "create function public.hold() returns trigger language plpgsql as $$ begin"
        " perform pg_advisory_xact_lock_shared(7); return null; end $$"
    )
    owner.execute(
        "create trigger hold before insert on usage.event_identities for each statement execute function public.hold()"
    )
    owner.execute("select pg_advisory_lock(7)")
    (minted,) = owner.execute("select date_trunc('week', current_date + 14)").fetchone() or (None,)
    assert minted is not None
    chunk = make_chunk(make_record(0, request_id=uuid_v7(minted + timedelta(hours=12))))
    with ThreadPoolExecutor(1) as thread, connect(own_database_url) as other:
        applied = thread.submit(applier.apply, chunk)
        try:
            wait_for(lambda: _waits_for_a_lock(owner), "the chunk's statement has begun")
            retention_store.add_weeks(other)
        finally:
            owner.execute("select pg_advisory_unlock(7)")
        with pytest.raises(psycopg.errors.CheckViolation) as raised:
            applied.result()
    assert is_passing(raised.value)
    assert applier.apply(chunk).applied == 1


def _waits_for_a_lock(owner: psycopg.Connection) -> bool:
    waiting = "select from pg_stat_activity where datname = current_database() and wait_event = 'advisory'"
    return owner.execute(waiting).fetchone() is not None


def test_a_long_reader_of_identities_stops_no_chunk_when_the_partition_of_a_week_is_due(
    upkeep: Upkeep, applier: ChunkApplier, kafka: KafkaSettings, own_database_url: str, owner: psycopg.Connection
) -> None:
    there = drop_last_week(owner)
    with connect(own_database_url, autocommit=False) as reader, ThreadPoolExecutor(1) as thread:
        reader.execute("set idle_in_transaction_session_timeout = 0")  # it stays as long as it takes
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
