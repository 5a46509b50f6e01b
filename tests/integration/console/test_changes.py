"""Changes are audited, can be tried out first, and can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

from devstack.traffic import azure_hour
from tests.integration.console.conftest import Run


def listed(run: Run, *arguments: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(run(*arguments, "--json").stdout)
    return found


def test_a_dry_run_says_what_would_change_and_changes_nothing(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(azure_hour.plan_text())
    assert "2 would be registered" in run("tenant", "add", "a", "b", "--dry-run").stdout
    assert "would add v1" in run("plan", "apply", str(plan), "--dry-run").stdout
    assert listed(run, "tenant", "list") == listed(run, "plan", "list") == listed(run, "audit", "list") == []


def test_changes_name_who_made_them_and_can_be_repeated(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(azure_hour.plan_text())
    for _ in range(2):
        assert run("tenant", "add", "a", "--as", "ada").returncode == 0
        assert run("plan", "apply", str(plan), "--as", "ada").returncode == 0
        assert run("subscription", "start", "azure-hour", "a", "--from", "2026-10-01", "--as", "ada").returncode == 0
    acts = [(entry["actor"], entry["action"], entry["subject"]) for entry in listed(run, "audit", "list")]
    assert sorted(acts) == [
        ("ada", "account.add", "a"),
        ("ada", "plan.apply", "azure-hour"),
        ("ada", "subscription.start", "a"),
        ("ada", "tenant.add", "a"),
    ]
    (subscription,) = listed(run, "subscription", "list")
    assert (subscription["tenant_id"], subscription["plan"]) == ("a", "azure-hour")


def test_a_subscription_is_changed_and_cancelled_in_mid_hour_and_again_without_effect(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    for name in ("azure-hour", "dearer"):
        plan.write_text(azure_hour.plan_text().replace("plan: azure-hour", f"plan: {name}"))
        assert run("plan", "apply", str(plan)).returncode == 0
    run("tenant", "add", "a")
    run("subscription", "start", "azure-hour", "a", "--from", "2026-10-01")
    change = ("subscription", "change", "a", "dearer", "--from", "2026-10-16T12:30:15.25Z")
    assert "would be on plan dearer" in run(*change, "--dry-run").stdout
    assert [row["plan"] for row in listed(run, "subscription", "list")] == ["azure-hour"]
    assert [run(*change).stdout.split()[2], run(*change).stdout.split()[2]] == ["is", "was"]
    cancel = ("subscription", "cancel", "a", "--from", "2026-10-20T00:00:01Z")
    assert [run(*cancel).stdout.split()[4], run(*cancel).stdout.split()[4]] == ["ends", "ended"]
    found = [(row["plan"], row["from"], row["to"]) for row in listed(run, "subscription", "list")]
    assert found == [
        ("azure-hour", "2026-10-01T00:00:00Z", "2026-10-16T12:30:15.250000Z"),
        ("dearer", "2026-10-16T12:30:15.250000Z", "2026-10-20T00:00:01Z"),
    ]
    refused = run("subscription", "change", "a", "azure-hour", "--from", "2026-11-01")
    assert (refused.returncode, "has no subscription at 2026-11-01" in refused.stderr) == (1, True)


def test_an_applied_plan_version_never_changes_and_another_can_take_its_place(run: Run, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(azure_hour.plan_text())
    run("plan", "apply", str(plan))
    plan.write_text(azure_hour.plan_text().replace('"0.59"', '"0.60"'))
    done = run("plan", "apply", str(plan))
    assert done.returncode == 1
    assert "llama-input" in done.stderr
    corrected = azure_hour.plan_text().replace('"0.59"', '"0.60"').replace("version: v1", "version: v1-fixed")
    plan.write_text(corrected)
    assert listed(run, "plan", "diff", str(plan))[0] == {"version": "v1-fixed", "difference": "takes the place of v1"}
    assert "added v1-fixed in place of v1" in run("plan", "apply", str(plan)).stdout
    first, second = listed(run, "plan", "list")
    assert (first["version"], second["version"], first["from"]) == ("v1", "v1-fixed", second["from"])
    for row in (first, second):
        as_of = ("--as-of", str(row["recorded_at"]), "--at", "2026-10-09T00:00:00Z")
        terms, *charges = listed(run, "plan", "show", "azure-hour", *as_of)
        assert (terms["model"], terms["version"]) == ("terms", "")
        assert {charge["version"] for charge in charges} == {row["version"]}


def test_listings_are_one_json_document_or_csv_with_a_header(run: Run) -> None:
    run("tenant", "add", "a", "b")
    assert [row["tenant_id"] for row in listed(run, "tenant", "list")] == ["a", "b"]
    assert run("tenant", "list", "--csv").stdout.splitlines()[0] == "tenant_id,name,state,registered_at"


def test_status_shows_lag_and_counts(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text("\n".join(line for line, _ in zip(azure_hour.lines(), range(50), strict=False)))
    run("events", "ingest", str(file))
    assert json.loads(run("streams", "status", "--json").stdout)["lag"] == 50
    run("streams", "run", "--drain")
    status = json.loads(run("streams", "status", "--json").stdout)
    assert (status["lag"], status["quarantine"]) == (0, {"unknown_tenant": 50})
    assert float(status["per_second"]) > 0
    assert [status["late"], *(row["late"] for row in status["partitions"])] == [0] * 9
    assert [row["lag"] for row in status["replicas"]["partitions"]] == [0]
