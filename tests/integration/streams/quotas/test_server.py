"""`tollbook quota serve`, called over HTTP: answers, kills, other owners, a database that goes away."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from streams.http import access_keys
from tests.fixtures_quota_server import QuotaServerProcess, add_key
from tests.integration.streams.quotas.driver import Usage, add_tenants, define

Start = Callable[..., QuotaServerProcess]


@pytest.fixture
def usage(connection: psycopg.Connection) -> Usage:
    add_tenants(connection, "t1", "t2")
    define(connection)
    return Usage(connection)


def until(what: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def settle_together(server: QuotaServerProcess, requests: int) -> None:
    """More in one call than are taken in one turn of the loop: a token each."""
    before = server.quota()["unconfirmed"]
    told = [
        {"tenant_id": "t1", "request_id": f"many-{no}", "input_tokens": 1, "output_tokens": 1} for no in range(requests)
    ]
    for each in told:
        assert server.ask(each["request_id"], max_tokens=1).status == 200
    assert server.request("POST", "/v1/settlements", {"settlements": told}).status == 204
    assert (server.quota()["unconfirmed"], server.quota()["reserved"]) == (before + requests, 0)


def test_a_request_is_admitted_settled_confirmed_and_explained(quota_server: Start, usage: Usage) -> None:
    usage.happens("before", output=200)
    server = quota_server()
    allowed = server.ask("r1", max_tokens=None)
    assert (allowed.status, allowed.body["max_tokens"]) == (200, 800)
    assert allowed.headers["x-tollbook-max-tokens"] == "800"
    assert server.settle("r1", 50).status == 204
    assert server.settle("r1", 50).status == 204
    until(lambda: server.quota()["confirmed"] == 200)
    assert server.quota()["unconfirmed"] == 50
    usage.happens("r1", output=50)
    until(lambda: server.quota()["confirmed"] == 250)
    assert (server.quota()["unconfirmed"], server.quota()["unreserved"]) == (0, 0)
    settle_together(server, 40)
    usage.happens("foreign", output=705)
    until(lambda: server.quota()["unreserved"] == 705)
    refused = server.ask("r2")
    assert refused.status == 429
    assert refused.body["error"]["code"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert int(refused.headers["retry-after"]) >= 1
    assert refused.headers["ratelimit"].startswith('"month-output_tokens";r=5;t=')
    assert refused.headers["ratelimit-policy"].startswith('"month-output_tokens";q=1000;w=')
    assert refused.headers["x-ratelimit-remaining-tokens"] == "5"
    (why,) = server.request("GET", "/v1/decisions/t1/r2").body["decisions"]
    wall = {"quota_id": "month-output_tokens", "version": 1, "because": "spent"}
    wall |= {"limit": "1000", "needed": "16", "room": "5"}
    assert why["walls"] == [wall]


def test_callers_see_their_own_tenants_only(quota_server: Start, usage: Usage, connection: psycopg.Connection) -> None:
    server = quota_server()
    mine = add_key(connection, "t2")
    until(lambda: server.request("GET", "/v1/tenants/t2/quota", secret=mine).status == 200)
    for method, path, body in (
        ("GET", "/v1/tenants/t1/quota", None),
        ("GET", "/v1/decisions/t1/r1", None),
        ("POST", "/v1/reservations", {"tenant_id": "t1", "request_id": "r1", "model": "m", "input_tokens": 1}),
        ("POST", "/v1/reservations/t1/r1/settle", {}),
        ("POST", "/v1/settlements", {"settlements": [{"tenant_id": "t1", "request_id": "r1"}]}),
        ("POST", "/v1/leases", {"tenant_id": "t1", "want": {"requests": 1}}),
        ("DELETE", "/v1/leases/t1~1.1", {}),
    ):
        assert server.request(method, path, body, secret=mine).status == 403, path
        assert server.request(method, path, body, secret="tbk_wrong").status == 401, path
    emitter = access_keys.secret_from(bytes(32))
    access_keys.add(
        connection, kind="emitter", name="e", tenant_ids=["t1"], all_tenants=False, secret=emitter, actor="t"
    )
    assert server.ask("r9").status == 200
    assert server.request("GET", "/v1/tenants/t1/quota", secret=emitter).status == 401
    for key in access_keys.listing(connection):
        access_keys.revoke(connection, key.key_id, actor="test")
    until(lambda: server.ask("r10").status == 401)


def test_wrong_calls_are_told(quota_server: Start, usage: Usage) -> None:
    server = quota_server()
    for body in (b"{", {}, {"tenant_id": "t1"}, {"tenant_id": "t1", "request_id": "r", "model": "", "input_tokens": 1},
                 {"tenant_id": "t1", "request_id": "r", "model": "m", "input_tokens": -1},
                 {"tenant_id": "t1", "request_id": "r", "model": "m", "input_tokens": 1, "n": 0}):  # fmt: skip
        assert server.request("POST", "/v1/reservations", body).status == 400
    assert server.request("GET", "/v1/reservations").status == 405
    assert server.request("GET", "/v1/nothing").status == 404
    assert server.ask("r1", tenant="nobody").status == 403
    assert server.settle("r1", 5, tenant="nobody").status == 403
    assert server.ask("r1").status == 200
    assert server.ask("r1", max_tokens=5).status == 409
    assert server.request("POST", "/v1/reservations", b" " * 2_000_000).status == 413
    assert server.request("GET", "/openapi.json").body["openapi"] == "3.1.0"
    assert server.request("GET", "/readyz").body["ready"] is True
    assert "tollbook_quota_admitted_total 1" in server.request("GET", "/metrics").body


def test_pipelined_requests_are_answered_in_their_order(quota_server: Start, usage: Usage) -> None:
    server = quota_server()

    def post(number: int) -> bytes:
        body = b'{"tenant_id":"t1","request_id":"r%d","model":"m","input_tokens":1,"max_tokens":16}' % number
        head = b"POST /v1/reservations HTTP/1.1\r\nauthorization: Bearer %s\r\ncontent-length: %d\r\n\r\n"
        return head % (server.secret.encode(), len(body)) + body

    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(b"".join(map(post, range(5))) + b"GET /healthz HTTP/1.1\r\n\r\n" + post(5)[:-10])
        client.sendall(post(5)[-10:] + b"GET /nothing HTTP/1.1\r\nconnection: close\r\n\r\n")
        received = b""
        while part := client.recv(65536):
            received += part
    assert re.findall(rb"HTTP/1\.1 (\d+)", received) == [b"200"] * 7 + [b"404"]
    assert [received.index(b'"remaining":%d' % (1000 - 16 * n)) for n in range(1, 7)] == sorted(
        received.index(b'"remaining":%d' % (1000 - 16 * n)) for n in range(1, 7)
    )


def test_after_kill_9_under_load_nothing_that_was_promised_is_forgotten(
    quota_server: Start, usage: Usage, connection: psycopg.Connection
) -> None:
    define(connection, limit=10**9)  # so that the kill comes among admissions, and not after them
    server = quota_server()
    server.ask("first", max_tokens=16)
    admitted: list[int] = []

    def load(worker: int) -> None:
        for number in itertools.count():
            try:
                reply = server.ask(f"w{worker}-{number}", max_tokens=16)
            except (OSError, http.client.HTTPException):
                return
            if reply.status == 200:
                admitted.append(reply.body["max_tokens"])

    workers = [threading.Thread(target=load, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    until(lambda: len(admitted) >= 40)
    server.kill()
    for worker in workers:
        worker.join()
    again = quota_server()
    until(lambda: again.ask("other", max_tokens=16).status in (200, 429))
    standing = again.quota()
    assert {*admitted} == {16}
    in_hand = len(workers) * 16  # written, and not answered
    assert standing["reserved"] <= sum(admitted) + 2 * 16 + in_hand
    assert sum(admitted) + 16 <= standing["reserved"] + standing["leased"]


def test_what_was_answered_before_it_was_written_passes_no_limit_after_a_kill(
    quota_server: Start, usage: Usage, connection: psycopg.Connection, owner: psycopg.Connection
) -> None:
    define(connection, limit=20_000)
    server = quota_server()
    assert server.ask("first").status == 200
    assert server.request("POST", "/v1/leases/~escrow/renew", {"tenant_id": "t1", "want": {}}).status == 404
    assert server.request("DELETE", "/v1/leases/~escrow", {"in_flight": 0}).status == 204, "nobody's, and it stays"
    owner.execute("set idle_in_transaction_session_timeout = 0")
    with owner.transaction():
        owner.execute("lock table usage.quota_journal in access exclusive mode")
        assert [server.ask(f"at-once-{number}").status for number in range(2)] == [200, 200]
        server.kill()
        owner.execute(  # else what it waits to write is written once it can be
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and application_name = 'tollbook quota journal'"
        )
    again = quota_server()
    standing = again.quota()
    assert (standing["reserved"], standing["leased"]) == (100, 200)
    granted = 300
    for number in itertools.count():
        reply = again.ask(f"then-{number}", max_tokens=5_000)
        if reply.status != 200:
            break
        granted += reply.body["max_tokens"]
    assert granted == 20_000


def test_an_old_process_ends_when_another_takes_its_shard(quota_server: Start, usage: Usage) -> None:
    old = quota_server()
    assert old.ask("r1").status == 200
    new = quota_server()
    assert new.ask("r2").status == 200
    with contextlib.suppress(OSError, http.client.HTTPException):
        assert old.ask("r3").status != 200
    assert old.process.wait(60) == 1
    assert new.quota()["reserved"] == 200


def test_sigterm_answers_what_is_here_and_a_restart_goes_on(quota_server: Start, usage: Usage) -> None:
    server = quota_server()
    server.ask("r1")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    assert quota_server().ask("r2", max_tokens=5000).body["max_tokens"] == 900


def test_without_the_database_callers_are_told_at_once_and_nothing_is_lost(
    quota_server: Start, usage: Usage, connection: psycopg.Connection, owner: psycopg.Connection
) -> None:
    server = quota_server(patient=False)
    until(lambda: server.ask("r1").status == 200)
    owner.execute("set idle_in_transaction_session_timeout = 0")
    with owner.transaction():
        owner.execute("lock table usage.quota_journal in access exclusive mode")
        assert server.ask("r2").status == 503
        assert server.ask("r3").status == 503
        assert server.request("GET", "/readyz").status == 503
        told = {"tenant_id": "t1", "request_id": "r9", "mode": "allow", "admitted": True}
        assert server.request("POST", "/v1/decisions", {"decisions": [told]}).status == 503
        assert server.request("DELETE", "/v1/leases/t1~1.1", {}).status == 503
    until(lambda: server.ask("r4").status == 200)
    # r2 was written when that was possible; r3 had not waited for what was known to be away
    assert server.quota()["reserved"] == 300


def test_a_slice_of_a_quota_is_granted_shrinks_and_comes_back(quota_server: Start, usage: Usage) -> None:
    server = quota_server()
    ask = {"tenant_id": "t1", "want": {"requests": 10, "input_tokens": 100, "output_tokens": 400}, "holder": "a"}
    first = server.request("POST", "/v1/leases", ask).body
    assert first["granted"] == {"requests": 10, "input_tokens": 100, "output_tokens": 400, "concurrency": 0}
    second = server.request("POST", "/v1/leases", ask | {"holder": "b"}).body
    assert second["granted"]["output_tokens"] == 150  # of 600 that are left, for two
    assert server.quota()["leased"] == 550
    assert server.settle("x", 70, lease_id=first["lease_id"]).status == 204
    assert (server.quota()["leased"], server.quota()["unconfirmed"]) == (480, 70)
    renewed = server.request("POST", f"/v1/leases/{first['lease_id']}/renew", ask | {"want": {"output_tokens": 40}})
    assert renewed.body["granted"]["output_tokens"] == 40
    other = server.request("POST", f"/v1/leases/{first['lease_id']}/renew", ask | {"model": "m-2"})
    assert other.status == 409
    assert server.request("DELETE", f"/v1/leases/{second['lease_id']}", {"in_flight": 0}).status == 204
    assert server.quota()["leased"] == 370
    assert server.request("POST", "/v1/leases/t1~9.9/renew", ask).status == 404
    named = ask | {"holder": "c", "name": "0a1b", "want": {"output_tokens": 50}}
    told = [server.request("POST", "/v1/leases", named).body for _ in range(2)]  # as when an answer was lost
    assert (told[0], told[0]["granted"]["output_tokens"], server.quota()["leased"]) == (told[1], 50, 420)
    assert server.request("POST", "/v1/leases", named | {"model": "m-2"}).status == 409
    assert server.request("DELETE", "/v1/leases/t1~0a1b", {"in_flight": 0}).status == 204
    assert server.quota()["leased"] == 370


def test_decisions_without_the_service_are_kept(quota_server: Start, usage: Usage) -> None:
    server = quota_server()
    told = {"tenant_id": "t1", "request_id": "r1", "mode": "allow", "admitted": True}
    assert server.request("POST", "/v1/decisions", {"decisions": [told]}).status == 204
    (found,) = server.request("GET", "/v1/decisions/t1/r1").body["decisions"]
    assert (found["decision"], found["mode"], found["admitted"]) == ("unasked", "allow", True)


def test_usage_is_known_without_a_question(quota_server: Start, usage: Usage) -> None:
    server = quota_server()
    server.ask("r0", max_tokens=16)
    usage.happens("r1", output=33)
    began = datetime.now(UTC)
    until(lambda: server.quota()["confirmed"] == 33)
    print(f"known after {(datetime.now(UTC) - began).total_seconds():.3f} s")


def scheduling(pid: int) -> dict[int, int]:
    """The policy of each thread of a process."""
    return {int(task.name): os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()}


def test_the_loop_alone_runs_before_others_where_that_is_wanted_and_allowed(quota_server: Start, usage: Usage) -> None:
    assert usage
    tried = subprocess.run(["chrt", "--rr", "1", "true"], check=False, capture_output=True)
    if tried.returncode:
        with pytest.raises(AssertionError, match="CAP_SYS_NICE"):
            quota_server("--realtime")
        return
    server = quota_server("--realtime")
    assert server.ask("r1").status == 200  # what reads the database has begun by then
    policies = scheduling(server.process.pid)
    assert policies.pop(server.process.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR
    assert len(policies) > 0
    assert set(policies.values()) == {os.SCHED_OTHER}
