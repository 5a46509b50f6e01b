"""Shipped segments go to an archive folder, and free the disk; a replay reads them there.

A segment is let go of only after a copy was read back, and only once a later one says all that it said.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from serving_adapter.errors import AdapterError
from serving_adapter.shipping.position import Shipped
from serving_adapter.spool.folders import BootFolder, durable_mark, sync_folder


class ArchiveFailed(AdapterError):
    """A segment could not be copied, or its copy is not equal."""


class Archive:
    """A folder: of another disk, or of a mounted object store."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def take(self, folder: BootFolder, shipped: Shipped) -> int:
        """Move the segments before the one being shipped, all of them once the boot is done; how many.

        Raises ArchiveFailed.
        """
        with durable_mark(folder) as mark:
            durable = mark.read() if mark is not None else None
        moved = 0
        for number in folder.segments():
            if shipped.done or (number < shipped.segment and durable is not None and number < durable.segment):
                self._move(folder, number)
                moved += 1
        return moved

    def _move(self, folder: BootFolder, number: int) -> None:
        source = folder.segment(number)
        target = self._root / folder.path.parent.name / folder.path.name / source.name
        try:
            data = source.read_bytes().rstrip(b"\0")
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            beside = target.with_suffix(".part")
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if hashlib.sha256(beside.read_bytes()).digest() != hashlib.sha256(data).digest():
                raise ArchiveFailed(f"{beside} is not what was written")
            beside.rename(target)
            sync_folder(target.parent)
            source.unlink()
        except OSError as error:
            raise ArchiveFailed(f"cannot archive {source} in {self._root}: {error}") from None
