"""What the frames of a boot say, and what follows from them: values in, values out.

A payload is one letter and JSON:

    B  the boot: whose spool this is; first in each segment
    C  checkpoint: what earlier segments come to, over as many of them as it takes; the `S` of what was open follow, and
       the last `P` of each, so that those may be archived
    S  a request has begun: its number among the boot's requests, and the event it becomes if nobody says more (`lost`)
    P  progress, each second: tokens and GPU time so far of the open requests, by number
    E  a request has ended: its usage event, byte for byte as it goes to Kafka
    F  farewell: nothing follows in this boot
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from serving_adapter.errors import AdapterError
from serving_adapter.events import Seq, UsageEvent
from serving_adapter.identity import Identity, identity_of
from serving_adapter.replica_reports import Total, Whole

FORMAT: Final = 1
"""Version of this format; a later one is not read."""
MOST_PROGRESS: Final = 5000
MOST_TOTALS: Final = 500
MOST_OPEN: Final = 5000
"""In one record each, so that no frame is ever too long: 150 bytes for each request, two kilobytes for each total."""


class SpoolUnreadable(AdapterError):
    """A frame that is whole, and says what this version does not understand."""


class BadRecord(SpoolUnreadable):
    """A record of this version that says what it may not."""


class Boot(msgspec.Struct, frozen=True, kw_only=True):
    """Whose spool this is, and when the boot began by the replica's clock."""

    replica_id: str
    boot_id: str
    at: str
    format: int = FORMAT
    about: dict[str, str] = {}
    """For people: versions of the adapter and the engine, process id."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A request that the engine is about to see. `lost` is the event that it becomes if nothing more is heard."""

    no: Seq
    lost: UsageEvent


class OpenRequest(msgspec.Struct, frozen=True, array_like=True):
    """Tokens so far of the request with this number; also what of the prompt the engine itself has counted."""

    no: Seq
    input_tokens: Whole
    output_tokens: Whole
    cache_hit_tokens: Whole
    engine_input_tokens: Whole
    engine_cached_tokens: Whole
    gpu_us: Whole = 0


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the open requests are."""

    at: str
    open: list[OpenRequest]


class Farewell(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a boot. `recovered`: said by recovery in the name of a boot that broke off."""

    at: str
    last_seq: Whole
    started: Whole
    ended: Whole
    recovered: bool = False


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What all earlier segments come to, or a part of it. Starts and progress of the requests in `open` follow it."""

    last_seq: Whole
    last_no: Whole
    started: Whole
    ended: Whole
    totals: list[Total]
    open: list[Seq]


Record = Boot | Checkpoint | Start | Progress | UsageEvent | Farewell

_encode: Final = msgspec.json.Encoder().encode
_LETTERS: Final[dict[type, bytes]] = {
    Boot: b"B", Checkpoint: b"C", Start: b"S", Progress: b"P", UsageEvent: b"E", Farewell: b"F"
}  # fmt: skip
_DECODERS: Final[dict[bytes, msgspec.json.Decoder[Any]]] = {
    letter: msgspec.json.Decoder(kind) for kind, letter in _LETTERS.items()
}


def payload_of(record: Record) -> bytes:
    """A record as a frame's payload."""
    return _LETTERS[type(record)] + _encode(record)


def event_bytes(payload: bytes) -> bytes | None:
    """The event of an `E` record as it goes to Kafka, without decoding it; None for other records."""
    return payload[1:] if payload[:1] == b"E" else None


def ends_boot(payload: bytes) -> bool:
    """Whether it is a farewell."""
    return payload[:1] == b"F"


def read(payload: bytes) -> Record:
    """Raises BadRecord; SpoolUnreadable where a later version wrote it."""
    decoder = _DECODERS.get(payload[:1])
    if decoder is None:
        raise SpoolUnreadable(f"a record of kind {payload[:1]!r}: written by a later version?")
    try:
        record: Record = decoder.decode(payload[1:])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRecord(f"a record {payload[:1]!r}: {error}") from None
    if isinstance(record, Boot) and record.format > FORMAT:
        raise SpoolUnreadable(f"format {record.format}, this version reads {FORMAT}")
    return record


