"""Dirty traffic from a seed, and what must become of it, worked out while it is made: not by the code under test.

Most requests are one plain event, half of them under a UUIDv7, most of them numbered by one of a few replicas. The
others are resent (also with another time), reported by several sources in any order, corrected (also before what is
corrected arrives), contradicted, late, or rubbish. What follows a first message follows it within some hundred
messages, so that both meet in one chunk or in two.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from serving_adapter.identity import Identity, event_id_of
from serving_adapter.topics import USAGE
from tests.builders import uuid_v7

BEGIN: Final = datetime(2026, 11, 1, tzinfo=UTC)
MODELS: Final = ("llama-3.3-70b-instruct", "qwen3-coder-30b")
SOURCES: Final = ("engine", "stream", "gateway", "settled", "estimate")  # the strongest first
APART: Final = 300
"""How many messages may lie between a first message and what follows it."""

BOOT: Final = "boot-1"
REPLICAS: Final = ("replica-1", "replica-2", "replica-3")

Row = tuple[Identity, str]
"""What is stored once: an identity as one source reported it."""
Key = tuple[str, str, str, str, str, datetime]
"""Of a sum: tenant, model, adapter, purpose, source, hour."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `row` is what it leaves when it is applied, None if nothing (or only once it is released)."""

    tenant_id: str
    value: bytes
    row: Row | None = None


@dataclass(slots=True)
class Expected:
    """What the database must hold once everything is applied, and the orphans are released."""

    rows: set[Row] = field(default_factory=set)
    sums: dict[Key, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0, 0, 0]))
    """Requests, input, cached, output, GPU time."""
    quarantine: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    numbers: Counter[tuple[str, str]] = field(default_factory=Counter)
    """The last number that each replica's boot has given: all from 1 to it must have arrived."""
    beyond: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Tokens that each boot's engine made beyond those that are billed."""


