"""What is made of a pack for people and for sending: the summary as HTML and PDF, all of it as one tar."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from billing.errors import DocumentRefused
from billing.presentation.pages import printed
from reconciliation.close.evidence import summary

EPOCH: Final = "SOURCE_DATE_EPOCH"
"""What PDF libraries date by (https://reproducible-builds.org/specs/source-date-epoch/)."""


def rendered(month: str, content: Mapping[str, bytes], cut_at: datetime) -> tuple[dict[str, bytes], str]:
    """The summary by file name, and why it has no PDF ('' where it has). `content` is the pack's, by file name.

    With the same dependencies and fonts the PDF has the same bytes, too: it is dated by the cut.
    """
    page = page_of(month, content)
    files = {summary.PAGE: page.encode()}
    try:
        with _dated(cut_at):
            files[summary.PRINTED] = printed(page)
    except DocumentRefused as error:
        return files, str(error)
    return files, ""


def page_of(month: str, content: Mapping[str, bytes]) -> str:
    """The summary of a pack's content as HTML."""
    accounts, gates = ([json.loads(line) for line in content[name].splitlines()] for name in summary.READ)
    tables = {name: data for name, data in content.items() if name.endswith(".csv")}
    return summary.page_of(month, tables, accounts, gates)


def write_tar(file: Path, root: str, pack: Mapping[str, bytes], cut_at: datetime) -> None:
    """All files under one folder, in order, owned by nobody, dated by the cut: the same pack gives the same bytes."""
    part = file.with_name(f".{file.name}.part")
    with tarfile.open(part, "w") as tar:
        for name, data in sorted(pack.items()):
            member = tarfile.TarInfo(f"{root}/{name}")
            member.size, member.mtime, member.mode = len(data), int(cut_at.timestamp()), 0o644
            tar.addfile(member, io.BytesIO(data))
    os.replace(part, file)


@contextmanager
def _dated(at: datetime) -> Iterator[None]:
    before = os.environ.get(EPOCH)
    os.environ[EPOCH] = str(int(at.timestamp()))
    try:
        yield
    finally:
        if before is None:
            del os.environ[EPOCH]
        else:
            os.environ[EPOCH] = before
