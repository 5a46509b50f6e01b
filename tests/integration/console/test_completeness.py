"""`streams status`, `streams write-off` and `usage show` on what is complete."""

from __future__ import annotations

import json
from datetime import timedelta

import psycopg
import pytest

from streams.completeness.completeness_check import CompletenessCheck
from streams.settings import CompletenessSettings
from tests.builders import RECEIVED
from tests.integration.console.conftest import Run


@pytest.fixture
def a_gap(connection: psycopg.Connection) -> None:
    """A boot that reported up to 3, and of which only 1 and 3 have arrived; and an unnumbered event."""
    connection.execute(
        "insert into usage.boots (replica_id, boot_id, first_received_at, last_received_at, begun_at, last_seq)"
        " values ('r1', 'b1', %(at)s, %(at)s, %(at)s, 3)",
        {"at": RECEIVED},
    )
    connection.execute("insert into usage.number_fills values ('r1', 'b1', '{1,3}')")
    connection.execute("insert into usage.replica_usage_fills values ('', '', 'tenant_1', 'llama', 1, 10, 5, 4)")
    CompletenessCheck(connection, CompletenessSettings(settle=timedelta(0))).run(RECEIVED)


def test_status_names_what_is_missing_and_who_holds_back(run: Run, a_gap: None) -> None:
    told = json.loads(run("streams", "status", "--json").stdout)
    assert told["complete_to"] == "2026-11-01T12:00:00Z"
    assert told["held_back_by"] == [{"replica_id": "r1", "boot_id": "b1"}]
    (gap,) = told["open_gaps"]
    assert (gap["first_number"], gap["last_number"], gap["missing"], gap["since"]) == (2, 2, 1, "2026-11-01T12:00:00Z")
    assert told["unnumbered"] == {"total": 1, "by_tenant": {"tenant_1": 1}}
    shown = run("streams", "status").stdout
    assert "complete to: 2026-11-01 12:00:00" in shown
    assert "open gaps" in shown
    assert "unnumbered: 1 events" in shown


def test_write_off_lets_the_others_go_on_and_is_audited(run: Run, a_gap: None) -> None:
    command = ("streams", "write-off", "r1", "b1", "--reason", "its disk is gone", "--as", "ada")
    run(*command, "--dry-run")
    assert json.loads(run("streams", "status", "--json").stdout)["held_back_by"] != []
    assert run(*command).returncode == 0
    told = json.loads(run("streams", "status", "--json").stdout)
    assert (told["complete_to"], told["held_back_by"]) == (None, [])
    (act,) = json.loads(run("audit", "list", "--json").stdout)
    assert (act["actor"], act["action"], act["subject"]) == ("ada", "streams.write-off", "r1/b1")
    assert "already" in run(*command).stdout


def test_write_off_of_an_unknown_boot_is_refused(run: Run) -> None:
    done = run("streams", "write-off", "r1", "b9", "--reason", "x")
    assert done.returncode == 1
    assert "no boot b9 of replica r1" in done.stderr


def test_usage_shows_up_to_when_it_is_complete(run: Run, a_gap: None) -> None:
    run("tenant", "add", "tenant_1")
    told = json.loads(run("usage", "show", "tenant_1", "--period", "2026-11", "--json").stdout)
    assert told["complete_to"] == "2026-11-01T12:00:00Z"


def test_watch_needs_a_terminal(run: Run) -> None:
    assert run("streams", "status", "--watch").returncode == 2
