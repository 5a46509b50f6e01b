"""What the application's role may do with the tables of schema `usage`: no more than is listed, and facts stay."""

from __future__ import annotations

import json
import re
from typing import Any

import psycopg
import pytest

from migrations.privileges import STATE
from serving_adapter.identity import Identity, event_id_of
from streams import audit
from streams.ingest.apply import ChunkApplier
from tests.builders import make_chunk, make_record

FACTS = {
    "usage.applied_chunks": set(), "usage.applied_ranges": set(), "usage.archived_counts": set(),
    "usage.audit_log": set(), "usage.event_identities": set(), "usage.event_versions": set(),
    "usage.events": {"rating_band"}, "usage.position_resolutions": set(), "usage.quarantine": {"detail"},
    "usage.quarantine_resolutions": set(), "usage.quota_feed": set(), "usage.superseded_events": set(),
}  # fmt: skip
"""Tables of facts, and what of their rows may change."""
MAY = """
    select n.nspname || '.' || c.relname, coalesce(h.hypertable_schema || '.' || h.hypertable_name, ''),
        array(select a.attname::text from pg_attribute as a where a.attrelid = c.oid and a.attnum > 0
              and not a.attisdropped and has_column_privilege('tollbook_app', c.oid, a.attnum, 'UPDATE')),
        array(select a.attname::text from pg_attribute as a where a.attrelid = c.oid and a.attnum > 0
              and not a.attisdropped),
        has_table_privilege('tollbook_app', c.oid, 'DELETE'), has_table_privilege('tollbook_app', c.oid, 'TRUNCATE')
    from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
    left join timescaledb_information.chunks as h on h.chunk_schema = n.nspname and h.chunk_name = c.relname
    where c.relkind in ('r', 'p') and (n.nspname = 'usage' or h.hypertable_schema = 'usage')
"""


def listed(table: str, columns: list[str]) -> tuple[set[str], bool]:
    """The columns that may be updated, and whether rows may be deleted."""
    rights = STATE.get(table, "")
    named = re.search(r"update(?: \(([^)]*)\))?", rights)
    updated = set() if named is None else set(named[1].split(", ")) if named[1] else set(columns)
    return updated, "delete" in rights


@pytest.fixture
def used(connection: psycopg.Connection, applier: ChunkApplier) -> psycopg.Connection:
    """A database in which most kinds of facts have rows."""
    corrects = str(event_id_of(Identity("tenant_1", "b", 1, "usage", 0)))
    less: dict[str, Any] = {"kind": "correction", "correction_no": 1, "corrects": corrects, "output_tokens": -1}
    applier.apply(
        make_chunk(
            make_record(0, request_id="a", usage_source="estimate"),
            make_record(1, request_id="a"),
            make_record(2, request_id="b"),
            make_record(3, request_id="b", **less, input_tokens=0, cache_hit_tokens=0),
            make_record(4, request_id="b", output_tokens=77),
        )
    )
    audit.record(connection, "ada", "test", "facts", json.loads("{}"))
    return connection


def test_of_every_table_the_application_may_change_what_is_listed_and_of_chunks_what_of_their_tables(
    used: psycopg.Connection,
) -> None:
    found = used.execute(MAY).fetchall()
    assert {"usage.sources", "usage.events", "usage.windows_1m"} <= {table for table, *_ in found}
    assert any(of == "usage.events" for _, of, *_ in found)
    for table, of, updated, columns, deletes, truncates in found:
        may_update, may_delete = listed(of or table, columns)
        assert (deletes, truncates) == (may_delete, False), table
        assert set(updated) == may_update or (of and set(updated) < may_update), table


def test_facts_are_neither_changed_nor_removed_by_the_application(used: psycopg.Connection) -> None:
    with_rows = 0
    for table, free in FACTS.items():
        there = used.execute(f"select * from {table} limit 1")
        assert there.description is not None
        with_rows += there.fetchone() is not None
        for column in {each.name for each in there.description} - free:
            with pytest.raises(psycopg.DatabaseError) as refused:
                used.execute(f"update {table} set {column} = {column}")
            assert refused.value.sqlstate in ("42501", "TB001", "428C9"), (table, column)
        for statement in (f"delete from {table}", f"truncate {table}"):
            if statement in ("delete from usage.archived_counts", "delete from usage.event_versions"):
                continue  # by a day that is written anew; by age, which a trigger of their own judges
            with pytest.raises(psycopg.DatabaseError) as refused:
                used.execute(statement)
            assert refused.value.sqlstate in ("42501", "TB001"), statement
    assert with_rows >= 7
