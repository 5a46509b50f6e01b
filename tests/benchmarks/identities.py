"""`make bench-identities`: three ways to know an identity again, with none and with many there already.

Each is filled from SQL and then takes chunks of 2,000 as ingestion brings them: COPY to a stage, insert what is new,
commit. `named` is a key of the five values as text, `hashed` the event's id (UUIDv5), `timed` is ours: a UUIDv7's time
before a hash. `IDENTITIES` sets how many are there already (default 100 million, of the
much larger `named` a fifth); `QUICK=1` takes half a million.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import psycopg

from serving_adapter.identity import Identity, event_id_of
from streams.database import connect
from streams.identity_keys import identity_key
from tests.benchmarks.report import Report
from tests.benchmarks.traffic import uuid7_text

QUICK = os.environ.get("QUICK", "") not in ("", "0")
PRELOADED = 500_000 if QUICK else int(os.environ.get("IDENTITIES", "100_000_000"))
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
    uuid7: str
    random: str
    share: float = 1.0
    """Of the identities that are preloaded."""

    @property
    def columns(self) -> str:
        """The key's names alone."""
        return ", ".join(column.split()[0] for column in self.key.split(", "))

    def row(self, request_id: str, tenant: str) -> tuple[object, ...]:
        """The key of an id that arrives."""
        identity = Identity(tenant, request_id, 1, "usage", 0)
        if self.name == "named":
            return (request_id, tenant, 1, "usage", 0)
        return (UUID(bytes=identity_key(identity)) if self.name == "timed" else event_id_of(identity),)


NAMED: Final = ", ".join(
    ('request_id text collate "C"', 'tenant_id text collate "C"', "attempt integer", 'kind text collate "C"',
     "correction_no integer")
)  # fmt: skip
DESIGNS = (
    Design("timed", "key uuid", "(h || substr(r, 13))::uuid", "overlay(r placing 'f' from 1)::uuid"),
    Design("hashed", "key uuid", "r::uuid", "r::uuid", 0.5),
    Design(
        "named",
        NAMED,
        f"{UUID7}, 'tenant_' || n % 500, 1, 'usage', 0",
        f"{UUID4}, 'tenant_' || n % 500, 1, 'usage', 0",
        0.2,
    ),
)


def main() -> None:
    """Measure, print, and write build/bench-identities.json."""
    report = Report("bench-identities", SEED, QUICK)
    for design in DESIGNS:
        for ids in ("uuid7", "random"):
            rates, size = {}, 0
            for count in (0, int(PRELOADED * design.share)):
                with database() as connection:
                    fill(connection, design, ids, count)
                    rates[count] = measure(connection, design, ids)
                    size = sizes(connection)
            empty, full = rates.values()
            label = f"{design.name}_{ids}"
            report.add(f"{label}_empty_per_s", "1/s", empty)
            report.add(f"{label}_full_per_s", "1/s", full)
            report.add(f"{label}_slowdown", "ratio", [sorted(empty)[1] / sorted(full)[1]], goal=1.2)
            report.add(f"{label}_bytes_per_id", "B", [size / max(1, max(rates))])
    report.write()


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
            admin.execute(f'drop database if exists "{name}" with (force)')


def fill(connection: psycopg.Connection, design: Design, ids: str, count: int) -> None:
    """The table, filled in the order of arrival; its index is built at the end, as sorted inserts would leave it."""
    begin = int(time.time() * 1000) - PAST_MS
    connection.execute("set idle_in_transaction_session_timeout = 0")
    connection.execute("set maintenance_work_mem = '1GB'")
    connection.execute(f"create table identities ({design.key}, {COLUMNS})")
    key = design.uuid7 if ids == "uuid7" else design.random
    print(f"  filling {design.name} with {count:,} {ids} identities", flush=True)
    for start in range(0, count, 1_000_000):
        connection.execute(
            f"insert into identities select {key}, {VALUES} from (select n, md5(n::text) as r,"
            f" lpad(to_hex({begin} + n * {PAST_MS} / {count}), 12, '0') as h"
            f" from generate_series({start}, {min(start + 1_000_000, count) - 1}) as n) as made"
        )
    connection.execute(f"alter table identities add primary key ({design.columns})")
    connection.execute("vacuum identities")
    connection.execute("checkpoint")


def measure(connection: psycopg.Connection, design: Design, ids: str) -> list[float]:
    """New identities a second, in runs of many chunks."""
    dice = random.Random(SEED)
    connection.execute(f"create temporary table stage ({design.key}, {COLUMNS}) on commit delete rows")
    rates = []
    for run in range(RUNS):
        now = int(time.time() * 1000) + run * 60_000
        made = [design.row(_request_id(ids, now, n, dice), f"tenant_{n % 500}") for n in range(CHUNK * CHUNKS)]
        begun = time.monotonic()
        for start in range(0, len(made), CHUNK):
            with connection.transaction(), connection.cursor() as cursor:
                with cursor.copy("copy stage from stdin") as copy:
                    for n, key in enumerate(made[start : start + CHUNK]):
                        copy.write_row((*key, "2026-11-06", n, 1, "engine", b"0123456789abcdef"))
                cursor.execute(
                    f"insert into identities select * from stage order by {design.columns}"
                    " on conflict do nothing returning position"
                )
        rates.append(len(made) / (time.monotonic() - begun))
    return rates


def _request_id(ids: str, now: int, n: int, dice: random.Random) -> str:
    if ids == "uuid7":
        return uuid7_text(now + n // 20, n, dice.getrandbits(72))
    return str(UUID(int=dice.getrandbits(128), version=4))


def sizes(connection: psycopg.Connection) -> int:
    """Bytes of the table with its index."""
    row = connection.execute("select pg_total_relation_size('identities')").fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    main()
