"""By which leader a batch was appended is read from its head, for the partition whose it is."""

from __future__ import annotations

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.structs import TopicPartition
from faust.types.tuples import TP

from streams.workers import lenient_batches
from streams.workers.coalescing import ChunkScheduler


def batch(offset: int, leader_epoch: int) -> bytes:
    """Two messages, as a broker gives them."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=999)
    for at in range(2):
        assert builder.append(at, timestamp=1, key=None, value=b"v", headers=[]) is not None
    written = bytearray(builder.build())
    written[:8] = offset.to_bytes(8)
    written[12:16] = leader_epoch.to_bytes(4, signed=True)
    return bytes(written)


def test_the_leader_of_what_was_read_last_is_told_with_the_chunk() -> None:
    lenient_batches.install()
    partition = TopicPartition("t", 3)
    fetched = lenient_batches.LenientRecords(batch(0, 4) + batch(2, 7))
    read = fetcher.PartitionRecords(partition, fetched, [], 0, None, None, True, 1)
    records = [next(read), next(read)]
    assert lenient_batches.leader_epochs[partition] == 4
    records += list(read)
    assert [record.offset for record in records] == [0, 1, 2, 3]
    chunks = list(ChunkScheduler().iterate({TP("t", 3): records, TP("t", 5): records}))
    assert [chunk.value.leader_epoch for _, chunk in chunks] == [7, -1]


def test_batches_from_before_there_were_epochs_tell_none() -> None:
    lenient_batches.install()
    builder = LegacyRecordBatchBuilder(1, 0, 999)
    assert builder.append(0, timestamp=1, key=None, value=b"v", headers=[]) is not None
    fetched = lenient_batches.LenientRecords(bytes(builder.build()))
    assert len(list(fetcher.PartitionRecords(TopicPartition("old", 0), fetched, [], 0, None, None, True, 1))) == 1
    assert ("old", 0) not in lenient_batches.leader_epochs
