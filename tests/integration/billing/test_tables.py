"""The tables that the code knows are those that the migrations make."""

from __future__ import annotations

from collections import defaultdict

import pytest
from sqlalchemy import text

from billing import tables
from billing.database import add_rows, transaction
from billing.errors import NotAnAmount
from tests.integration.billing.conftest import World


def test_the_code_knows_every_table_and_column_of_the_ledger(world: World) -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for table, column in world.rows(
        "select table_name, column_name from information_schema.columns where table_schema = 'ledger'"
    ):
        found[table].add(column)
    assert {table.name: {column.name for column in table.columns} for table in tables.metadata.tables.values()} == found


def test_no_amount_is_a_column_that_rounds(world: World) -> None:
    rounding = world.rows(
        "select table_name, column_name from information_schema.columns where table_schema = 'ledger'"
        " and (data_type in ('real', 'double precision', 'money')"
        "      or data_type = 'numeric' and numeric_precision is not null)"
    )
    assert rounding == []


def test_no_float_is_sent_to_the_database(world: World) -> None:
    with transaction(world.engine) as connection:
        for wrong in (0.1, [0.1], float("nan")):
            with pytest.raises(NotAnAmount, match="is a float"):
                connection.execute(text("select :given"), {"given": wrong})
        with pytest.raises(NotAnAmount, match=r"amount 0\.1 is a float"):
            add_rows(connection, tables.rated_lines, [{"amount": 0.1}])
