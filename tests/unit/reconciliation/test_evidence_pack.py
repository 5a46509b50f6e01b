"""An evidence pack by itself: what this version reads, and how it says what it does not."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from reconciliation.close import contents
from reconciliation.close.evidence import pack_files, renderings, writing
from reconciliation.close.evidence.verifying import verify_evidence
from reconciliation.errors import CloseRefused, EvidenceBroken


def pack(folder: Path, of_pack: str, of_content: str) -> Path:
    """As little of a pack as tells of which format it is."""
    account: dict[str, Any] = {"format": of_content, "billing_account": "acme", "tenants": [], "documents": []}
    listed = json.dumps(account) + "\n"
    said = {"file": "accounts.jsonl", "sha256": hashlib.sha256(listed.encode()).hexdigest()}
    manifest = json.dumps({"format": of_pack, "month": "2026-10", "files": [said]})
    (folder / writing.CONTENT).mkdir()
    (folder / writing.SIGNATURES).mkdir()
    (folder / writing.CONTENT / "accounts.jsonl").write_text(listed)
    (folder / writing.CONTENT / writing.MANIFEST).write_text(manifest)
    digest = hashlib.sha256(manifest.encode()).hexdigest()
    (folder / writing.SIGNATURES / writing.MANIFEST_HASH).write_text(f"{digest}  content/manifest.json\n")
    return folder


@pytest.mark.parametrize(
    ("of_pack", "of_content", "told"),
    [
        ("tollbook.close_evidence.v1", contents.FORMAT, "manifest.json: written by an older or newer version"),
        (writing.FORMAT, "tollbook.close_content.v1", "accounts.jsonl: acme: written by an older or newer version"),
    ],
)
def test_evidence_of_another_format_is_refused_by_its_name(
    tmp_path: Path, of_pack: str, of_content: str, told: str
) -> None:
    with pytest.raises(EvidenceBroken, match=told):
        verify_evidence(pack(tmp_path, of_pack, of_content))


@pytest.mark.parametrize("names", [["../out"], ["/tmp/out"], ["pack/a", "pack/a"]])
def test_a_tar_writes_nothing_beside_its_folder_and_no_file_twice(tmp_path: Path, names: list[str]) -> None:
    file = tmp_path / "pack.tar"
    with tarfile.open(file, "w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(EvidenceBroken, match="is no tar of an evidence pack"):
        verify_evidence(file)


def test_a_file_that_is_no_tar_is_told_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "pack.tar"
    file.write_text("not a tar\n")
    with pytest.raises(EvidenceBroken, match=r"pack.tar is no tar [^:\n]+: file could not be opened successfully\Z"):
        verify_evidence(file)


def test_a_tar_has_no_links(tmp_path: Path) -> None:
    file, link = tmp_path / "pack.tar", tarfile.TarInfo("pack/link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(file, "w") as tar:
        tar.addfile(link)
    with pytest.raises(EvidenceBroken, match="pack/link is no file of a pack"):
        verify_evidence(file)


class Killed(BaseException):
    """Nothing runs after it."""


def test_a_pack_that_was_cut_off_anywhere_is_none_and_written_again_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = f"{writing.SIGNATURES}/{writing.MANIFEST_HASH}"
    pack = {name: name.encode() * 2 for name in ("README.md", "content/a.csv", "content/registers/b.csv", last)}
    earlier = {"README.md": b"", "content/gone.csv": b"", last: b"other"}
    write = Path.write_bytes
    for stop in range(len(pack)):
        folder, left = tmp_path / str(stop), [stop]
        pack_files.put(folder, earlier, last=last)

        def half(path: Path, data: bytes, left: list[int] = left) -> int:
            left[0] -= 1
            if left[0] < 0:
                write(path, data[: len(data) // 2])
                raise Killed
            return write(path, data)

        monkeypatch.setattr(Path, "write_bytes", half)
        with pytest.raises(Killed):
            pack_files.put(folder, pack, last=last)
        monkeypatch.undo()
        assert not (folder / last).exists() or (folder / last).read_bytes() not in (pack[last], earlier[last])
        pack_files.put(folder, pack, last=last)
        written = {each.relative_to(folder).as_posix(): each.read_bytes() for each in folder.rglob("*.*")}
        assert written == pack


def test_a_folder_that_holds_anything_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(CloseRefused, match=r"holds letter.txt, which is of no pack: name a new folder"):
        pack_files.put(tmp_path, {"content/a": b""}, last="content/a")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_tar_that_was_cut_off_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, at = tmp_path / "pack.tar", datetime(2026, 11, 2, tzinfo=UTC)
    renderings.write_tar(file, "close", {"a": b"1"}, at)
    whole = file.read_bytes()

    def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(tarfile.TarFile, "addfile", killed)
    with pytest.raises(Killed):
        renderings.write_tar(file, "close", {"a": b"2"}, at)
    monkeypatch.undo()
    assert file.read_bytes() == whole
    renderings.write_tar(file, "close", {"a": b"2"}, at)
    assert [path.name for path in tmp_path.iterdir()] == ["pack.tar"]
    assert file.read_bytes() != whole
