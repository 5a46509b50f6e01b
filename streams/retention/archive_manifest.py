"""What a day in the archive holds, and the proof that its files are those that were written: values in, values out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import date
from typing import Any, Final

from streams.errors import ArchiveDamaged
from streams.merkle import merkle_root

FORMAT: Final = 1
ROWS_A_BUCKET: Final = 1_000_000
"""Rows of a file, about: a day is cut into as many buckets of tenants as that takes."""
MOST_BUCKETS: Final = 256
COLUMNS: Final = (
    "completed_at", "tenant_id", "request_id", "attempt", "kind", "correction_no", "model", "adapter", "region", "tier",
    "pool", "status", "fault", "purpose", "usage_source", "rating_band", "input_tokens", "cache_hit_tokens",
    "output_tokens", "gpu_us", "source", "position", "ingested_at", "raw", "counts",
)  # fmt: skip
"""Columns of `usage.events`, and whether the event counted or another took its place."""


@dataclass(frozen=True, slots=True)
class ArchiveFile:
    """One Parquet file. `path` is within the archive; `rows_sha256` is over the rows, whatever the file's encoding."""

    path: str
    bucket: int
    rows: int
    bytes: int
    sha256: str
    rows_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A day of raw events, [00:00, 24:00) UTC by completion, in files by bucket of tenants.

    What was added to a day once it was dropped is a further part, a supplement to part 0.
    """

    day: date
    buckets: int
    files: tuple[ArchiveFile, ...]
    sources: dict[str, int]
    """How many events of each source."""
    rows_digest: str
    """Sum of hashes of the rows as the database has them: equal as long as no row there has changed."""
    part: int = 0

    @property
    def rows(self) -> int:
        """All rows of the day."""
        return sum(file.rows for file in self.files)

    @property
    def root(self) -> str:
        """The root of the Merkle tree over the files' digests, in the order of their paths."""
        return merkle_root([bytes.fromhex(file.sha256) for file in sorted(self.files, key=lambda f: f.path)]).hex()

    def to_json(self) -> bytes:
        """As it is stored; the same day is always the same bytes."""
        held: dict[str, Any] = {
            "format": FORMAT, "day": self.day.isoformat(), "buckets": self.buckets, "rows": self.rows,
            "rows_digest": self.rows_digest, "root": self.root, "sources": dict(sorted(self.sources.items())),
            "files": [asdict(file) for file in sorted(self.files, key=lambda f: f.path)],
        } | ({"part": self.part} if self.part else {})  # fmt: skip
        return json.dumps(held, indent=1).encode() + b"\n"


def manifest_of(stored: bytes) -> Manifest:
    """A manifest as it was stored. Raises ArchiveDamaged."""
    try:
        held = json.loads(stored)
        files = tuple(ArchiveFile(**file) for file in held["files"])
        day = date.fromisoformat(held["day"])
        manifest = Manifest(day, held["buckets"], files, held["sources"], held["rows_digest"], held.get("part", 0))
        if (held["format"], held["rows"], held["root"]) != (FORMAT, manifest.rows, manifest.root):
            raise ArchiveDamaged(f"the manifest of {day} does not add up")
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveDamaged(f"a manifest that cannot be read: {error!r}") from None
    return manifest


def folder_of(day: date, part: int) -> str:
    """Where a part of a day is, within the archive: the day's own folder, or a supplement's beside it."""
    return f"supplements/day={day}/part={part:03}" if part else f"events/day={day}"


def buckets_for(rows: int) -> int:
    """Into how many buckets of tenants a day of `rows` is cut: a power of two."""
    buckets = 1
    while buckets < MOST_BUCKETS and buckets * ROWS_A_BUCKET < rows:
        buckets *= 2
    return buckets


def bucket_of(tenant_id: str, buckets: int) -> int:
    """A tenant's bucket: its MD5's first two bytes, modulo; the database says the same when it sorts."""
    return int.from_bytes(hashlib.md5(tenant_id.encode(), usedforsecurity=False).digest()[:2]) % buckets
