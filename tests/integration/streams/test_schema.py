"""Bringing up the schema in a database that others use too."""

from __future__ import annotations

import psycopg
import pytest

from streams.errors import SchemaInTheWay, SchemaOutdated
from streams.schema import check, newest, upgrade
from tests.fixtures_services import Databases


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
