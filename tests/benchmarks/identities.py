"""`make bench-identities`: four ways to know an identity again, as the table grows to 100 million.

Chunks of 2,000 come as ingestion brings them (COPY to a stage, insert what is new, commit), in turns to a table that
began empty and to one that is filled: both see the machine at the same moments. `named` is a key of the five values as
text, `hashed` the event's id (UUIDv5, random whatever the request's id is), `spread` the same over 64 partitions by its
hash, `timed` is ours: a UUIDv7's time before a hash. `IDENTITIES` names the sizes (the much larger `named` stops at 20
million), `DESIGNS` some of the designs; `QUICK=1` takes half a million.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg

from serving_adapter.identity import Identity, event_id_of
from streams.database import connect
from streams.rules.identity_keys import identity_key
from tests.benchmarks.report import QUICK, Report
from tests.benchmarks.traffic import uuid7_text

IDENTITIES = (
    "500_000" if QUICK else os.environ.get("IDENTITIES", "1_000_000,3_000_000,10_000_000,30_000_000,100_000_000")
)
SIZES = tuple(int(count) for count in IDENTITIES.split(","))
ASKED = tuple(filter(None, os.environ.get("DESIGNS", "").split(",")))
SEED = 20261121
CHUNK = 2000
CHUNKS = 20 if QUICK else 100
RUNS = 3
PAST_MS: Final = 20 * 86_400_000
COLUMNS: Final = "completed_at timestamptz, position bigint, source_no integer, usage_source text, content_digest bytea"
VALUES: Final = "now(), n, 1, 'engine', decode(r, 'hex')"
_TAIL: Final = "{v}' || substr(r, 13, 3) || '-8' || substr(r, 16, 3) || '-' || substr(r, 19, 12)"
UUID7: Final = "substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-" + _TAIL.format(v=7)
UUID4: Final = "substr(r, 1, 8) || '-' || substr(r, 9, 4) || '-" + _TAIL.format(v=4)


@dataclass(frozen=True, slots=True)
class Design:
    """A table of identities: its key's columns, and how SQL makes keys of UUIDv7 and of random ids."""

    name: str
    key: str
    made_by: dict[str, str]
    """By the kind of request ids: the key in SQL, of a row's number `n`, hash `r`, and time `h` in hexadecimal."""
    most: int = 10**9
    """Identities that the disk is asked to hold."""
    partitions: int = 0
    """By the key's hash; 0: one table."""

    @property
    def columns(self) -> str:
        """The key's names alone."""
        return ", ".join(column.split()[0] for column in self.key.split(", "))

    def create(self, connection: psycopg.Connection, table: str, constraint: str = "") -> None:
        """Create a table of the design."""
        by_hash = f" partition by hash ({self.columns})" if self.partitions else ""
        connection.execute(f"create table {table} ({self.key}, {COLUMNS}{constraint}){by_hash}")
        for n in range(self.partitions):
            connection.execute(
                f"create table {table}_{n} partition of {table}"
                f" for values with (modulus {self.partitions}, remainder {n})"
            )

    def row(self, request_id: str, tenant: str) -> tuple[object, ...]:
        """The key of an id that arrives."""
        identity = Identity(tenant, request_id, 1, "usage", 0)
        if self.name == "named":
            return (request_id, tenant, 1, "usage", 0)
        return (UUID(bytes=identity_key(identity)) if self.name == "timed" else event_id_of(identity),)


RANDOM: Final = "overlay(r placing translate(substr(r, 1, 1), '01234567', '89abcdef') from 1)"
"""A hash with its first bit set."""
NAMED: Final = ", ".join(
    ('request_id text collate "C"', 'tenant_id text collate "C"', "attempt integer", 'kind text collate "C"',
     "correction_no integer")
)  # fmt: skip
DESIGNS = (
    Design("timed", "key uuid", {"uuid7": "(h || substr(r, 13))::uuid", "random": f"{RANDOM}::uuid"}),
    Design("hashed", "key uuid", {"any": "r::uuid"}),
    Design("spread", "key uuid", {"any": "r::uuid"}, partitions=64),
    Design(
        "named",
        NAMED,
        {
            "uuid7": f"{UUID7}, 'tenant_' || n % 500, 1, 'usage', 0",
            "random": f"{UUID4}, 'tenant_' || n % 500, 1, 'usage', 0",
        },
        most=20_000_000,
    ),
)


def main() -> None:
    """Measure, print, and write build/bench-identities.json."""
    report = Report("bench-identities", SEED, QUICK)
    for design in (each for each in DESIGNS if not ASKED or each.name in ASKED):
        for ids in design.made_by:
            with database() as connection:
                grow(connection, design, ids, report)
    report.write()


