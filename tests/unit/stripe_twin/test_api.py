"""Requests without HTTP: what time, chance and broken handlers do to idempotency."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from devstack.stripe_twin import request_log
from devstack.stripe_twin.api import Api, HttpReply, HttpRequest
from devstack.stripe_twin.checkpoints import Checkpoints
from devstack.stripe_twin.clock import Clock
from devstack.stripe_twin.faults import Faults, RateLimits
from devstack.stripe_twin.ids import Ids
from devstack.stripe_twin.resources import ROUTES
from devstack.stripe_twin.store import Store
from devstack.stripe_twin.webhooks import Webhooks

DAY = 24 * 60 * 60
START = 1_790_000_000


class Bench:
    """An API on a store, with a clock that the test moves."""

    def __init__(self, folder: Path) -> None:
        self.now = START
        self.store = Store.open(folder)
        clock = Clock(lambda: self.now)
        webhooks = Webhooks(self.store, clock)
        self.api = Api(
            self.store, clock, Ids(random.Random(7)), Checkpoints(), Faults(), RateLimits(), webhooks, "http://twin"
        )

    def post(self, path: str, body: str, key: str | None) -> HttpReply:
        headers = {"authorization": "Bearer sk_test_1"} | ({"idempotency-key": key} if key else {})
        return asyncio.run(self.api.answer(HttpRequest("POST", path, "", headers, body.encode())))

    def customers(self) -> int:
        with self.store.transaction() as connection:
            (count,) = connection.execute("SELECT count(*) FROM objects WHERE type = 'customer'").fetchone()
        return int(count)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.store.close()


def shown(reply: HttpReply) -> Any:
    return json.loads(reply.body)


def test_a_key_lives_24_hours_of_the_twins_clock(bench: Bench) -> None:
    first = bench.post("/v1/customers", "name=A", "k")
    bench.now = START + DAY - 1
    assert bench.post("/v1/customers", "name=A", "k").body == first.body
    assert bench.post("/v1/customers", "name=B", "k").status == 400
    bench.now = START + DAY
    later = bench.post("/v1/customers", "name=B", "k")
    assert later.status == 200
    assert shown(later)["id"] != shown(first)["id"]
    assert "Idempotent-Replayed" not in later.headers
    assert bench.customers() == 2


def test_expired_keys_are_removed_from_the_store(bench: Bench) -> None:
    for number in range(3):
        bench.post("/v1/customers", "", f"old-{number}")
    bench.now = START + DAY
    bench.post("/v1/customers", "", "new")
    with bench.store.transaction() as connection:
        keys = {row["key"] for row in connection.execute("SELECT key FROM idempotency_keys")}
    assert keys == {"new"}


def test_a_500_of_a_handler_changes_nothing_and_is_replayed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The handler breaks after it has written: the object is gone, the stored reply is not."""
    create = next(route for route in ROUTES if (route.method, route.path) == ("POST", "/v1/customers"))

    def broken(call: Any) -> Any:
        create.handler(call)
        raise RuntimeError("broken after writing")

    with monkeypatch.context() as patched:
        patched.setattr(bench.api._router, "match", lambda method, path: (replace(create, handler=broken), {}))
        first = bench.post("/v1/customers", "name=A", "k")
    assert (first.status, shown(first)["error"]["type"]) == (500, "api_error")
    assert first.headers["Stripe-Should-Retry"] == "false"
    assert "broken after writing" in capsys.readouterr().err
    again = bench.post("/v1/customers", "name=A", "k")
    assert (again.status, again.body) == (500, first.body)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert bench.customers() == 0
    assert bench.post("/v1/customers", "name=A", "other").status == 200


def test_a_crash_before_the_commit_leaves_neither_object_nor_key(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Object, stored reply and log entry are one transaction: the last write fails, so all are gone."""

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(request_log, "append", fail)
        with pytest.raises(KeyboardInterrupt):
            bench.post("/v1/customers", "name=A", "k")
    assert bench.customers() == 0
    assert "Idempotent-Replayed" not in bench.post("/v1/customers", "name=A", "k").headers
    assert bench.customers() == 1


def test_the_log_masks_secrets_and_keeps_a_bounded_number(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "KEPT_REQUESTS", 5)
    monkeypatch.setattr(request_log, "_PRUNE_EVERY", 1)
    for number in range(8):
        bench.post("/v1/customers", f"description=sk_live_{number}abc and whsec_x{number}", None)
    with bench.store.transaction() as connection:
        entries = request_log.latest(connection, 100)
    assert len(entries) == 5
    assert {entry["params"]["description"] for entry in entries} == {"sk_live_*** and whsec_***"}


def test_times_are_the_twins_clock(bench: Bench) -> None:
    bench.now = START + 5
    assert shown(bench.post("/v1/customers", "", None))["created"] == START + 5