class Traffic:
    """Makes messages, round after round, and adds up what is to be expected of all of them."""

    def __init__(self, seed: int, tenants: int = 40) -> None:
        self._dice = random.Random(seed)
        self.tenants = [f"tenant_{number:03d}" for number in range(tenants)]
        self.expected = Expected()
        self.padding = 0
        """Bytes of a field that nobody knows, so that messages are larger than they usually are."""
        self._requests = 0

    def round(self, requests: int) -> list[Message]:
        """The messages of so many further requests, in the order of sending."""
        placed: list[tuple[float, int, Message]] = []
        for number in range(requests):
            at = float(number)
            for message in self._request():
                placed.append((at, len(placed), message))
                at += self._dice.random() * APART
        self.expected.messages += len(placed)
        return [message for _, _, message in sorted(placed, key=lambda each: each[:2])]

    def _request(self) -> list[Message]:
        """The messages of one request, in order."""
        dice = self._dice
        event = self._event()
        makers = (self._plain, self._resent, self._versions, self._corrected, self._conflict, self._rubbish)
        (make,) = dice.choices(makers, (60, 14, 8, 10, 3, 5))
        return make(event)

    def _event(self) -> dict[str, Any]:
        dice = self._dice
        self._requests += 1
        # Skewed: the first tenants have most of the traffic
        tenant = self.tenants[int(len(self.tenants) * dice.random() ** 3)]
        late = dice.randrange(72) if dice.random() < 0.05 else 0
        completed = BEGIN + timedelta(days=4, seconds=self._requests % 7200) - timedelta(hours=late)
        input_tokens = dice.randrange(1, 4000)
        padding = {"padding": dice.randbytes(self.padding // 2).hex()} if self.padding else {}
        return padding | {
            "tenant_id": tenant,
            "request_id": self._request_id(completed),
            "model": dice.choice(MODELS),
            "input_tokens": input_tokens,
            "cache_hit_tokens": dice.randrange(input_tokens + 1),
            "output_tokens": dice.randrange(100, 900),
            "gpu_us": dice.choice((0, dice.randrange(9_000_000))),
            "adapter": dice.choice(("", "", "a--fr--1")),
            "attempt": dice.choice((1, 1, 1, 2, 3)),
            "purpose": dice.choice(("tenant",) * 9 + ("probe",)),
            "timestamp": completed.isoformat(),
        }

    def _request_id(self, completed: datetime) -> str:
        if self._dice.random() < 0.5:
            return f"req-{self._requests:07d}"
        return uuid_v7(completed - timedelta(seconds=self._dice.randrange(60)), self._dice.getrandbits(48))

    def _numbered(self, event: dict[str, Any]) -> dict[str, Any]:
        """The event with the next number of the replica that served it; some emitters give none."""
        if self._dice.random() < 0.3:
            return event
        replica = self._dice.choice(REPLICAS)
        beyond = self._dice.choice((0, 0, 0, self._dice.randrange(1, 50)))
        if beyond:  # prompts with n > 1, beam search
            self.expected.beyond[replica, BOOT] += beyond
            event = event | {"engine_output_tokens": event["output_tokens"] + beyond}
        return event | {"replica_id": replica, "boot_id": BOOT, "seq": self._next_number(replica)}

    def _next_number(self, replica: str) -> int:
        self.expected.numbers[replica, BOOT] += 1
        return self.expected.numbers[replica, BOOT]

    def _plain(self, event: dict[str, Any]) -> list[Message]:
        event = self._numbered(event)
        self._count(event)
        return [self._message(event)]

    def _resent(self, event: dict[str, Any]) -> list[Message]:
        event = self._numbered(event)
        self._count(event)
        again = event | {"timestamp": BEGIN.isoformat()} if self._dice.random() < 0.5 else event
        return [self._message(event)] + [self._message(again)] * self._dice.randint(1, 2)

    def _versions(self, event: dict[str, Any]) -> list[Message]:
        """The same request as several sources saw it: the strongest counts, all are stored."""
        sources = self._dice.sample(SOURCES, self._dice.randint(2, 3))
        versions = {s: event | {"usage_source": s, "output_tokens": 100 + SOURCES.index(s)} for s in sources}
        self._count(versions[min(sources, key=SOURCES.index)])
        return [self._message(versions[s]) for s in sources]

    def _corrected(self, event: dict[str, Any]) -> list[Message]:
        event = self._numbered(event)
        messages = [self._message(event)]
        self._count(event)
        for number in range(1, self._dice.randint(2, 3)):
            identity = _identity(event)
            delta = {"input_tokens": self._dice.randrange(5), "output_tokens": -self._dice.randrange(50),
                     "gpu_us": self._dice.randrange(900)}  # fmt: skip
            correction = event | delta | {"cache_hit_tokens": 0, "kind": "correction", "correction_no": number}
            correction.pop("engine_output_tokens", None)
            if "seq" in event:
                correction["seq"] = self._next_number(event["replica_id"])
            correction["corrects"] = str(event_id_of(identity))
            self._add(event, 0, delta["input_tokens"], 0, delta["output_tokens"], delta["gpu_us"])
            self.expected.rows.add((_identity(correction), "engine"))
            if self._dice.random() < 0.3:
                # Before what it corrects: it waits in quarantine, and is released; what it leaves, it leaves late
                messages.insert(0, Message(event["tenant_id"], json.dumps(correction).encode()))
            else:
                messages.append(self._message(correction))
        return messages

    def _conflict(self, event: dict[str, Any]) -> list[Message]:
        event = self._numbered(event)
        self._count(event)
        self.expected.quarantine["conflict"] += 1
        other = event | {"output_tokens": event["output_tokens"] + 1}
        return [self._message(event), Message(event["tenant_id"], json.dumps(other).encode())]

    def _rubbish(self, event: dict[str, Any]) -> list[Message]:
        reason, value = self._dice.choice(
            (
                ("torn", json.dumps(event).encode()[:-9]),
                ("torn", b"\xff\xfe\x00"),
                ("torn", b""),
                ("invalid", json.dumps(event | {"output_tokens": -1}).encode()),
                ("invalid", json.dumps(event | {"model": "a\0b"}).encode()),
                ("unknown_tenant", json.dumps(event | {"tenant_id": "stranger"}).encode()),
                ("unsupported", json.dumps(event | {"schema_version": 2}).encode()),
                ("future", json.dumps(event | {"timestamp": "2099-01-01T00:00:00Z"}).encode()),
                ("bad_time", json.dumps(event | {"timestamp": 0}).encode()),
            )
        )
        self.expected.quarantine[reason] += 1
        return [Message(event["tenant_id"], value)]

    def _message(self, event: dict[str, Any]) -> Message:
        row = (_identity(event), event.get("usage_source", "engine"))
        self.expected.rows.add(row)
        return Message(event["tenant_id"], json.dumps(event).encode(), row)

    def _count(self, event: dict[str, Any]) -> None:
        counts = (event[name] for name in ("input_tokens", "cache_hit_tokens", "output_tokens", "gpu_us"))
        self._add(event, 1, *counts)

    def _add(self, event: dict[str, Any], *counts: int) -> None:
        hour = datetime.fromisoformat(event["timestamp"]).replace(minute=0, second=0, microsecond=0)
        key = (event["tenant_id"], event["model"], event["adapter"], event["purpose"])
        sums = self.expected.sums[(*key, event.get("usage_source", "engine"), hour)]
        for i, count in enumerate(counts):
            sums[i] += count


def partition_of(message: Message, partitions: int = USAGE.partitions) -> int:
    """A tenant's partition, where no broker chooses it."""
    return random.Random(message.tenant_id).randrange(partitions)


def by_partition(messages: Sequence[Message], partitions: int = USAGE.partitions) -> dict[int, list[Message]]:
    """The messages of each partition, in order."""
    found: dict[int, list[Message]] = {partition: [] for partition in range(partitions)}
    for message in messages:
        found[partition_of(message, partitions)].append(message)
    return found


def _identity(event: dict[str, Any]) -> Identity:
    kind = event.get("kind", "usage")
    return Identity(event["tenant_id"], event["request_id"], event["attempt"], kind, event.get("correction_no", 0))
