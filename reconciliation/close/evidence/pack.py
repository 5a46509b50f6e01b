"""An evidence pack as it is read: its files against its manifest, and their lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from reconciliation.agreement import Check, compare
from reconciliation.close import contents
from reconciliation.close.close_store import content_hash
from reconciliation.close.evidence.writing import (
    ACCOUNTS_FILE,
    BEFORE_FILE,
    CONTENT,
    FORMAT,
    MANIFEST,
    MANIFEST_HASH,
    SIGNATURES,
)
from reconciliation.close.signatures import Signature, of_reopened
from reconciliation.comparison import Value
from reconciliation.errors import EvidenceBroken


class Pack:
    """The folder that `close evidence` wrote. `kept`: its manifest's hash, where somebody has it from elsewhere.

    Raises EvidenceBroken for another format, and for what is no JSON.
    """

    def __init__(self, folder: Path, kept: str | None = None) -> None:
        self.folder = folder
        self._kept = kept
        self.content = folder / CONTENT
        self.signatures = folder / SIGNATURES
        manifest: dict[str, Any] = json.loads((self.content / MANIFEST).read_text())
        _expect((FORMAT,), manifest["format"], str(self.content / MANIFEST))
        self.month = str(manifest["month"])
        self._said: dict[str, Value] = {each["file"]: each["sha256"] for each in manifest["files"]}

    def files(self) -> Check:
        """Every file of the content is that of the manifest, and the manifest that which was written."""
        said = self._said | {MANIFEST: (self.signatures / MANIFEST_HASH).read_text().split(" ")[0]}
        if self._kept is not None:
            said[MANIFEST] = self._kept
        there: dict[str, Value] = {
            path.relative_to(self.content).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.content.rglob("*"))
            if path.is_file()
        }
        return compare("files are those of the manifest", "manifest", "files", said, there)

    def expect_readable_contents(self) -> None:
        """Raises EvidenceBroken where what was signed of an account is of another format."""
        for each in self.accounts:
            _expect(contents.READABLE, each["format"], f"{self.content / 'accounts.jsonl'}: {each['billing_account']}")

    def of(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of a file of the content."""
        return _lines(self.content / name)

    def signed(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of a file of the signatures."""
        return _lines(self.signatures / name)

    def journal(self, entity: str) -> Iterator[dict[str, Any]]:
        """The lines of a legal entity's journal."""
        return _lines(self.journals[entity])

    @cached_property
    def accounts(self) -> list[dict[str, Any]]:
        """What every account's month came to."""
        return list(self.of("accounts.jsonl"))

    @cached_property
    def signatures_before(self) -> list[Signature]:
        """Of accounts that were reopened after something was issued each signature that it was issued under."""
        return of_reopened((each["billing_account"], each["event"], each["detail"]) for each in self.transitions)

    @cached_property
    def signed_contents(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What was put before a person last, and what was signed before that, by account and hash."""
        found = {}
        for name in (ACCOUNTS_FILE, BEFORE_FILE):
            with (self.content / name).open(encoding="utf-8", newline="\n") as lines:
                for line in lines:
                    content = json.loads(line)
                    found[content["billing_account"], content_hash(line.removesuffix("\n"))] = content
        return found

    @property
    def tenants(self) -> list[dict[str, Any]]:
        """The tenants' periods of all accounts."""
        return [tenant for account in self.accounts for tenant in account["tenants"]]

    @property
    def accrued(self) -> list[dict[str, Any]]:
        """The tenants' periods that go on after the month."""
        return [tenant for account in self.accounts for tenant in account.get("accrued", ())]

    @property
    def late(self) -> list[dict[str, Any]]:
        """The tenants' earlier periods that accounts' documents bill something of, with the `billing_account`."""
        return [
            late | {"billing_account": account["billing_account"]}
            for account in self.accounts
            for late in account.get("late", ())
        ]

    @property
    def is_without_events(self) -> bool:
        """Whether what was signed is of the format in which nothing is kept of single events and movements."""
        return any(each["format"] == contents.WITHOUT_EVENTS for each in self.accounts)

    @property
    def journals(self) -> dict[str, Path]:
        """The journal's files by legal entity."""
        return {path.stem.removeprefix("journal-"): path for path in sorted(self.content.glob("journal-*.jsonl"))}

    @cached_property
    def transitions(self) -> list[dict[str, Any]]:
        """Every step of accounts and books, in order."""
        return list(self.signed("transitions.jsonl"))


def _expect(known: Collection[str], there: object, where: str) -> None:
    """Only formats that this version knows are read: another one has other fields."""
    if there not in known:
        raise EvidenceBroken(
            f"{where}: written by an older or newer version of Tollbook, as {there}; this one reads"
            f" {', '.join(known)}: verify it with the version that wrote it"
        )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise EvidenceBroken(f"{file}:{number}: {error}") from None
