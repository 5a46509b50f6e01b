"""The hash chain: what it covers, and what it names when something was changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from billing.errors import JournalBroken
from billing.ledger.journal_chain import (
    BEFORE_THE_FIRST,
    BookedEntry,
    BookedLeg,
    Link,
    canonical,
    exported,
    next_hash,
    verified,
    verified_export,
)

AT = datetime(2026, 10, 31, 12, tzinfo=UTC)


def entry(number: int, amount: str = "1.500000000001", **changed: Any) -> BookedEntry:
    legs = (
        BookedLeg(1150, "USD", "t1", Decimal(amount)),
        BookedLeg(4000, "USD", "", -Decimal(amount)),
    )
    return replace(
        BookedEntry(
            number, f"k{number}", b"\x01" * 32, "accrual", "default", "2026-10", None, AT, AT, None, {"a": "é"}, legs
        ),
        **changed,
    )


def chain(*entries: BookedEntry) -> list[Link]:
    head, links = BEFORE_THE_FIRST, []
    for position, one in enumerate(entries, start=1):
        head = next_hash(head, one.content())
        links.append(Link(position, one.entry_id, head, one.content()))
    return links


LINKS = chain(entry(1), entry(2), entry(3))


def test_an_untouched_chain_ends_where_it_ended() -> None:
    assert verified(LINKS) == (3, LINKS[-1].chain_hash)
    assert verified([]) == (0, BEFORE_THE_FIRST)
    assert verified(LINKS[1:], after=LINKS[0].chain_hash, position=1) == (3, LINKS[-1].chain_hash)


def test_a_chain_hash_can_be_recomputed_by_hand() -> None:
    text = json.dumps(entry(1).content(), sort_keys=True, separators=(",", ":"))
    by_hand = hashlib.sha256(b"tollbook.journal_chain.v1\n" + bytes(32) + text.encode()).hexdigest()
    assert LINKS[0].chain_hash.hex() == by_hand


CHANGES: dict[str, Any] = {
    "idempotency_key": "k9",
    "input_hash": b"\x02" * 32,
    "kind": "other",
    "legal_entity": "eu",
    "accounting_period": "2026-11",
    "original_period": "2026-09",
    "effective_at": AT + timedelta(microseconds=1),
    "recorded_at": AT + timedelta(microseconds=1),
    "reverses": 1,
    "source": {"a": "e"},
    "legs": entry(2, "1.500000000002").legs,
    "entry_id": 20,
}


@pytest.mark.parametrize("field", sorted(CHANGES))
def test_any_field_that_was_changed_breaks_the_chain_at_its_entry(field: str) -> None:
    changed = entry(2, **{field: CHANGES[field]})
    links = [LINKS[0], replace(LINKS[1], content=changed.content()), LINKS[2]]
    with pytest.raises(JournalBroken, match=r"entry 2 \(k.\), number 2 of the chain is not what was sealed"):
        verified(links)


def test_every_field_of_an_entry_is_covered() -> None:
    assert set(CHANGES) == set(BookedEntry.__slots__) == set(entry(1).content())


@pytest.mark.parametrize(
    ("links", "reason"),
    [
        ([LINKS[0], LINKS[2]], "number 2 of the chain is missing: entry 3"),
        ([LINKS[1], LINKS[2]], "number 1 of the chain is missing: entry 2"),
        ([LINKS[0], replace(LINKS[1], content=None), LINKS[2]], "entry 2, number 2 of the chain was removed"),
        ([LINKS[0], LINKS[0], LINKS[1]], "number 2 of the chain is missing"),
        (
            [LINKS[0], replace(LINKS[2], position=2), replace(LINKS[1], position=3)],
            r"entry 3 \(k3\), number 2 of the chain is not",
        ),
    ],
)
def test_what_was_removed_or_moved_is_named(links: list[Link], reason: str) -> None:
    with pytest.raises(JournalBroken, match=reason):
        verified(links)


def test_the_same_content_has_one_form() -> None:
    berlin = timezone(timedelta(hours=2))
    written = entry(1, effective_at=AT.astimezone(berlin), source={"a": "é"}, legs=entry(1, "1.5000000000010").legs)
    assert canonical(written.content()) == canonical(entry(1).content())


def test_an_export_is_followed_without_the_database() -> None:
    lines = list(exported("default", LINKS))
    assert verified_export(lines) == (3, LINKS[-1].chain_hash)
    assert verified_export(exported("default", [])) == (0, BEFORE_THE_FIRST)
    assert all(line.isascii() and line.endswith("\n") for line in lines)


def edited(number: int, old: str, new: str) -> list[str]:
    lines = list(exported("default", LINKS))
    assert old in lines[number]
    lines[number] = lines[number].replace(old, new)
    return lines


LINES = list(exported("default", LINKS))


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (edited(2, '"k2"', '"k9"'), r"entry 2 \(k9\), number 2 of the chain is not what was sealed"),
        (edited(3, '"1.500000000001"', '"1.500000000002"'), "number 3 of the chain does not balance in USD"),
        (LINES[:2] + LINES[3:], "number 2 of the chain is missing"),
        (LINES[:-1], "ends after entry 3 of its chain: its last line is missing"),
        ([*LINES, LINES[1]], "x:6: something follows its last line"),
        ([*LINES[:3], LINES[-1]], "has 2 entries"),
        (["{}\n"], "x:1: no line of an export"),
        (['{"journal":"other"}\n'], "no export of the journal"),
        ([LINES[0], "nonsense\n"], "x:2: no line of an export"),
        ([LINES[0], '{"position":1,"chain_hash":"00","entry":{"entry_id":1}}\n'], "x:2: no line of an export"),
        ([], "its last line is missing"),
    ],
)  # fmt: skip
def test_an_export_that_was_changed_or_cut_is_told(lines: list[str], reason: str) -> None:
    with pytest.raises(JournalBroken, match=reason):
        verified_export(lines, name="x")


def test_a_rewritten_chain_is_whole_by_itself_but_ends_with_another_hash() -> None:
    rewritten = chain(entry(1), entry(2, "1.600000000001"), entry(3))
    assert verified_export(exported("default", rewritten))[1] != LINKS[-1].chain_hash
