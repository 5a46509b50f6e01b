"""Files of a folder, or of an S3-compatible store (`s3://bucket/prefix`): listed in order, read whole or by line."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
from pyarrow import fs

from reconciliation.errors import MaterialUnreadable

GZIP: Final = ".gz"


class StoredFiles:
    """A folder, a file, or an S3 prefix."""

    def __init__(self, where: str) -> None:
        """Raises MaterialUnreadable."""
        self.where = where
        try:
            if "://" in where:
                self._files, self._root = fs.FileSystem.from_uri(where)
            else:
                self._files, self._root = fs.LocalFileSystem(), os.path.abspath(where)
            self._info = self._files.get_file_info(self._root)
        except (pa.ArrowInvalid, ValueError, OSError) as error:
            raise MaterialUnreadable(f"cannot read {where}: {error}") from None
        if self._info.type == fs.FileType.NotFound:
            raise MaterialUnreadable(f"{where} is not there")

    def names(self, ending: str = "") -> list[str]:
        """The files with this ending, below it, in the order of their names; the file itself where it is one."""
        if self._info.type == fs.FileType.File:
            return [self._root]
        inside = self._files.get_file_info(fs.FileSelector(self._root, recursive=True))
        return sorted(each.path for each in inside if each.type == fs.FileType.File and each.path.endswith(ending))

    def told(self, name: str) -> str:
        """A file's name below the place itself."""
        return os.path.relpath(name, self._root) if name != self._root else os.path.basename(name)

    def read(self, name: str) -> bytes:
        """All of a file. Raises MaterialUnreadable."""
        try:
            with self._files.open_input_stream(name, compression=None) as stream:
                content: bytes = stream.read()
        except OSError as error:
            raise MaterialUnreadable(f"cannot read {name}: {error}") from None
        return content

    def lines(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Each line that is not blank, with its number; unpacked where the name ends in `.gz`."""
        try:
            with self._files.open_input_file(name) as stream, io.BufferedReader(stream) as buffered:
                opened = gzip.GzipFile(fileobj=buffered) if name.endswith(GZIP) else buffered
                for number, line in enumerate(opened, start=1):
                    if text := line.strip():
                        yield number, text
        except (OSError, EOFError) as error:
            raise MaterialUnreadable(f"cannot read {name}: {error}") from None
