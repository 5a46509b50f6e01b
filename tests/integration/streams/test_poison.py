"""Messages that could stop a partition do not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import psycopg
import pytest

from streams.database import done_later, is_passing
from streams.ingest.apply import ChunkApplier
from streams.usage import quarantine
from tests.builders import EVENT, event_json, make_chunk, make_record
from tests.integration.streams.conftest import whole

WIDE = "漢" * 85


@pytest.mark.parametrize(
    "poison",
    [
        b'{"tenant_id": "a\xff"}',
        b"[" * 3000,
        b'{"tenant_id": "' + b"x" * 6000 + b'"}',
        event_json(model="漢" * 256),
        event_json(gpu_us=2**53 - 1),
        event_json(replica_id="r", boot_id="b", seq=2**63 - 1),
        event_json(model="a\0b"),
        event_json(model="a\0b", tenant_id="stranger"),
        event_json(model="a\0b", schema_version=9),
    ],
)
def test_a_poison_message_is_kept_and_its_neighbours_are_applied(
    connection: psycopg.Connection, applier: ChunkApplier, poison: bytes
) -> None:
    done = applier.apply(make_chunk(make_record(0), make_record(1, poison), make_record(2)))
    assert (done.applied, done.quarantined) == (2, 1)
    (held,) = quarantine.listing(connection)
    assert whole(connection, held) == poison


def test_the_widest_names_that_are_accepted_can_be_stored(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    names: dict[str, Any] = {"model": WIDE, "adapter": WIDE, "region": WIDE[:42], "tier": WIDE[:42], "pool": WIDE[:42]}
    numbered = {"replica_id": WIDE[:42], "boot_id": WIDE[:42], "seq": 2**53 - 1, "gpu_us": 10**12}
    done = applier.apply(make_chunk(make_record(0, json.dumps(EVENT | names | numbered).encode())))
    assert (done.applied, done.quarantined) == (1, 0)


def test_what_the_database_refuses_is_found_by_halving_and_kept(
    connection: psycopg.Connection, owner: psycopg.Connection, applier: ChunkApplier
) -> None:
    connection.execute("update usage.sources set next_position = 0")
    owner.execute(
        "create function public.refuse() returns trigger language plpgsql as $$ begin"
        " if new.position in (2, 5) then raise exception 'too much' using errcode = '22003'; end if;"
        " return new; end $$"
    )
    owner.execute(
        "create trigger refuse before insert on usage.event_identities for each row execute function public.refuse()"
    )
    done = applier.apply(make_chunk(*(make_record(position) for position in range(7))))
    assert (done.next_position, done.applied, done.quarantined) == (7, 5, 2)
    assert (done.late, dict(done.refused), dict(done.tenants)) == (5, {"invalid": 2}, {"tenant_1": 5})
    held = quarantine.listing(connection)
    assert sorted((row.position, row.reason, row.detail) for row in held) == [
        (2, "invalid", "cannot be stored: too much"),
        (5, "invalid", "cannot be stored: too much"),
    ]


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (psycopg.OperationalError("connection lost"), True),
        (psycopg.errors.DeadlockDetected(), True),
        (psycopg.errors.DiskFull(), True),
        (psycopg.errors.AdminShutdown(), True),
        (psycopg.errors.QueryCanceled(), True),
        (psycopg.errors.IdleInTransactionSessionTimeout(), True),
        (psycopg.errors.ProgramLimitExceeded(), False),
        (psycopg.errors.NumericValueOutOfRange(), False),
        (psycopg.errors.UndefinedTable(), False),
        (psycopg.errors.CheckViolation(), False),
    ],
)
def test_only_errors_about_the_databases_state_are_waited_out(error: Exception, passing: bool) -> None:
    assert is_passing(error) is passing
    with contextlib.nullcontext() if passing else pytest.raises(psycopg.Error), done_later():
        raise error