class Tally:
    """Cumulative counts by tenant and model, as heartbeats and farewells carry them."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._changed: set[tuple[str, str]] = set()

    def add(self, event: UsageEvent) -> None:
        """One event more."""
        key = (event.tenant_id, event.model)
        counts = self._counts.setdefault(key, [0, 0, 0, 0])
        counts[0] += 1
        counts[1] += event.input_tokens
        counts[2] += event.output_tokens
        counts[3] += event.cache_hit_tokens
        self._changed.add(key)

    def changed(self, most: int) -> list[Total]:
        """Totals that changed and nobody has confirmed yet; the rest comes with the next call."""
        return [self._total(key) for key in list(self._changed)[:most]]

    def confirm(self, totals: list[Total]) -> None:
        """These have arrived as they were said."""
        for total in totals:
            if self._total(key := (total.tenant_id, total.model)) == total:
                self._changed.discard(key)

    def put(self, totals: Iterable[Total]) -> None:
        """Totals as they stood."""
        for total in totals:
            self._counts[total.tenant_id, total.model] = [
                total.events, total.input_tokens, total.output_tokens, total.cache_hit_tokens
            ]  # fmt: skip

    def all(self) -> list[Total]:
        """Every total."""
        return [self._total(key) for key in self._counts]

    def _total(self, key: tuple[str, str]) -> Total:
        events, input_tokens, output_tokens, cached = self._counts[key]
        return Total(tenant_id=key[0], model=key[1], events=events, input_tokens=input_tokens,
                     output_tokens=output_tokens, cache_hit_tokens=cached)  # fmt: skip


@dataclass(slots=True)
class Replay:
    """What a boot's records come to, read in order. A record that was written twice changes nothing."""

    boot: Boot | None = None
    farewell: Farewell | None = None
    last_seq: int = 0
    last_no: int = 0
    started: int = 0
    ended: int = 0
    """Without those that recovery wrote down as lost."""
    open: dict[int, Start] = field(default_factory=dict)
    """By number: a request may be here twice, and has an event for each time."""
    progress: dict[int, tuple[str, OpenRequest]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    _numbers: dict[Identity, list[int]] = field(default_factory=dict)
    """Of what is open, by what its event will be called."""
    _awaited: set[int] = field(default_factory=set)
    """Requests that were open at the checkpoint this reading began with, until their starts are read."""
    _began_at: tuple[int, int] = (0, 0)
    """Last event and last request of that checkpoint: its further parts say the same."""

    def feed(self, record: Record) -> None:
        """The next record."""
        if isinstance(record, UsageEvent):
            seq = record.seq or 0
            if seq <= self.last_seq:
                return
            self.last_seq = seq
            self.tally.add(record)
            self._close(identity_of(record))
            self.ended += record.kind == "usage" and record.status != "lost"
        elif isinstance(record, Start):
            if record.no > self.last_no:
                self.last_no = record.no
                self.started += 1
                self._put(record)
            elif record.no in self._awaited:
                self._awaited.discard(record.no)
                self._put(record)
        elif isinstance(record, Progress):
            for entry in record.open:
                self.progress[entry.no] = (record.at, entry)
        elif isinstance(record, Boot):
            self.boot = record
        elif isinstance(record, Checkpoint):
            if (self.last_seq, self.last_no) == (0, 0):
                self.last_seq, self.last_no = self._began_at = record.last_seq, record.last_no
                self.started, self.ended = record.started, record.ended
            if (self.last_seq, self.last_no) == self._began_at == (record.last_seq, record.last_no):
                self.tally.put(record.totals)
                self._awaited |= set(record.open) - self.open.keys()  # else all of it was read
        else:
            self.farewell = record

    def _put(self, start: Start) -> None:
        self.open[start.no] = start
        self._numbers.setdefault(identity_of(start.lost), []).append(start.no)

    def _close(self, identity: Identity) -> None:
        numbers = self._numbers.get(identity)
        if numbers:
            number = numbers.pop(0)
            del self.open[number]
            self.progress.pop(number, None)
            if not numbers:
                del self._numbers[identity]

    def head(self) -> list[Record]:
        """What a further segment begins with, so that it says everything without the ones before."""
        if self.boot is None:
            return []
        if not self.last_no:
            return [self.boot]
        totals, numbers = self.tally.all(), list(self.open)
        parts = max(1, -(-len(totals) // MOST_TOTALS), -(-len(numbers) // MOST_OPEN))
        checkpoints = [
            Checkpoint(
                last_seq=self.last_seq, last_no=self.last_no, started=self.started, ended=self.ended,
                totals=totals[part * MOST_TOTALS : (part + 1) * MOST_TOTALS],
                open=numbers[part * MOST_OPEN : (part + 1) * MOST_OPEN],
            )
            for part in range(parts)
        ]  # fmt: skip
        return [self.boot, *checkpoints, *self.open.values(), *self._progress_of_open()]

    def _progress_of_open(self) -> list[Progress]:
        """The last word of each, under the time at which it was said."""
        by_time: dict[str, list[OpenRequest]] = {}
        for number in self.open:
            if number in self.progress:
                at, so_far = self.progress[number]
                by_time.setdefault(at, []).append(so_far)
        return [
            Progress(at=at, open=said[first : first + MOST_PROGRESS])
            for at, said in by_time.items()
            for first in range(0, len(said), MOST_PROGRESS)
        ]

    def lost(self) -> list[UsageEvent]:
        """The events of what is still open: counts and time of the last progress, or nothing since the start."""
        found = []
        for number, start in enumerate(self.open.values(), self.last_seq + 1):
            at, so_far = self.progress.get(start.no, (start.lost.timestamp, None))
            event = msgspec.structs.replace(start.lost, seq=number, timestamp=at)
            if so_far is not None:
                event = msgspec.structs.replace(
                    event,
                    input_tokens=so_far.input_tokens,
                    output_tokens=so_far.output_tokens,
                    cache_hit_tokens=so_far.cache_hit_tokens,
                    engine_input_tokens=so_far.engine_input_tokens,
                    engine_cached_tokens=so_far.engine_cached_tokens,
                    gpu_us=so_far.gpu_us,
                )
            found.append(event)
        return found
