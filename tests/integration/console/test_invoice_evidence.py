"""`tollbook invoice explain | verify | preview` as finance and customers use them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from billing.database import engine_for
from tests.integration.billing.conftest import World
from tests.integration.billing.test_invoice_evidence import BILLED, TIERED, TRAFFIC, Arrivals
from tests.integration.console.conftest import Run


@pytest.fixture
def world(own_database_url: str) -> Iterator[World]:
    engine = engine_for(own_database_url)
    made = World(engine)
    made.tenant("acme", "bolt")
    made.plan(TIERED)
    made.subscribe("acme")
    made.subscribe("bolt")
    Arrivals(own_database_url).apply(*TRAFFIC)
    yield made
    engine.dispose()


def test_an_invoice_is_previewed_explained_exported_and_verified_offline(
    world: World, run: Run, tmp_path: Path
) -> None:
    preview = json.loads(run("invoice", "preview", "acme", "2026-10", "--json").stdout)
    assert preview["state"] == "preview"
    assert "(preview)" in run("invoice", "preview", "acme", "2026-10").stdout
    world.rate()
    world.draft()
    events, file = tmp_path / "events.jsonl", tmp_path / "invoice.json"
    shown = run("invoice", "show", preview["invoice_id"], "--json", "--events", str(events))
    assert json.loads(shown.stdout) == preview | {"state": "draft"}
    file.write_text(shown.stdout)

    nowhere = {"TOLLBOOK_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    done = run("invoice", "verify", str(file), "--events", str(events), **nowhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert "bills exactly these events" in done.stdout

    explained = json.loads(run("invoice", "explain", preview["invoice_id"], "--line", "1", "--json").stdout)
    assert explained["agrees"]
    assert [line["line_key"] for line in explained["lines"]] == ["in.v1.t1"]
    assert [request["request_id"] for request in explained["requests"]] == BILLED[:-1]
    (counter,) = explained["counters"]
    assert (counter["counted"], counter["found"], len(counter["hours"])) == ("450", "450", 4)
    rows = list(csv.DictReader(io.StringIO(run("invoice", "explain", preview["invoice_id"], "--csv").stdout)))
    assert sum(int(row["quantity"]) for row in rows if row["charge"] == "in") == 540
    people = run("invoice", "explain", preview["invoice_id"]).stdout
    assert people.count("as on its lines") == 4


def test_what_does_not_agree_exits_with_1(world: World, run: Run, tmp_path: Path) -> None:
    document = json.loads(run("invoice", "preview", "acme", "2026-10", "--json").stdout)
    file, events = tmp_path / "invoice.json", tmp_path / "events.jsonl"
    file.write_text(json.dumps(document | {"total": document["total"] + 1}))
    done = run("invoice", "verify", str(file), "--json")
    assert done.returncode == 1
    whats = [difference["what"] for difference in json.loads(done.stdout)["differences"]]
    assert whats == ["total, by net and tax", "amount_due, by total and payments"]
    file.write_text(json.dumps(document))
    events.write_text("")
    assert run("invoice", "verify", str(file)).returncode == 0
    assert run("invoice", "verify", str(file), "--events", str(events)).returncode == 1
    events.write_text("{}\n")
    refused = run("invoice", "verify", str(file), "--events", str(events))
    assert (refused.returncode, "line 1" in refused.stderr) == (1, True)
    file.write_text("[]")
    assert "no invoice document" in run("invoice", "verify", str(file)).stderr
