"""`streams status`, `streams write-off` and `usage show` on what is complete."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from datetime import timedelta

import psycopg
import pytest
from confluent_kafka import Producer

from serving_adapter.settings import KafkaSettings
from serving_adapter.topics import REPLICAS, USAGE
from streams.completeness.completeness_check import CompletenessCheck
from streams.ingest import sources
from streams.ingest.logs import LogReader
from streams.ingest.sources import Feed, source_name
from streams.settings import CompletenessSettings
from tests.builders import RECEIVED
from tests.integration.console.conftest import Run
from tests.simulation.line import PATIENCE_S


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
    assert "no later because of r1/b1\n" in shown
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


def test_gaps_are_listed_run_by_run_and_of_an_unknown_boot_nothing_is_said(run: Run, a_gap: None) -> None:
    told = json.loads(run("streams", "gaps", "r1", "b1", "--json").stdout)
    assert told == [{"first_number": 2, "last_number": 2, "missing": 1}]
    done = run("streams", "gaps", "nobody", "nothing")
    assert (done.returncode, done.stdout, "no boot nothing of replica nobody" in done.stderr) == (1, "", True)


@pytest.mark.parametrize("feed", ["usage", "replicas"])
def test_a_partition_that_stands_still_goes_on_where_a_person_says_and_of_that_feed_alone(
    run: Run, kafka: KafkaSettings, connection: psycopg.Connection, feed: Feed
) -> None:
    feeds: dict[Feed, str] = {"usage": USAGE.name(kafka.topic_prefix), "replicas": REPLICAS.name(kafka.topic_prefix)}
    producer = Producer(kafka.client())
    for each, topic in feeds.items():
        for _ in range(3):
            producer.produce(topic, b"{}", partition=0)
        producer.flush()
        sources.register(connection, LogReader(kafka, topic).read(), each)
        sources.mark_stopped(connection, source_name(topic, 0), "a person is to look")
    of_feed = () if feed == "usage" else ("--feed", feed)
    command = ("streams", "resolve", "--partition", "0", "--to", "2", *of_feed, "--as", "ada", "--reason")
    stopped = {each: sources.states(connection, topic)[0] for each, topic in feeds.items()}

    refused = run(*command, " ")
    assert (refused.returncode, "needs a reason" in refused.stderr) == (1, True)
    source = source_name(feeds[feed], 0)
    assert f"{source} would go on at 2 (stood at 0)" in run(*command, "two are rubbish", "--dry-run").stdout
    assert {each: sources.states(connection, topic)[0] for each, topic in feeds.items()} == stopped
    assert f"{source} goes on at 2 (stood at 0)" in run(*command, "two are rubbish").stdout
    for each, topic in feeds.items():
        state = sources.states(connection, topic)[0]
        assert (state.next_position, state.stopped_because is None) == ((2, True) if each == feed else (0, False))
    (act,) = json.loads(run("audit", "list", "--json").stdout)
    assert (act["actor"], act["action"], act["subject"]) == ("ada", "streams.resolve", source)
    assert (act["detail"]["from"], act["detail"]["to"], act["detail"]["reason"]) == (0, 2, "two are rubbish")
    again = run(*command, "once more")
    assert (again.returncode, "does not stand still" in again.stderr) == (1, True)


def test_usage_shows_up_to_when_it_is_complete(run: Run, a_gap: None) -> None:
    run("tenant", "add", "tenant_1")
    told = json.loads(run("usage", "show", "tenant_1", "--period", "2026-11", "--json").stdout)
    assert told["complete_to"] == "2026-11-01T12:00:00Z"


def test_watch_needs_a_terminal(run: Run) -> None:
    assert run("streams", "status", "--watch").returncode == 2


def test_watch_shows_what_there_is_again_and_again_until_it_is_interrupted(
    kafka: KafkaSettings, server_url: str, own_database_url: str, connection: psycopg.Connection
) -> None:
    """Also while the database lets nobody in; and so does `reconcile run --watch` look."""
    environ = os.environ | {
        "TOLLBOOK_KAFKA": kafka.bootstrap, "TOLLBOOK_TOPIC_PREFIX": kafka.topic_prefix,
        "TOLLBOOK_DATABASE_URL": own_database_url, "TERM": "xterm", "COLUMNS": "200",
    }  # fmt: skip
    ours, terminal = pty.openpty()
    command = [sys.executable, "-m", "console.main", "streams", "status", "--watch"]
    shown = subprocess.Popen(
        command, env=environ, stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=heed_interrupts
    )
    os.close(terminal)
    theirs, told = os.pipe()
    looking = subprocess.Popen(
        [*command[:3], "reconcile", "run", "--watch", "--every", "1"], env=environ, stdout=told, stderr=told
    )
    os.close(told)
    try:
        read_until(ours, b"quarantine: empty")
        read_until(theirs, b"0 open")
        with psycopg.connect(server_url, autocommit=True) as server:
            lets_in = f'alter database "{connection.info.dbname}" with allow_connections'
            server.execute(f"{lets_in} false")
            read_until(ours, b"no PostgreSQL")
            read_until(theirs, b"the next look is in 1 s")
            server.execute(f"{lets_in} true")
            read_until(theirs, b"0 open")
        connection.execute(
            "insert into usage.sources (source, cluster_id, topic_id, leader_epoch, first_position, next_position)"
            " values ('a', 'c', 't', -1, 0, 0)"
        )
        connection.execute(
            "insert into usage.quarantine (source, position, reason, detail, message, appended_at)"
            " values ('a', 0, 'torn', 'not JSON', '{', now())"
        )
        read_until(ours, b"quarantine: torn 1")
        shown.send_signal(signal.SIGINT)
        read_to_end(ours)
        assert shown.wait(PATIENCE_S) == 0
    finally:
        shown.kill()
        looking.kill()
        os.close(ours)
        os.close(theirs)


def heed_interrupts() -> None:
    """What a shell starts in the background ignores them, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_to_end(terminal: int) -> None:
    """Read what is shown until it is shown no more: a terminal that nobody reads holds up who writes to it."""
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.suppress(OSError):  # says that nobody writes to it any more
        while time.monotonic() < deadline:
            os.read(terminal, 4096)


def read_until(terminal: int, text: bytes) -> None:
    """Read what is shown until a text comes."""
    seen = b""
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], PATIENCE_S)
        assert ready, seen
        more = os.read(terminal, 4096)
        assert more, f"it has ended: {seen!r}"
        seen += more
