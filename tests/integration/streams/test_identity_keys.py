"""The key of an identity is the same in Python and in SQL, and tells identities apart."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving_adapter.identity import Identity
from streams.rules.identity_keys import identity_key
from tests.benchmarks.traffic import uuid7_text

MINTED = int(datetime(2026, 11, 6, tzinfo=UTC).timestamp() * 1000)
INSERT = (
    "insert into usage.event_identities (key, completed_at, position, source_no, usage_source, content_digest)"
    " values (usage.identity_key('t', %s, 1, 'usage', 0), now(), 0, 1, 'engine', '')"
)
uuid7 = st.builds(uuid7_text, st.integers(0, 2**48 - 1), st.integers(0, 4095), st.integers(0, 2**72 - 1))
text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=60)
identities = st.builds(
    Identity,
    tenant_id=text,
    request_id=uuid7 | uuid7.map(str.upper) | st.uuids(version=4).map(str) | text,
    attempt=st.integers(1, 2**31 - 1),
    kind=st.sampled_from(["usage", "correction"]),
    correction_no=st.integers(0, 2**31 - 1),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(identity=identities)
def test_sql_and_python_agree(shared: psycopg.Connection, identity: Identity) -> None:
    row = shared.execute("select usage.identity_key(%s, %s, %s, %s, %s)", tuple(identity)).fetchone()
    assert row == (uuid.UUID(bytes=identity_key(identity)),)


@given(one=identities, other=identities)
def test_other_identities_have_other_keys(one: Identity, other: Identity) -> None:
    assert (identity_key(one) == identity_key(other)) == (one == other)


@given(milliseconds=st.integers(0, 2**47 - 2), bits=st.integers(0, 2**72 - 1))
def test_keys_of_uuid7_come_in_order_of_time(milliseconds: int, bits: int) -> None:
    earlier, later = (
        identity_key(Identity("t", uuid7_text(at, 0, bits), 1, "usage", 0)) for at in (milliseconds, milliseconds + 1)
    )
    assert earlier < later


@pytest.mark.parametrize(
    ("request_id", "partition"),
    [
        (uuid7_text(MINTED, 1, 1), "event_identities_20261102"),
        (str(uuid.UUID(int=5, version=4)), "event_identities_other"),
        ("req-1", "event_identities_other"),
        (uuid7_text(0, 1, 1), "event_identities_rest"),
        (uuid7_text(2**47 - 1, 1, 1), "event_identities_rest"),
    ],
)
def test_a_key_lies_in_the_partition_of_the_week_it_was_minted(
    connection: psycopg.Connection, request_id: str, partition: str
) -> None:
    connection.execute("select usage.add_identity_weeks(%s, %s)", (date(2026, 11, 6), date(2026, 11, 6)))
    connection.execute(INSERT, (request_id,))
    row = connection.execute("select tableoid::regclass::text from usage.event_identities").fetchone()
    assert row == (f"usage.{partition}",)


def test_ids_minted_ahead_move_into_the_partition_of_their_week_and_stay_known(
    connection: psycopg.Connection, owner: psycopg.Connection
) -> None:
    noon = int(datetime(2030, 1, 9, 12, tzinfo=UTC).timestamp() * 1000)
    for number in range(3):
        connection.execute(INSERT, (uuid7_text(noon + number, 1, 1),))
    weeks = (date(2030, 1, 1), date(2030, 1, 20))
    assert connection.execute("select usage.add_identity_weeks(%s, %s)", weeks).fetchone() == (3,)
    assert connection.execute("select usage.add_identity_weeks(%s, %s)", weeks).fetchone() == (0,)
    where = "select tableoid::regclass::text, count(*) from usage.event_identities group by 1"
    assert connection.execute(where).fetchall() == [("usage.event_identities_20300107", 3)]
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(INSERT, (uuid7_text(noon, 1, 1),))
    owner.execute("set usage.moving_identities = 'on'")
    with pytest.raises(psycopg.errors.DatabaseError, match="append-only"):
        owner.execute("delete from usage.event_identities_20300107")


def test_what_lies_in_the_rest_is_deleted_by_its_age_alone(connection: psycopg.Connection) -> None:
    connection.execute(INSERT, (uuid7_text(0, 1, 1),))
    connection.execute("set usage.moving_identities = 'on'")
    with pytest.raises(psycopg.errors.DatabaseError, match="append-only"):
        connection.execute("delete from usage.event_identities_rest")


def test_a_week_of_which_the_rest_holds_many_stays_there(connection: psycopg.Connection) -> None:
    """Moving them would stop ingestion for long; and an id from the far future stops no week before it."""
    noon = int(datetime(2030, 1, 9, 12, tzinfo=UTC).timestamp() * 1000)
    with connection.cursor() as cursor:
        cursor.executemany(INSERT, [(uuid7_text(noon + number, 1, 1),) for number in range(5001)])
    weeks = (date(2030, 1, 1), date(2030, 1, 20))
    assert connection.execute("select usage.add_identity_weeks(%s, %s)", weeks).fetchone() == (2,)


@pytest.fixture(scope="module")
def shared(shared_database_url: str) -> psycopg.Connection:
    """Nothing is written."""
    return psycopg.connect(shared_database_url, autocommit=True)
