"""How far Kafka has a boot: a small file beside its segments, moved only after delivery."""

from __future__ import annotations

import os
from typing import Final

import msgspec

from serving_adapter.spool.folders import BEGIN, BootFolder, Position, sync_folder

_NAME: Final = "shipped.json"


class Shipped(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Up to where; how many events, how many that Kafka would never take, how many damaged stretches."""

    segment: int = BEGIN.segment
    offset: int = BEGIN.offset
    events: int = 0
    poison: int = 0
    unreadable: int = 0
    farewell: bool = False
    """The last record read says that the boot has ended."""
    done: bool = False
    """Kafka has everything, and the farewell was said."""

    @property
    def position(self) -> Position:
        """Where shipping goes on."""
        return Position(self.segment, self.offset)


def load(folder: BootFolder) -> Shipped:
    """Where shipping of a boot stands; from the beginning if nothing is stored."""
    try:
        return msgspec.json.decode((folder.path / _NAME).read_bytes(), type=Shipped)
    except FileNotFoundError:
        return Shipped()


def store(folder: BootFolder, shipped: Shipped) -> None:
    """Whole or not at all, and on disk."""
    beside = folder.path / f".{_NAME}"
    with beside.open("wb") as file:
        file.write(msgspec.json.encode(shipped))
        file.flush()
        os.fsync(file.fileno())
    beside.rename(folder.path / _NAME)
    sync_folder(folder.path)
