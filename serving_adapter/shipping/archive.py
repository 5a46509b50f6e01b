"""Shipped segments go to an archive, and free the disk; a replay reads them there.

A segment is let go of only after a copy was read back, and only once a later one says all that it said.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Protocol

from serving_adapter.errors import AdapterError
from serving_adapter.shipping.object_store import ObjectStore
from serving_adapter.shipping.position import Shipped
from serving_adapter.spool.folders import BootFolder, durable_mark, sync_folder


class ArchiveFailed(AdapterError):
    """A segment could not be copied, or its copy is not equal."""


class Store(Protocol):
    """Where copies lie, by `replica/boot/segment`. Both raise OSError."""

    def put(self, name: str, data: bytes) -> None:
        """Store a copy, whole or not at all."""

    def get(self, name: str) -> bytes:
        """What is stored."""


class Folder:
    """A folder, of another disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, name: str, data: bytes) -> None:
        """On disk when it returns."""
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        beside = target.with_suffix(".part")
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(target)
        sync_folder(target.parent)

    def get(self, name: str) -> bytes:
        """From disk."""
        return (self._root / name).read_bytes()


class Archive:
    """Takes what was shipped."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @staticmethod
    def at(where: str) -> Archive:
        """In a folder, or in a store `s3://BUCKET/PREFIX`. Raises SettingsError."""
        return Archive(ObjectStore(where) if "://" in where else Folder(Path(where)))

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
        name = f"{folder.path.parent.name}/{folder.path.name}/{source.name}"
        try:
            data = source.read_bytes().rstrip(b"\0")
            self._store.put(name, data)
            if hashlib.sha256(self._store.get(name)).digest() != hashlib.sha256(data).digest():
                raise ArchiveFailed(f"{name} in the archive is not what was written")
            source.unlink()
        except OSError as error:
            raise ArchiveFailed(f"cannot archive {source}: {error}") from None
