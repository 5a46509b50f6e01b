"""Events of adapters' spools and of their archive: byte for byte as they would have gone to Kafka."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from reconciliation.replay.material import Found, Material, NotMappable
from reconciliation.replay.stored_files import StoredFiles
from serving_adapter.spool.folders import BEGIN, BootFolder
from serving_adapter.spool.frames import Damage, Frame, scan
from serving_adapter.spool.reader import Spooled, read_from
from serving_adapter.spool.records import event_bytes

SEGMENTS = ".seg"


def spooled(where: str) -> Material:
    """Every event in a spool's or an archive's segments, boot by boot. Of a spool that is written only what is durable.

    `where`: the folder or `s3://bucket/prefix` with `<replica>/<boot>/00000001.seg` below. Raises MaterialUnreadable.
    """
    files = StoredFiles(where)
    read: set[str] = set()
    for name in files.names(SEGMENTS):
        boot = os.path.dirname(name)
        if "://" not in where and os.path.exists(os.path.join(boot, "durable")):
            if boot not in read:
                read.add(boot)
                yield from _durable(BootFolder(Path(boot)))
            continue
        told = "/".join(map(unquote, files.told(name).split("/")))
        for found in scan(files.read(name)):
            if isinstance(found, Frame):
                if (event := event_bytes(found.payload)) is not None:
                    yield Found(f"{told}:{found.begin}", event)
            elif isinstance(found, Damage):
                yield NotMappable(f"{told}:{found.begin}", f"{found.end - found.begin} bytes cannot be read", b"")
            elif found.torn:
                yield NotMappable(f"{told}:{found.begin}", "its last record was not finished", b"")


def _durable(folder: BootFolder) -> Material:
    told = f"{folder.replica_id}/{folder.boot_id}"
    for found in read_from(folder, BEGIN):
        at = f"{told}/{found.after.segment:08d}{SEGMENTS}:{found.after.offset}"
        if not isinstance(found, Spooled):
            yield NotMappable(at, "cannot be read: what it held is missing", b"")
        elif (event := event_bytes(found.payload)) is not None:
            yield Found(at, event)
