"""`tollbook key`: the secret is shown once, kept nowhere, and a key can be ended but not edited."""

from __future__ import annotations

import json

import psycopg
import pytest

from streams.http.access_keys import digest_of
from tests.integration.console.conftest import Run

ADD = ("key", "add", "--kind", "emitter", "--name", "gateway-eu")


def test_a_secret_is_shown_once_and_only_its_hash_is_stored(run: Run, connection: psycopg.Connection) -> None:
    run("tenant", "add", "a", "b")
    added = run(*ADD, "--tenant", "a", "--tenant", "b", "--as", "ada")
    secret = added.stdout.strip()
    assert added.returncode == 0
    assert secret.startswith("tbk_")
    assert secret not in added.stderr
    (key,) = json.loads(run("key", "list", "--json").stdout)
    assert (key["kind"], key["name"], key["tenants"], key["revoked_at"]) == ("emitter", "gateway-eu", "a, b", None)
    stored = connection.execute("select secret_sha256 from usage.access_keys").fetchone()
    assert stored == (digest_of(secret),)
    acts = json.loads(run("audit", "list", "--json").stdout)
    assert [(act["actor"], act["action"]) for act in acts if act["subject"] == key["key_id"]] == [("ada", "key.add")]
    assert secret not in json.dumps(acts)


def test_the_secret_can_be_had_as_json(run: Run) -> None:
    shown = json.loads(run(*ADD, "--all-tenants", "--json").stdout)
    assert shown["secret"].startswith("tbk_")
    assert shown["tenants"] == "all"


def test_a_dry_run_makes_no_key_and_shows_no_secret(run: Run) -> None:
    tried = run(*ADD, "--all-tenants", "--dry-run")
    assert "would add" in tried.stdout
    assert "tbk_" not in tried.stdout + tried.stderr
    assert json.loads(run("key", "list", "--json").stdout) == []


def test_a_key_is_revoked_once_and_for_good(run: Run, connection: psycopg.Connection) -> None:
    run(*ADD, "--all-tenants")
    (key,) = json.loads(run("key", "list", "--json").stdout)
    assert "would be revoked" in run("key", "revoke", key["key_id"], "--dry-run").stdout
    assert f"{key['key_id']} revoked" in run("key", "revoke", key["key_id"], "--as", "ada").stdout
    assert "revoked before" in run("key", "revoke", key["key_id"]).stdout
    (key,) = json.loads(run("key", "list", "--json").stdout)
    assert key["revoked_at"] is not None
    acts = json.loads(run("audit", "list", "--json").stdout)
    assert (acts[0]["actor"], acts[0]["action"]) == ("ada", "key.revoke")
    for statement in ("update usage.access_keys set all_tenants = true", "delete from usage.key_revocations"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (ADD, 2, "--all-tenants"),
        ((*ADD, "--tenant", "stranger"), 1, "stranger is not registered"),
        (("key", "add", "--kind", "root", "--name", "x", "--all-tenants"), 2, "root"),
        (("key", "add", "--kind", "emitter", "--name", "a b", "--all-tenants"), 2, "no key name"),
        (("key", "revoke", "key_000000000000"), 1, "there is no key"),
    ],
)
def test_wrong_keys_are_refused(run: Run, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = run(*arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert says in " ".join(done.stderr.split())
