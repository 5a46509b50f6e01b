"""Events that Kafka would never take: kept in files beside the spool, shown, and sent again once it would.

`<root>/poison/<boot>.jsonl` holds an event a line. What was sent after all goes to `<boot>.sent`, so that nothing of it
is only in memory; killed in between, it is sent again, and has its identity.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from serving_adapter.errors import RefusedEvent
from serving_adapter.events import decode, key_of
from serving_adapter.ingest import cloud_event_headers
from serving_adapter.producer import EventProducer
from serving_adapter.spool.folders import sync_folder

FOLDER: Final = "poison"


class SetAside(NamedTuple):
    """One of them. Whose it is, where that can be read."""

    boot_id: str
    tenant_id: str
    request_id: str
    size: int
    event: bytes


def set_aside(root: Path, boot_id: str, event: bytes) -> Path:
    """Keep an event, on disk when it returns; where."""
    with _alone(root) as folder:
        _append(folder / f"{boot_id}.jsonl", event)
    return root / FOLDER


def listed(root: Path) -> list[SetAside]:
    """All that wait, by boot."""
    found = []
    for path in sorted((root / FOLDER).glob("*.jsonl")):
        for event in path.read_bytes().splitlines():
            try:
                read = decode(event)
                tenant, request = read.tenant_id, read.request_id
            except RefusedEvent:
                tenant = request = ""
            found.append(SetAside(path.stem, tenant, request, len(event), event))
    return found


def resend(root: Path, producer: EventProducer) -> tuple[int, list[str]]:
    """Send them once more: how many Kafka has now, and why it does not take the others, which stay.

    Raises DeliveryFailed: then all that it did not confirm stay.
    """
    sent, reasons = 0, list[str]()
    with _alone(root) as folder:
        for path in sorted(folder.glob("*.jsonl")):
            events = path.read_bytes().splitlines()
            for event in events:
                producer.send(key_of(event), event, _headers(event), may_be_refused=True)
            refused = producer.settle()
            kept = [each.value for each in refused]
            reasons += [each.reason for each in refused]
            taken = [event for event in events if event not in kept]
            for event in taken:
                _append(path.with_suffix(".sent"), event)
            sent += len(taken)
            beside = path.with_suffix(".part")
            with beside.open("wb") as file:
                file.writelines(event + b"\n" for event in kept)
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
            if not kept:
                path.unlink()
            sync_folder(folder)
    return sent, reasons


def _headers(event: bytes) -> list[tuple[str, bytes]]:
    try:
        read = decode(event)
        return cloud_event_headers(read, f"tollbook-adapter/{read.replica_id}")
    except RefusedEvent:  # the streams quarantine it, with the reason
        return []


def _append(path: Path, event: bytes) -> None:
    with path.open("ab") as file:
        file.write(event + b"\n")
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[Path]:
    """The folder, to which nobody else writes meanwhile."""
    folder = root / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(root / f".{FOLDER}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield folder
    finally:
        os.close(fd)
