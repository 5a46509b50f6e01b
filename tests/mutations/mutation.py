"""A deliberate error, made in a copy of the tree, and the test that fails by it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]
_FAILED: Final = re.compile(r"^FAILED \S*?::(\S+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutation:
    """An error: in `file`, `good` becomes `bad`; `test` fails by it."""

    what: str
    file: str
    good: str
    bad: str
    test: str


class Outcome(StrEnum):
    """What became of an error. Stale: its file does not say `good` any more, exactly once."""

    CAUGHT = "caught"
    SURVIVED = "SURVIVED"
    STALE = "STALE"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, the first test that failed, and what the tests printed if none did."""

    outcome: Outcome
    by: str = ""
    output: str = ""


def judged(mutation: Mutation, copy: Path) -> Verdict:
    """Make the error in a copy of the tree, run its tests there, and take it back."""
    file = copy / mutation.file
    text = file.read_text()
    if text.count(mutation.good) != 1:
        return Verdict(Outcome.STALE)
    file.write_text(text.replace(mutation.good, mutation.bad))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", mutation.test],
            cwd=copy,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        file.write_text(text)
    failed = _FAILED.search(done.stdout)
    if done.returncode == 1 and failed:
        return Verdict(Outcome.CAUGHT, failed[1])
    return Verdict(Outcome.SURVIVED, output=done.stdout[-2000:])


def copy_tree(to: Path) -> None:
    """The files of the working tree that git does not ignore, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in listed.splitlines():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / name).is_file():
            shutil.copy2(REPOSITORY / name, to / name)
