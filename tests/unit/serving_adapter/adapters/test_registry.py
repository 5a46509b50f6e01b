"""Dated versions, shares, the way back, and the log of who did what; through the commands that people use."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from serving_adapter.adapters import lora_files
from serving_adapter.adapters.registry_folder import RegistryBroken, RegistryFolder
from serving_adapter.command_line import main
from serving_adapter.isolation.refusal import Refusal
from serving_adapter.isolation.registry import Registry, merged, new_version, registered
from serving_adapter.isolation.rules import Adapter, Resolver, Rules, Target
from tests.lora_builders import lora

RULES = Rules(models={"chat": [Target(engine="tiny", revision="r7")], "next": [Target(engine="tiny-next")]})


class Registered:
    """A registry in a folder, and its commands."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = RegistryFolder(root / "registry")
        self.root = root
        self._capsys = capsys

    def run(self, verb: str, *arguments: object, code: int = 0) -> Any:
        words = [verb, "--registry", str(self.folder.root), *map(str, arguments)]
        assert main(words if verb == "list" else [*words, "--by", "ana"]) == code
        out, err = self._capsys.readouterr()
        return err if code else json.loads(out) if out else None

    def register(self, fill: int, *more: object, tenant: str = "tenant_a", code: int = 0) -> Any:
        folder = lora(self.root / f"upload-{fill}", fill=fill)
        return self.run("register", folder, "--tenant", tenant, "--name", "fr", "--base", "tiny", *more, code=code)

    def resolver(self, unready: dict[str, str] | None = None) -> Resolver:
        registry = self.folder.read()
        paths = {version.engine: str(self.folder.files_of(version.engine)) for version in registry.versions}
        return Resolver(merged(RULES, registry, paths), unready or {})

    def revisions(self, asked: str = "fr") -> Counter[str]:
        resolver = self.resolver()
        found = (resolver.resolve("tenant_a", asked, f"request-{number}") for number in range(1000))
        return Counter(each.adapter_revision or each.model_revision for each in found)


@pytest.fixture
def there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Registered:
    return Registered(tmp_path, capsys)


def test_a_new_version_takes_its_share_and_is_rolled_back_by_one_command(there: Registered) -> None:
    first = there.register(1)
    assert there.revisions() == {first["revision"]: 1000}
    second = there.register(2, "--share", 10)
    day, _, number = second["revision"].rpartition(".")
    assert (f"{day}.1", number) == (first["revision"], "2")
    assert 60 < there.revisions()[second["revision"]] < 140
    there.run("share", "--tenant", "tenant_a", "--name", "fr", f"{second['revision']}=1")
    assert there.revisions() == {second["revision"]: 1000}
    there.run("rollback", "--tenant", "tenant_a", "--name", "fr")
    assert 60 < there.revisions()[second["revision"]] < 140
    there.run("rollback", "--tenant", "tenant_a", "--name", "fr")
    assert there.revisions() == {first["revision"]: 1000}
    assert "has not pointed" in there.run("rollback", "--tenant", "tenant_a", "--name", "fr", code=1)
    audited = there.folder.audited()
    told = [(entry["by"], entry["action"]) for entry in audited]
    assert told == [("ana", verb) for verb in ("register", "register", "share", "rollback", "rollback")]
    assert there.run("list")["as_audited"]


def test_a_models_name_points_to_two_revisions_by_share_and_back(there: Registered) -> None:
    there.run("share", "--name", "chat", "tiny@r7=95", "tiny-next@r8=5")
    assert 20 < there.revisions("chat")["r8"] < 80
    there.run("share", "--name", "chat", "tiny@r7=1")
    there.run("rollback", "--name", "chat")
    assert 20 < there.revisions("chat")["r8"] < 80
    there.run("share", "--name", "chat", "elsewhere@r1=1")
    with pytest.raises(ValueError, match="elsewhere"):
        there.resolver()
    assert "expected ENGINE@REVISION=SHARE" in there.run("share", "--name", "chat", "tiny", code=1)


