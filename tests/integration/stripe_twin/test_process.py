"""The twin as a process: what it keeps, how it starts and ends, and its own addresses."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import stripe

from tests.fixtures_stripe_twin import REPOSITORY, StripeTwin, TwinProcess

Make = Callable[[], TwinProcess]


def run_to_its_end(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "devstack.stripe_twin", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)


def test_all_survives_kill_9(make_stripe_twin: Make) -> None:
    process = make_stripe_twin()
    twin = process.start()
    client = twin.client()
    customer = client.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    invoice = client.v1.invoices.create({"customer": customer.id, "number": "N-1"})
    client.v1.invoices.add_lines(invoice.id, {"lines": [{"amount": 700}, {"amount": 7}]})
    done = client.v1.invoices.finalize_invoice(invoice.id)
    process.kill()

    again = StripeTwin(process.start().url, twin.key).client()
    assert again.v1.customers.retrieve(customer.id).to_dict() == customer.to_dict() | {"currency": "usd"}
    assert again.v1.invoices.retrieve(invoice.id).to_dict() == done.to_dict()
    replayed = again.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    assert replayed.to_dict() == customer.to_dict()
    with pytest.raises(stripe.IdempotencyError):
        again.v1.customers.create({"name": "B"}, {"idempotency_key": "k"})


@pytest.mark.parametrize(("checkpoint", "survives"), [("before_execute", False), ("after_commit", True)])
def test_a_kill_in_the_middle_of_a_request(make_stripe_twin: Make, checkpoint: str, survives: bool) -> None:
    """Before it runs nothing is left of it, its key included; after the commit only the reply is lost."""
    process = make_stripe_twin()
    twin = process.start()
    client = twin.client()
    hold = twin.hold(checkpoint, "POST", "/v1/customers")
    with ThreadPoolExecutor() as pool:
        lost = pool.submit(client.v1.customers.create, {"name": "A"}, {"idempotency_key": "k"})
        hold.wait()
        process.kill()
        with pytest.raises(stripe.APIConnectionError):
            lost.result(timeout=60)
    again = StripeTwin(process.start().url, twin.key).client()
    assert len(again.v1.customers.list().data) == int(survives)
    retried = again.v1.customers.create({"name": "A"}, {"idempotency_key": "k"})
    assert [customer.id for customer in again.v1.customers.list().data] == [retried.id]
    assert retried.last_response is not None
    assert ("idempotent-replayed" in retried.last_response.headers) is survives


def test_sigterm_ends_it_in_order(make_stripe_twin: Make) -> None:
    process = make_stripe_twin()
    process.start().client().v1.customers.create({})
    assert process.stop() == 0
    assert process.log.read_text() == ""


def test_two_twins_do_not_share_a_folder(make_stripe_twin: Make) -> None:
    process = make_stripe_twin()
    process.start()
    second = run_to_its_end("--port", "0", "--data", str(process.data))
    assert (second.returncode, second.stderr.count("\n")) == (1, 1)
    assert "in use by another twin" in second.stderr


def test_a_port_that_is_taken_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = run_to_its_end("--port", str(port), "--data", str(tmp_path))
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for data in (tmp_path / "file", tmp_path / "file" / "below"):
        ended = run_to_its_end("--port", "0", "--data", str(data))
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
        assert f"cannot write to data folder {data}" in ended.stderr


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "twin.sqlite3").write_text("this is not a database, and long enough to look at" * 50)
    ended = run_to_its_end("--port", "0", "--data", str(tmp_path))
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
    assert "twin.sqlite3" in ended.stderr


def test_health(stripe_twin: StripeTwin) -> None:
    status, _, body = stripe_twin.call("GET", "/_twin/health")
    assert (status, body) == (200, {"status": "ok"})


def test_the_request_log_tells_what_was_asked_and_never_the_key(stripe_twin: StripeTwin) -> None:
    client = stripe_twin.client()
    for _ in range(2):
        made = client.v1.customers.create({"name": "logged", "metadata": {"a": "1"}}, {"idempotency_key": "k-log"})
    assert made.last_response is not None
    replayed_id = made.last_response.headers["request-id"]
    _, _, log = stripe_twin.call("GET", f"/_twin/requests?id={replayed_id}")
    (entry,) = log["data"]
    assert (entry["method"], entry["path"], entry["status"]) == ("POST", "/v1/customers", 200)
    assert entry["params"] == {"name": "logged", "metadata": {"a": "1"}}
    assert (entry["idempotency_key"], entry["replayed"]) == ("k-log", True)
    assert entry["request_id"] == replayed_id
    _, _, whole = stripe_twin.call("GET", "/_twin/requests?limit=3")
    assert len(whole["data"]) == 3
    assert stripe_twin.key not in str(whole)


def test_no_file_of_the_twin_holds_a_key(make_stripe_twin: Make) -> None:
    process = make_stripe_twin()
    twin = process.start()
    twin.client().v1.customers.create({"description": f"my key is {twin.key}"}, {"idempotency_key": "k"})
    twin.call("GET", "/v1/customers", headers={"Authorization": "Bearer sk_live_donotkeepthis"})
    process.stop()
    stored = b"".join(path.read_bytes() for path in process.data.iterdir())
    assert b"donotkeepthis" not in stored
    log = stored.count(twin.key.encode())
    assert log <= 3, "only in the object that the caller put it into, its event, and the reply stored for replay"


def test_objects_can_be_looked_at(stripe_twin: StripeTwin) -> None:
    client = stripe_twin.client()
    customer = client.v1.customers.create({"name": "seen"})
    client.v1.customers.delete(customer.id)
    _, _, body = stripe_twin.call("GET", "/_twin/objects/customer?limit=1000")
    (found,) = [entry for entry in body["data"] if entry["id"] == customer.id]
    assert (found["name"], found["_deleted"]) == ("seen", True)
    status, _, one = stripe_twin.call("GET", f"/_twin/objects/customer/{customer.id}")
    assert (status, one["id"]) == (200, customer.id)
    assert stripe_twin.call("GET", "/_twin/objects/customer/cus_none")[0] == 404
    assert stripe_twin.call("POST", "/_twin/holds", "{}")[0] == 400
    assert stripe_twin.call("GET", "/_twin/holds/99999")[0] == 404
