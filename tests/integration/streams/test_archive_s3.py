"""The archive in an object store: a server that speaks S3, on this machine."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from pyarrow import fs

from streams.errors import ArchiveDamaged
from streams.retention.archive_files import Archive
from streams.retention.archive_manifest import COLUMNS, Manifest

DAY = date(2026, 10, 1)
AT = datetime(2026, 10, 1, 12, tzinfo=UTC)
VALUES = {"completed_at": AT, "ingested_at": AT, "raw": b"{}", "attempt": 1, "correction_no": 0, "counts": True}
NUMBERS = ("input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us")


def row(position: int, tenant_id: str = "tenant_1") -> tuple[object, ...]:
    return tuple(
        position if name == "position" else tenant_id if name == "tenant_id"
        else VALUES.get(name, position if name in NUMBERS else f"{name}-{position}") for name in COLUMNS
    )  # fmt: skip


def test_what_is_written_to_a_store_is_read_back_verified_and_found_damaged(store: str) -> None:
    archive = Archive(store)
    rows = [row(n) for n in range(100)] + [row(n, "tenant_2") for n in range(100, 150)]
    manifest = Manifest(DAY, 1, (archive.write(DAY, 0, rows),), {"kafka:t/0": len(rows)}, "digest")
    written = archive.publish(manifest)
    again = Archive(store).manifest(DAY, written.sha256)
    archive.verify(again)
    assert list(archive.rows(again)) == rows
    assert list(archive.rows(again, 0, "tenant_2")) == rows[100:]
    assert archive.write(DAY, 0, rows) == manifest.files[0]

    files, root = fs.FileSystem.from_uri(store)
    with files.open_output_stream(f"{root}/{manifest.files[0].path}") as stream:
        stream.write(b"something else")
    with pytest.raises(ArchiveDamaged, match="is not what was written"):
        archive.verify(again)
    files.delete_file(f"{root}/{written.path}")
    with pytest.raises(ArchiveDamaged, match="is not there"):
        archive.manifest(DAY, written.sha256)