def test_only_its_tenant_reaches_an_adapter_and_files_are_read_only_copies(there: Registered) -> None:
    made = there.register(1)
    copied = there.folder.files_of(made["engine"])
    assert sorted(path.name for path in copied.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(path.stat().st_mode & 0o222 == 0 for path in copied.iterdir())
    for tenant, asked in (("tenant_b", "fr"), ("tenant_b", made["engine"]), ("tenant_a", made["engine"])):
        with pytest.raises(Refusal) as refused:
            there.resolver().resolve(tenant, asked, "q")
        assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    unready = there.resolver({made["engine"]: "its first request failed"})
    with pytest.raises(Refusal, match="its first request failed") as refused:
        unready.resolve("tenant_a", "fr", "q")
    assert refused.value.status == 503
    with pytest.raises(Refusal) as refused:
        unready.resolve("tenant_b", "fr", "q")
    assert refused.value.status == 404
    other = there.register(1, tenant="tenant_b")
    assert other["engine"] != made["engine"], "the same content of another tenant is another adapter"


def test_what_is_served_is_what_was_checked_whoever_writes_to_the_upload_meanwhile(
    there: Registered, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = lora(there.root / "upload-1", fill=1)

    digest_of = lora_files.digest_of

    def once_it_was_looked_at(folder: Path) -> str:
        (upload / "adapter_model.safetensors").write_bytes(b"PK a pickle")
        return digest_of(folder)

    monkeypatch.setattr(lora_files, "digest_of", once_it_was_looked_at)
    made = there.register(1)
    kept = there.folder.files_of(made["engine"])
    assert lora_files.check(kept, lora_files.Bounds(["tiny"])).digest == made["digest"]
    assert "not compared" in made["shapes"]


def test_what_is_refused_is_audited_and_changes_nothing(there: Registered) -> None:
    there.register(1)
    assert "is there already" in there.register(1, code=1)
    assert "rank 8 is more than 4" in there.register(2, "--max-rank", 4, code=1)
    assert "may have 1: remove one" in there.register(2, "--max-versions", 1, code=1)
    assert "1 to 99 percent" in there.register(2, "--share", 100, code=1)
    assert "No such file" in there.register(2, "--base-shapes", there.root / "nowhere", code=1)
    audited = there.folder.audited()
    assert [entry["action"] for entry in audited] == ["register", *["register refused"] * 5]
    assert ["is there already" in audited[1]["why"], "may have 1" in audited[3]["why"]] == [True, True]
    assert len(list((there.folder.root / "files").iterdir())) == 1
    assert len(there.run("list")["adapters"]) == 1
    first = there.run("list")["adapters"][0]["revision"]
    wanted = ("--tenant", "tenant_a", "--name", "fr")
    assert "points to" in there.run("remove", *wanted, "--revision", first, code=1)
    assert "no such version" in there.run("remove", "--tenant", "tenant_b", "--name", "fr", code=1)
    there.run("remove", *wanted)
    assert there.run("list")["adapters"] == []
    with pytest.raises(Refusal):
        there.resolver().resolve("tenant_a", "fr", "q")


def test_an_audit_log_that_was_changed_is_seen_and_nothing_is_added_to_it(there: Registered) -> None:
    there.register(1)
    there.register(2)
    lines = there.folder.audit.read_bytes().splitlines(keepends=True)
    there.folder.audit.write_bytes(lines[0].replace(b"ana", b"bob") + lines[1])
    assert "line 2" in there.run("list", code=1)
    before = there.folder.file.read_bytes()
    there.register(3, code=1)
    assert there.folder.file.read_bytes() == before
    there.folder.audit.write_bytes(b"".join(lines) + b'{"torn')  # a command that was killed
    there.register(3)
    assert len(there.folder.audited()) == 3
    there.folder.file.write_bytes(before)
    assert not there.run("list")["as_audited"]
    there.folder.file.write_bytes(b"{")
    with pytest.raises(RegistryBroken):
        there.folder.read()


def test_names_that_would_reach_others_cannot_be_registered(there: Registered) -> None:
    for name in ("text", "../x", "a/b"):
        folder = lora(there.root / "upload")
        there.run("register", folder, "--tenant", "tenant_a", "--name", name, "--base", "tiny", code=1)
    version = new_version(Registry(), "tenant_a", "chat", "tiny", "d" * 64, 8, "2026-11-22")
    with pytest.raises(ValueError, match="name of a model"):
        merged(RULES, registered(Registry(), version, None, 1), {version.engine: "/x"})
    foreign = Adapter(tenant_id="tenant_b", name="own", engine="one", base="tiny")
    with pytest.raises(ValueError, match="two tenants"):
        Rules(models=RULES.models, adapters=[foreign, Adapter(tenant_id="tenant_a", name="fr", engine="one", base="x")])
