"""Bringing up the schema in a database that others use too."""

from __future__ import annotations

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine

from streams.completeness.number_sets import SEGMENT
from streams.errors import SchemaInTheWay, SchemaOutdated
from streams.schema import MIGRATIONS, check, newest, upgrade
from tests.builders import SOURCE
from tests.fixtures_services import Databases
from tests.integration.streams.conftest import register_source


def test_a_foreign_schema_in_the_way_is_named_and_left_alone(make_database: Databases) -> None:
    url = make_database.without_schema()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create schema ledger")
    with pytest.raises(SchemaInTheWay, match="a schema ledger that is not Tollbook's"):
        upgrade(url)


def test_another_programs_revisions_in_the_same_database_are_not_ours(make_database: Databases) -> None:
    url = make_database.without_schema()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table public.alembic_version (revision text)")
        connection.execute("insert into public.alembic_version values ('theirs')")
        with pytest.raises(SchemaOutdated):
            check(url)
        assert upgrade(url) == (None, newest())
        assert check(url) == newest()
        assert connection.execute("select * from public.alembic_version").fetchall() == [("theirs",)]


def downgrade(url: str, revision: str) -> None:
    """Back to a revision."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine("postgresql+psycopg://" + url.split("://", 1)[1])
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, revision)
    engine.dispose()


def bits(*ranges: range) -> bytes:
    held = sum(1 << number for each in ranges for number in each)
    return held.to_bytes((held.bit_length() + 7) // 8, "little")


def test_received_numbers_survive_a_step_back_and_forth(own_database_url: str, owner: psycopg.Connection) -> None:
    numbers = {0: bits(range(1, 4), range(8000, SEGMENT)), 1: bits(range(3)), 5: bits(range(7, 8))}
    with owner.cursor() as cursor:
        cursor.executemany("insert into usage.received_numbers values ('r1', 'b1', %s, %s)", list(numbers.items()))
    query = "select segment, numbers from usage.received_numbers order by segment"
    downgrade(own_database_url, "0021")
    stored = owner.execute(query.replace("numbers from", "numbers::text from")).fetchall()
    assert stored == [(0, "{[2,5),[8001,8196)}"), (2, "{[40968,40969)}")]
    upgrade(own_database_url)
    assert owner.execute(query).fetchall() == list(numbers.items())


def test_chunks_that_were_folded_refuse_the_step_back_that_would_lose_them(
    own_database_url: str, owner: psycopg.Connection
) -> None:
    register_source(owner, SOURCE, "usage")
    owner.execute("update usage.ingest_rules set closed_before = now() + interval '1 day'")
    owner.execute("update usage.sources set ingest_no = 2, next_position = 2")
    owner.execute(
        "insert into usage.applied_chunks (source, first_position, next_position, applied, duplicates, retimed,"
        " quarantined, late, content_digest) select %s, n, n + 1, 1, 0, 0, 0, 0, '' from generate_series(0, 1) as n",
        (SOURCE.name,),
    )
    assert owner.execute("select usage.fold_applied_chunks(10)").fetchone() == (2,)
    with pytest.raises(NotImplementedError, match="restore a backup from before 0024"):
        downgrade(own_database_url, "0023")
    assert check(own_database_url) == newest()
