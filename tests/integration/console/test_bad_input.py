"""Bad input and missing services: a message of a line or two that says what to do, no traceback, nothing lost."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.builders import EVENT
from tests.fixtures_services import Databases
from tests.integration.console.conftest import Run

NOWHERE = "127.0.0.1:1"
LINES_AT_MOST = 3


def complaint(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """What a refused command says; checks that it says it briefly."""
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= LINES_AT_MOST or code == 2
    return done.stderr


def test_bad_lines_are_named_and_the_good_ones_sent(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    lines = [EVENT, EVENT | {"output_tokens": -1}, {k: v for k, v in EVENT.items() if k != "model"}]
    file.write_text(
        "\n".join(map(json.dumps, lines)) + '\n{"tenant_id": "torn\n\n' + json.dumps(EVENT | {"attempt": 2})
    )
    checked = run("events", "validate", str(file), "--json")
    bad = [(b["line"], b["field"], b["reason"]) for b in json.loads(checked.stdout)["bad"]]
    assert bad == [(2, "output_tokens", "invalid"), (3, "model", "invalid"), (4, "", "torn")]
    sent = run("events", "ingest", str(file))
    assert sent.returncode == 1
    assert "2 of 5 lines sent, 3 refused" in sent.stdout
    run("tenant", "add", "tenant_1")
    assert "applied 2, duplicates 0, quarantined 0" in run("streams", "run", "--drain").stdout


def test_an_unknown_tenants_events_are_kept_in_quarantine_until_they_are_released_or_discarded(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(f"{json.dumps(EVENT)}\n{json.dumps(EVENT | {'tenant_id': 'stranger'})}")
    assert run("events", "ingest", str(file)).returncode == 0
    assert "quarantined 2" in run("streams", "run", "--drain").stdout
    held = {row["tenant_id"]: row for row in json.loads(run("events", "quarantine", "list", "--json").stdout)}
    assert {row["reason"] for row in held.values()} == {"unknown_tenant"}
    shown = json.loads(run("events", "quarantine", "show", str(held["tenant_1"]["quarantine_id"])).stdout)
    assert json.loads(shown["message"]) == EVENT
    refused = run("events", "quarantine", "release", "--reason", "unknown_tenant")
    assert (refused.returncode, "0 released, 2 not" in refused.stdout) == (1, True)
    run("tenant", "add", "tenant_1")
    assert "1 released, 1 not" in run("events", "quarantine", "release", "--reason", "unknown_tenant").stdout

    stranger = str(held["stranger"]["quarantine_id"])
    discard = ("events", "quarantine", "discard", stranger, "--as", "ada")
    assert "--reason" in complaint(run(*discard), code=2)
    assert "1 would be discarded" in run(*discard, "--reason", "a test emitter", "--dry-run").stdout
    (waits,) = json.loads(run("events", "quarantine", "list", "--json").stdout)
    assert waits["tenant_id"] == "stranger"
    assert "1 discarded" in run(*discard, "--reason", "a test emitter").stdout
    assert json.loads(run("events", "quarantine", "list", "--json").stdout) == []
    kept = {row["tenant_id"]: row for row in json.loads(run("events", "quarantine", "list", "--all", "--json").stdout)}
    assert (kept["stranger"]["outcome"], kept["stranger"]["resolved_by"]) == ("discarded", "ada")
    acts = json.loads(run("audit", "list", "--json").stdout)
    (act,) = [act for act in acts if act["action"] == "quarantine.discarded"]
    assert (act["actor"], act["subject"], act["detail"]["reason"]) == ("ada", stranger, "a test emitter")
    assert "discarded already, by ada" in complaint(run(*discard, "--reason", "once more"))


@pytest.mark.parametrize("verb", ["list", "release"])
def test_a_reason_that_there_is_not_is_refused(run: Run, verb: str) -> None:
    done = run("events", "quarantine", verb, "--reason", "nonsense")
    assert "unknown_tenant" in complaint(done, code=2)


@pytest.mark.parametrize(
    ("price", "complaint_is"),
    [("0.5", "quotes"), ('"-1"', "negative"), ('"0.0000000000000000001"', "decimals"), ('"abc"', "no price")],
)
def test_a_bad_price_is_refused_by_line_and_field(run: Run, tmp_path: Path, price: str, complaint_is: str) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(
        "plan: p\ncurrency: USD\nversions:\n  - version: v1\n    from: 2026-01-01\n    charges:\n"
        f"      - {{key: a, model: per_unit, metric: input, price: {price}}}\n"
    )
    text = complaint(run("plan", "apply", str(file)))
    assert "plan.yaml:7" in text
    assert "versions[0].charges[0].price" in text
    assert complaint_is in text


def test_without_kafka_nothing_is_sent_and_it_says_so(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(EVENT))
    assert "make up" in complaint(run("events", "ingest", str(file), TOLLBOOK_KAFKA=NOWHERE))
    assert "make up" in complaint(run("streams", "run", "--drain", TOLLBOOK_KAFKA=NOWHERE))


@pytest.mark.parametrize(
    "arguments",
    [("tenant", "list"), ("usage", "show", "t", "--period", "2026-10"), ("streams", "status"), ("plan", "list"),
     ("streams", "run", "--drain"), ("invoice", "list"), ("db", "upgrade"), ("db", "check"),
     ("ledger", "trial-balance")],
)  # fmt: skip
def test_without_postgres_every_command_says_what_to_do(run: Run, arguments: tuple[str, ...]) -> None:
    url = f"postgresql://nobody:secret@{NOWHERE}/nothing"
    text = complaint(run(*arguments, TOLLBOOK_DATABASE_URL=url))
    assert "make up" in text
    assert "secret" not in text


def test_an_empty_database_asks_for_the_upgrade(run: Run, make_database: Databases) -> None:
    text = complaint(run("tenant", "list", TOLLBOOK_DATABASE_URL=make_database.without_schema()))
    assert "tollbook db upgrade" in text


def test_a_topic_that_does_not_exist_is_named(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(EVENT))
    text = complaint(run("events", "ingest", str(file), TOLLBOOK_TOPIC_PREFIX="test-nothing-here"))
    assert "test-nothing-here.usage.v1" in text


@pytest.mark.parametrize(
    "arguments",
    [("usage", "show", "nobody", "--period", "2026-10"), ("tenant", "show", "nobody"), ("plan", "show", "nothing"),
     ("invoice", "show", "nothing"),
     ("events", "quarantine", "show", "7")],
)  # fmt: skip
def test_what_does_not_exist_is_said_in_a_line(run: Run, arguments: tuple[str, ...]) -> None:
    complaint(run(*arguments))


@pytest.mark.parametrize(
    "arguments",
    [("tenant", "add", "two words"), ("tenant", "add", "_reserved"), ("events", "ingest", "/nowhere/at/all"),
     ("close", "run", "2026-Q4", "--test"), ("close", "run", "2026-10", "--now", "2026-12-02T00:00:00Z"),
     ("usage", "show", "t", "--from", "2026-10-01T00:30:00Z", "--to", "2026-10-02T00:00:00Z"),
     ("usage", "show", "tenant_1", "--period", "banana"), ("invoice", "list", "--period", "2026-13"),
     ("tenant", "add", "t", "--as", " "),
     ("close", "run", "2026-10", "--test", "--now", "0001-01-01T00:00:00+23:00"),
     ("ledger", "trial-balance", "--period", "foo"), ("ledger", "trial-balance", "--period", "2026-Q4"),
     ("reconcile", "run", "banana", "--no-stripe"), ("reconcile", "run", "2026-10-08..2026-10-01", "--no-stripe"),
     ("subscription", "start", "p", "t"), ("nonsense",)],
)  # fmt: skip
def test_wrong_use_ends_with_two(run: Run, arguments: tuple[str, ...]) -> None:
    complaint(run(*arguments), code=2)


def test_a_month_that_has_not_ended_is_not_closed(run: Run) -> None:
    now = "2026-10-31T23:59:59Z"
    stripe = {"TOLLBOOK_STRIPE_KEY": "sk_test_x", "TOLLBOOK_STRIPE_API": f"http://{NOWHERE}"}
    assert "2026-11-01" in complaint(run("close", "run", "2026-10", "--test", "--now", now, **stripe))


def test_what_a_waiver_may_be_worth_is_an_interval_of_a_currency(run: Run) -> None:
    waive = ("close", "waive", "2026-10", "R9", "quarantine/17", "--reason", "gone", "--as", "cyd")
    assert "--low 5 to --high 1" in complaint(run(*waive, "--low", "5", "--high", "1", "--currency", "USD"))
    assert "'banana' is no currency" in complaint(run(*waive, "--low", "0", "--high", "1", "--currency", "banana"))
    assert "no difference quarantine/17" in complaint(run(*waive, "--low", "0", "--high", "1", "--currency", "USD"))


def test_a_live_key_with_a_twin_is_refused_and_never_shown(run: Run) -> None:
    stripe = {"TOLLBOOK_STRIPE_KEY": "sk_live_secret", "TOLLBOOK_STRIPE_API": f"http://{NOWHERE}"}
    done = run("close", "run", "2026-10", "--test", **stripe)
    assert "live key" in complaint(done)
    assert "sk_live_secret" not in done.stderr + done.stdout


def test_files_and_names_that_are_no_utf_8_are_no_crash(run: Run, tmp_path: Path) -> None:
    latin = tmp_path / "tenants.csv"
    latin.write_bytes("tenant_id,name\nt,Köln\n".encode("latin-1"))
    assert "cannot read" in complaint(run("tenant", "import", str(latin)), code=2)
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/k\xf6ln.jsonl"))
    file.write_text(json.dumps(EVENT))
    assert run("events", "ingest", str(file)).returncode == 0


def test_the_platforms_own_ids_are_known_without_being_registered(run: Run) -> None:
    assert run("usage", "show", "_platform", "--period", "2026-10").returncode == 0


def test_a_name_that_no_billing_account_can_have_is_refused_in_words(run: Run) -> None:
    text = complaint(run("subscription", "start", "p", "t", "--from", "2026-10-01", "--account", "x y"))
    assert "'x y' is no name of a billing account" in text


def test_a_dry_run_of_the_close_changes_nothing_and_needs_no_stripe(run: Run) -> None:
    stripe = {"TOLLBOOK_STRIPE_KEY": "sk_test_x", "TOLLBOOK_STRIPE_API": f"http://{NOWHERE}"}
    done = run("close", "run", "2026-10", "--test", "--now", "2026-12-02T00:00:00Z", "--dry-run", **stripe)
    assert (done.returncode, "0 rated lines would be posted" in done.stdout) == (0, True)
    assert json.loads(run("audit", "list", "--json").stdout) == []
