"""The tables that the code knows are those that the migrations make."""

from __future__ import annotations

from collections import defaultdict

from billing import tables
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
