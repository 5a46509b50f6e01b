"""The archive's files: Parquet in a folder, or in an S3-compatible store (`s3://bucket/prefix`), by day and bucket.

    events/day=2026-10-31/manifest.json
    events/day=2026-10-31/bucket=003/<first digits of the rows' digest>.parquet
    supplements/day=2026-10-31/part=001/…      the same for what was added to the day once it was dropped

A file's name says what it holds, so that writing the same rows again leaves the same file; the manifest is written last
and says which files count.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Final, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from serving_adapter.settings import SettingsError
from streams.errors import ArchiveDamaged, ArchiveUnavailable
from streams.retention.archive_manifest import COLUMNS, ArchiveFile, Manifest, bucket_of, folder_of, manifest_of

ROWS_A_GROUP: Final = 50_000
"""Rows in memory while a file is written or read: about 30 MB."""
READ_BYTES: Final = 1 << 20

_TIME: Final = pa.timestamp("us", tz="UTC")
_TYPES: Final = {"completed_at": _TIME, "ingested_at": _TIME, "raw": pa.binary(), "attempt": pa.int32(),
                 "correction_no": pa.int32(), "counts": pa.bool_()}  # fmt: skip
_INTEGERS: Final = ("input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us", "position")
SCHEMA: Final = pa.schema(
    [
        pa.field(name, _TYPES.get(name, pa.int64() if name in _INTEGERS else pa.string()), nullable=False)
        for name in COLUMNS
    ]
)

Row = tuple[Any, ...]
"""One event, in the order of COLUMNS."""
_encode = msgspec.msgpack.Encoder().encode


class Written(NamedTuple):
    """A stored manifest: where, and the SHA-256 of its bytes."""

    path: str
    sha256: bytes


class Archive:
    """A folder or an S3 prefix. All paths are relative to it."""

    def __init__(self, where: str) -> None:
        """Raises SettingsError where the address is none, ArchiveUnavailable where it cannot be reached."""
        self.where = where
        try:
            if "://" in where:
                self._files, self._root = fs.FileSystem.from_uri(where)
            else:
                self._files, self._root = fs.LocalFileSystem(), os.path.abspath(where)
        except (pa.ArrowInvalid, ValueError) as error:
            raise SettingsError(f"TOLLBOOK_ARCHIVE: neither a folder nor s3://bucket/prefix: {error}") from None
        except OSError as error:
            raise ArchiveUnavailable(f"archive: {error}") from None

    def write(self, day: date, bucket: int, rows: Iterable[Row], part: int = 0) -> ArchiveFile:
        """Write one file, read it back and compare. Raises ArchiveDamaged if it is not what was written."""
        folder = f"{folder_of(day, part)}/bucket={bucket:03}"
        new = f"{folder}/new.parquet"
        self._files.create_dir(self._at(folder), recursive=True)
        digest, count = hashlib.sha256(), 0
        with (
            self._files.open_output_stream(self._at(new)) as stream,
            pq.ParquetWriter(stream, SCHEMA, compression="zstd") as writer,
        ):
            for group in _groups(rows):
                columns = zip(zip(*group, strict=True), SCHEMA, strict=True)
                writer.write_table(pa.table([pa.array(values, field.type) for values, field in columns], SCHEMA))
                digest.update(b"".join(map(_encode, group)))
                count += len(group)
        path = f"{folder}/{digest.hexdigest()[:16]}.parquet"
        self._files.move(self._at(new), self._at(path))
        self._settle(path)
        size, sha256 = self._measure(path)
        written = ArchiveFile(path, bucket, count, size, sha256, digest.hexdigest())
        again = hashlib.sha256()
        for row in self._rows(path):
            again.update(_encode(row))
        if again.hexdigest() != written.rows_sha256:
            raise ArchiveDamaged(f"{self.where}/{path} does not read back as it was written")
        return written

    def publish(self, manifest: Manifest) -> Written:
        """Write a manifest: from then on its files count. Files of an earlier manifest of the same part go."""
        path, stored = manifest_path(manifest.day, manifest.part), manifest.to_json()
        with self._files.open_output_stream(self._at(path + ".new")) as stream:
            stream.write(stored)
        self._files.move(self._at(path + ".new"), self._at(path))
        self._settle(path)
        wanted = {self._at(file.path) for file in manifest.files}
        inside = fs.FileSelector(self._at(folder_of(manifest.day, manifest.part)), recursive=True)
        for found in self._files.get_file_info(inside):
            if found.type == fs.FileType.File and found.path.endswith(".parquet") and found.path not in wanted:
                self._files.delete_file(found.path)
        return Written(path, hashlib.sha256(stored).digest())

    def manifest(self, day: date, sha256: bytes, part: int = 0) -> Manifest:
        """The manifest of a day's part. Raises ArchiveDamaged if it is not the one that the database knows."""
        path = manifest_path(day, part)
        try:
            with self._files.open_input_stream(self._at(path)) as stream:
                stored = stream.read()
        except FileNotFoundError:
            raise ArchiveDamaged(f"{self.where}/{path} is not there") from None
        except OSError as error:
            raise ArchiveUnavailable(f"archive: {error}") from None
        if hashlib.sha256(stored).digest() != sha256:
            raise ArchiveDamaged(f"{self.where}/{path} is not the one that was written")
        return manifest_of(stored)

    def verify(self, manifest: Manifest) -> None:
        """Read every file of a day and compare bytes and rows with its manifest. Raises ArchiveDamaged."""
        for file in manifest.files:
            try:
                measured = self._measure(file.path)
            except OSError as error:
                raise ArchiveDamaged(f"{self.where}/{file.path} cannot be read: {error}") from None
            if measured != (file.bytes, file.sha256):
                raise ArchiveDamaged(f"{self.where}/{file.path} is not what was written")

    def rows(self, manifest: Manifest, bucket: int | None = None, tenant_id: str | None = None) -> Iterator[Row]:
        """A day's events, or one tenant's (of its bucket), in the order in which they were written."""
        for file in manifest.files:
            if bucket is None or file.bucket == bucket:
                yield from self._rows(file.path, tenant_id)

    def find(self, manifest: Manifest, wanted: Mapping[str, Collection[str]]) -> Iterator[bytes]:
        """The messages of a day's usage events with these request ids, by tenant.

        Groups of rows that cannot hold one are passed over by their bounds: UUIDv7 of a day lie beside each other, so
        that of most days only the ends of the files are read. A file of which more is read is compared with its
        manifest before. Raises ArchiveDamaged.
        """
        tenants, requests = sorted(wanted), sorted({request for of in wanted.values() for request in of})
        buckets = {bucket_of(tenant_id, manifest.buckets) for tenant_id in tenants}
        for stored in (file for file in manifest.files if file.bucket in buckets):
            try:
                yield from self._find(stored, tenants, requests)
            except (pa.ArrowInvalid, OSError) as error:
                raise ArchiveDamaged(f"{self.where}/{stored.path} cannot be read: {error}") from None

    def _find(self, stored: ArchiveFile, tenants: Sequence[str], requests: Sequence[str]) -> Iterator[bytes]:
        asked, measured = {"tenant_id": tenants, "request_id": requests}, None
        with pq.ParquetFile(self._files.open_input_file(self._at(stored.path))) as file:
            for number in range(file.num_row_groups):
                columns = file.metadata.row_group(number)
                if not all(
                    _may_hold(columns.column(SCHEMA.get_field_index(name)).statistics, values)
                    for name, values in asked.items()
                ):
                    continue
                measured = measured or self._measure(stored.path)
                if measured != (stored.bytes, stored.sha256):
                    raise ArchiveDamaged(f"{self.where}/{stored.path} is not what was written")
                group = file.read_row_group(number, columns=[*asked, "kind", "raw"])
                for name, values in asked.items():
                    group = group.filter(pc.is_in(group[name], pa.array(values, pa.string())))
                yield from group.filter(pc.equal(group["kind"], "usage"))["raw"].to_pylist()
        if measured is None and self._files.get_file_info(self._at(stored.path)).size != stored.bytes:
            raise ArchiveDamaged(f"{self.where}/{stored.path} is not what was written")

    def _rows(self, path: str, tenant_id: str | None = None) -> Iterator[Row]:
        """The rows of a file. Groups of rows without the tenant are passed over by their bounds."""
        try:
            with pq.ParquetFile(self._files.open_input_file(self._at(path))) as file:
                at = SCHEMA.get_field_index("tenant_id")
                for number in range(file.num_row_groups):
                    bounds = file.metadata.row_group(number).column(at).statistics
                    if tenant_id is not None and bounds and not bounds.min <= tenant_id <= bounds.max:
                        continue
                    group = file.read_row_group(number, columns=list(COLUMNS))
                    if tenant_id is not None:
                        group = group.filter(pc.equal(group["tenant_id"], tenant_id))
                    columns = [column.to_pylist() for column in group.columns]
                    yield from zip(*columns, strict=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise ArchiveDamaged(f"{self.where}/{path} cannot be read: {error}") from None

    def _measure(self, path: str) -> tuple[int, str]:
        """A file's size and SHA-256, read from where it is kept."""
        digest, size = hashlib.sha256(), 0
        with self._files.open_input_stream(self._at(path)) as stream:
            while block := stream.read(READ_BYTES):
                digest.update(block)
                size += len(block)
        return size, digest.hexdigest()

    def _settle(self, path: str) -> None:
        """On a local disk: wait until file and folder are really on it. An object store answers only then."""
        if isinstance(self._files, fs.LocalFileSystem):
            for each in (self._at(path), os.path.dirname(self._at(path))):
                descriptor = os.open(each, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"


def manifest_path(day: date, part: int = 0) -> str:
    """Where the manifest of a day's part is."""
    return f"{folder_of(day, part)}/manifest.json"


def _may_hold(bounds: Any, wanted: Sequence[str]) -> bool:
    """Whether any of some values, in order, may lie within a column's bounds; it may where these are not known."""
    if bounds is None or not bounds.has_min_max:
        return True
    at = bisect_left(wanted, bounds.min)
    return at < len(wanted) and wanted[at] <= bounds.max


def _groups(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
    group: list[Row] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_A_GROUP:
            yield group
            group = []
    if group:
        yield group
