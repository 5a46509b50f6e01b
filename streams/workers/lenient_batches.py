"""What aiokafka does not tell of batches: whose they are, and what stands beside an unreadable record.

A header's name that is not UTF-8 ends aiokafka's reading of a batch, and with it of the partition, for good. Such a
batch is read once more here, by aiokafka's own slower reader, which is given names whose bytes stand for themselves
(PEP 383's surrogates). Who applies the message sees them, and refuses it alone.

Each batch says by which epoch's leader it was appended; aiokafka does not hand that on. It is kept here by partition.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

_HEAD: Final = 12
"""A batch begins with its offset (8 bytes) and the length of what follows these twelve: the epoch (4), the format."""
_FORMAT: Final = _HEAD + 4
_WITH_EPOCH: Final = 2
"""The first format that has it."""

leader_epochs: Final[dict[tuple[str, int], int]] = {}
"""By topic and partition: of the leader that appended what was read last."""


class _Text(bytearray):
    """Bytes that decode to text whatever they are."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Text(found) if isinstance(at, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> str:
        return super().decode(encoding, errors)


class LenientBatch:
    """A batch that reads on where aiokafka's own cannot."""

    def __init__(self, batch: Any, fetched: bytes) -> None:
        self._batch = batch
        self._fetched = fetched

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        read = 0
        try:
            for record in self._batch:
                read += 1
                yield record
        except UnicodeDecodeError:
            yield from islice(self._again(), read, None)

    def _again(self) -> Iterator[Any]:
        again = _DefaultRecordBatchPy(self._bytes())
        again._maybe_uncompress()
        again._buffer = _Text(again._buffer)
        return iter(again)

    def _bytes(self) -> bytes:
        """This batch's part of what was fetched."""
        at = 0
        while True:
            end = at + _HEAD + int.from_bytes(self._fetched[at + 8 : at + _HEAD])
            if int.from_bytes(self._fetched[at : at + 8], signed=True) == self._batch.base_offset:
                return self._fetched[at:end]
            at = end


class LenientRecords:
    """What one fetch brought of a partition, in the words of aiokafka's `MemoryRecords`."""

    def __init__(self, fetched: bytes) -> None:
        self._fetched = fetched
        self._records = MemoryRecords(fetched)
        self._at = 0
        self.partition: tuple[str, int] | None = None

    def has_next(self) -> bool:
        """Whether there is another batch."""
        return bool(self._records.has_next())

    def size_in_bytes(self) -> int:
        """Of the whole."""
        return int(self._records.size_in_bytes())

    def next_batch(self) -> LenientBatch | None:
        """The next one."""
        batch = self._records.next_batch()
        if batch is None:
            return None
        head, self._at = self._at, self._at + _HEAD + int.from_bytes(self._fetched[self._at + 8 : self._at + _HEAD])
        if self.partition is not None and self._fetched[head + _FORMAT] >= _WITH_EPOCH:
            leader_epochs[self.partition] = int.from_bytes(self._fetched[head + _HEAD : head + _FORMAT], signed=True)
        return LenientBatch(batch, self._fetched)


class _KnownRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """Tells its records whose they are."""

    def __init__(self, partition: Any, records: LenientRecords, *more: Any) -> None:
        super().__init__(partition, records, *more)
        records.partition = partition


def install() -> None:
    """Have this process's consumers read so. No setting of aiokafka's reaches there; its version is pinned."""
    fetcher.MemoryRecords = LenientRecords
    fetcher.PartitionRecords = _KnownRecords