def grow(connection: psycopg.Connection, design: Design, ids: str, report: Report) -> None:
    """One design with one kind of ids, at one size after the other."""
    connection.execute("set idle_in_transaction_session_timeout = 0")
    connection.execute("set maintenance_work_mem = '1GB'")
    design.create(connection, "large")
    design.create(connection, "small", f", primary key ({design.columns})")
    connection.execute(f"create temporary table stage ({design.key}, {COLUMNS}) on commit delete rows")
    dice, there = random.Random(SEED), 0
    for size in SIZES:
        size = min(size, design.most)
        if size == there:
            break
        fill(connection, design, ids, there, size)
        there = size
        small, large = measure(connection, design, ids, dice)
        label = f"{design.name}_{ids}_{size / 1e6:g}m"
        report.add(f"{label}_empty_per_s", "1/s", small)
        report.add(f"{label}_per_s", "1/s", large)
        slower = [before / after for before, after in zip(small, large, strict=True)]
        report.add(f"{label}_slowdown", "ratio", slower, goal=1.2)
    row = connection.execute(
        "select coalesce(sum(pg_total_relation_size(relid)), pg_total_relation_size('large'))"
        " from pg_partition_tree('large')"
    ).fetchone()
    report.add(f"{design.name}_{ids}_bytes_per_id", "B", [float(row[0] if row else 0) / there])


@contextmanager
def database() -> Iterator[psycopg.Connection]:
    """A database of this run's own, dropped at the end."""
    server = os.environ["TOLLBOOK_DATABASE_URL"]
    name = f"tollbook_bench_{secrets.token_hex(4)}"
    head, _, options = server.partition("?")
    with connect(server, as_login=True) as admin:
        admin.execute(f'create database "{name}"')
        try:
            url = f"{head.rsplit('/', 1)[0]}/{name}" + (f"?{options}" if options else "")
            with connect(url, as_login=True) as connection:
                yield connection
        finally:
            admin.execute(f'drop database if exists "{name}"')


def fill(connection: psycopg.Connection, design: Design, ids: str, there: int, size: int) -> None:
    """From `there` to `size` rows in the order of arrival; the index is built anew, as sorted inserts leave it."""
    begin = int(time.time() * 1000) - PAST_MS
    print(f"  filling {design.name} to {size:,} identities of {ids} request ids", flush=True)
    connection.execute("alter table large drop constraint if exists large_pkey")
    for start in range(there, size, 1_000_000):
        connection.execute(
            f"insert into large select {design.made_by[ids]}, {VALUES} from (select n, md5(n::text) as r,"
            f" lpad(to_hex({begin} + n * {PAST_MS} / {SIZES[-1]}), 12, '0') as h"
            f" from generate_series({start}::bigint, {min(start + 1_000_000, size) - 1}) as n) as made"
            " on conflict do nothing"
        )
    connection.execute(f"alter table large add primary key ({design.columns})")
    connection.execute("vacuum large")
    connection.execute("truncate small")


def measure(
    connection: psycopg.Connection, design: Design, ids: str, dice: random.Random
) -> tuple[list[float], list[float]]:
    """New identities a second into the small and into the large table, chunks taking turns, in runs of many chunks."""
    rates: dict[str, list[float]] = {"small": [], "large": []}
    for _ in range(RUNS):
        now = int(time.time() * 1000)
        made = [design.row(_request_id(ids, now, n, dice), f"tenant_{n % 500}") for n in range(CHUNK * CHUNKS)]
        spent = dict.fromkeys(rates, 0.0)
        for start in range(0, len(made), CHUNK):
            for table in spent:
                begun = time.monotonic()
                insert(connection, design, table, made[start : start + CHUNK])
                spent[table] += time.monotonic() - begun
        for table, seconds in spent.items():
            rates[table].append(len(made) / seconds)
    return rates["small"], rates["large"]


def insert(connection: psycopg.Connection, design: Design, table: str, keys: Sequence[tuple[object, ...]]) -> None:
    """A chunk, as ingestion brings it."""
    with connection.transaction(), connection.cursor() as cursor:
        with cursor.copy("copy stage from stdin") as copy:
            for n, key in enumerate(keys):
                copy.write_row((*key, "2026-11-06", n, 1, "engine", b"0123456789abcdef"))
        cursor.execute(
            f"insert into {table} select * from stage order by {design.columns}"
            " on conflict do nothing returning position"
        )


def _request_id(ids: str, now: int, n: int, dice: random.Random) -> str:
    if ids == "uuid7":
        return uuid7_text(now + n // 20, n, dice.getrandbits(72))
    return str(UUID(int=dice.getrandbits(128), version=4))


if __name__ == "__main__":
    main()
