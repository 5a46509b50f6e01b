"""The hash chain over a legal entity's journal: what is hashed, and where a chain breaks. No database.

    chain_hash(n) = SHA-256(tag ‖ chain_hash(n − 1) ‖ canonical JSON of entry n), chain_hash(0) = 32 zero bytes

Whoever keeps one chain hash can tell later that no entry up to it was changed, removed, added or moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from billing.errors import JournalBroken
from billing.money import plain, total
from billing.periods import rfc3339

TAG: Final = b"tollbook.journal_chain.v1\n"
FORMAT: Final = "tollbook.journal.v1"
BEFORE_THE_FIRST: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class BookedLeg:
    """A leg as it is booked: debit positive, major units."""

    code: int
    currency: str
    subledger: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class BookedEntry:
    """A journal entry as it is booked."""

    entry_id: int
    idempotency_key: str
    input_hash: bytes
    kind: str
    legal_entity: str
    accounting_period: str
    original_period: str | None
    effective_at: datetime
    recorded_at: datetime
    reverses: int | None
    source: Mapping[str, Any]
    legs: tuple[BookedLeg, ...]

    def content(self) -> dict[str, Any]:
        """All that the entry says, as JSON holds it: amounts as decimal strings, times in UTC to the microsecond."""
        return {
            "entry_id": self.entry_id,
            "idempotency_key": self.idempotency_key,
            "input_hash": self.input_hash.hex(),
            "kind": self.kind,
            "legal_entity": self.legal_entity,
            "accounting_period": self.accounting_period,
            "original_period": self.original_period,
            "effective_at": written_time(self.effective_at),
            "recorded_at": written_time(self.recorded_at),
            "reverses": self.reverses,
            "source": dict(self.source),
            "legs": [
                {"code": leg.code, "currency": leg.currency, "subledger": leg.subledger, "amount": plain(leg.amount)}
                for leg in self.legs
            ],
        }


@dataclass(frozen=True, slots=True)
class Link:
    """One place in the chain: what is stored as the hash, and the content to be hashed. None: the entry is gone."""

    position: int
    entry_id: int
    chain_hash: bytes
    content: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """The entry, for a person."""
        key = f" ({self.content.get('idempotency_key')})" if self.content else ""
        return f"entry {self.entry_id}{key}, number {self.position} of the chain"


def written_time(at: datetime) -> str:
    """`2026-10-31T00:00:00.000000Z`."""
    return rfc3339(at, timespec="microseconds")


def canonical(value: object) -> bytes:
    """JSON in one form only: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def next_hash(before: bytes, content: Mapping[str, Any]) -> bytes:
    """The chain hash of an entry that follows one with chain hash `before`."""
    return hashlib.sha256(TAG + before + canonical(content)).digest()


def verified(links: Iterable[Link], *, after: bytes = BEFORE_THE_FIRST, position: int = 0) -> tuple[int, bytes]:
    """Follow a chain whose number `position` has the hash `after`; the position and hash of its end.

    Raises JournalBroken with the first link that is not what was sealed.
    """
    for link in links:
        if link.position != position + 1:
            raise JournalBroken(f"number {position + 1} of the chain is missing: {link.name} comes next")
        if link.content is None:
            raise JournalBroken(f"{link.name} was removed")
        if next_hash(after, link.content) != link.chain_hash:
            raise JournalBroken(f"{link.name} is not what was sealed")
        position, after = link.position, link.chain_hash
    return position, after


def exported(legal_entity: str, links: Iterable[Link]) -> Iterator[str]:
    """A chain as canonical JSON lines: a first line that says what it is, the entries, a last line with its end."""
    position, head = 0, BEFORE_THE_FIRST
    yield _line({"journal": FORMAT, "legal_entity": legal_entity})
    for link in links:
        yield _line({"position": link.position, "chain_hash": link.chain_hash.hex(), "entry": link.content})
        position, head = link.position, link.chain_hash
    yield _line({"entries": position, "chain_hash": head.hex()})


def verified_export(lines: Iterable[str], *, name: str = "the export") -> tuple[int, bytes]:
    """Follow the chain of an export without the database; its length and last hash. Raises JournalBroken.

    Besides the chain: every entry balances per currency, and the export has its first and last line.
    """
    read = _Export(name)
    position, head = verified(read.links(lines))
    if read.end is None:
        raise JournalBroken(f"{name} ends after entry {position} of its chain: its last line is missing")
    if read.end != (position, head.hex()):
        raise JournalBroken(f"{name} has {position} entries with the chain hash {head.hex()}; its last line says other")
    return position, head


class _Export:
    """Reads an export line by line, so that it may be larger than memory."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.end: tuple[int, str] | None = None

    def links(self, lines: Iterable[str]) -> Iterator[Link]:
        """Its entries. Raises JournalBroken for a line that is none."""
        for number, line in enumerate(lines, start=1):
            try:
                found = json.loads(line)
                if number == 1:
                    if found["journal"] != FORMAT:
                        raise JournalBroken(f"{self.name} is no export of the journal that this version can read")
                elif self.end is not None:
                    raise JournalBroken(f"{self.name}:{number}: something follows its last line")
                elif "entries" in found:
                    self.end = (int(found["entries"]), str(found["chain_hash"]))
                else:
                    yield _balanced(_link(found))
            except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
                raise JournalBroken(f"{self.name}:{number}: no line of an export: {error!r}") from None


def _link(found: Mapping[str, Any]) -> Link:
    entry = found["entry"]
    return Link(int(found["position"]), int(entry["entry_id"]), bytes.fromhex(found["chain_hash"]), entry)


def _balanced(link: Link) -> Link:
    legs = (link.content or {})["legs"]
    for currency in {leg["currency"] for leg in legs}:
        if total(Decimal(leg["amount"]) for leg in legs if leg["currency"] == currency):
            raise JournalBroken(f"{link.name} does not balance in {currency}")
    return link


def _line(value: object) -> str:
    return canonical(value).decode() + "\n"
