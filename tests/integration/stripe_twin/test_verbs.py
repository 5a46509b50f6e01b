"""`tollbook dev twin`: each verb does to a running twin what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from devstack import twin_control
from devstack.commands import devstack_app
from devstack.stack import STRIPE_API
from tests.fixtures_stripe_twin import TwinProcess


def test_each_verb_steers_the_twin_that_the_environment_names(
    make_stripe_twin: Callable[[], TwinProcess], monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = make_stripe_twin().start()
    monkeypatch.setattr(twin_control, "environment", lambda: {STRIPE_API: twin.url})

    def run(words: str, code: int = 0) -> Any:
        done = CliRunner().invoke(devstack_app, ["twin", *words.split()])
        assert done.exit_code == code, done.output
        return json.loads(done.output) if code == 0 else done.output

    run("fault refused_400 --path /v1/customers --code account_closed --skip 1 --times 2")
    answers = [twin.call("POST", "/v1/customers") for _ in range(4)]
    assert [status for status, *_ in answers] == [200, 400, 400, 200]
    assert answers[1][2]["error"]["code"] == "account_closed"
    assert [fault["met"] for fault in run("faults")["data"]] == [2]
    assert run("faults --clear")["data"] == []
    before = run("clock")
    assert run("clock --advance 3d")["ahead"] == before["ahead"] + 3 * 86_400
    assert "is no duration" in run("clock --advance soon", code=2)
    assert run("limits --all 25 --endpoint 5") == {"all_per_s": 25, "endpoint_per_s": 5}
    assert "go together" in run("limits --all 25", code=2)
    assert run("limits") == {"all_per_s": 25, "endpoint_per_s": 5}
    assert run("limits --none") == {"all_per_s": None, "endpoint_per_s": None}
    assert run("webhooks --repeat 1 --lose 0.5 --delay 2") == {"under_way": 0}
    customers = run("show customer --limit 1")["data"]
    assert (len(customers), run(f"show customer {customers[0]['id']}")["id"]) == (1, customers[0]["id"])
    assert run("show requests --limit 2")["data"][0]["path"] == "/v1/customers"
