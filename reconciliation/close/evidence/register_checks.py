"""The registers of a pack, its documents and Stripe's objects against its journal and contents; and the page of it."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from itertools import zip_longest
from typing import Any, Final

from billing.money import ZERO, currency, exactly, from_minor, plain
from billing.presentation.pages import identifier
from reconciliation.agreement import Check, compare
from reconciliation.close.close_store import BOOK
from reconciliation.close.evidence import registers, renderings, stripe_read, summary
from reconciliation.close.evidence.pack import Pack
from reconciliation.close.evidence.pack_files import table
from reconciliation.close.evidence.registers import Row
from reconciliation.close.evidence.signed import same_lines, states
from reconciliation.close.evidence.writing import DOCUMENTS_FILE, GATES_FILE, INVOICES_FILE
from reconciliation.close.gates import movement
from reconciliation.close.gates.gate import Gate
from reconciliation.close.signatures import SINCE, since_signed
from reconciliation.close.states import State
from reconciliation.comparison import Value

RECEIVABLE: Final = 1100


def register_checks(pack: Pack) -> list[Check]:
    """Everything that can be compared of registers, other documents, what Stripe had, and the page."""
    documents = [*pack.of(INVOICES_FILE), *pack.of(DOCUMENTS_FILE)]
    booked: dict[str, Row] = {}
    for entity in pack.journals:
        booked |= registers.booked_documents(pack.journal(entity), pack.month)
    return [
        _booked(pack, documents, booked),
        _registers(pack, booked),
        _numbers(pack, documents, booked),
        _in_stripe(pack),
        _movements(pack),
        stripe_read.money_check(
            pack.of(stripe_read.FILE), [pack.journal(entity) for entity in pack.journals], pack.month
        ),
        _page(pack),
    ]


def _booked(pack: Pack, documents: Iterable[Row], booked: Mapping[str, Row]) -> Check:
    """Documents are booked as what they ask for: ledger 1100, both ways for what is of the month. Major units."""
    ours: dict[str, Value] = {}
    theirs: dict[str, Value] = {}
    known = set()
    for document in documents:
        key = document["invoice_id"]
        known.add(key)
        paid = sum(credit["amount"] for credit in document["credits"] if credit["pays"])
        ends = datetime.fromisoformat(document["service_end"]).date()
        asked = from_minor(document["total"] - paid, currency(document["currency"], ends))
        entry = booked.get(key)
        if asked or entry is not None:
            ours[key] = Decimal(plain(asked))
        if entry is not None:
            with exactly():
                moved = sum((Decimal(leg["amount"]) for leg in entry["legs"] if leg["code"] == RECEIVABLE), ZERO)
            theirs[key] = Decimal(plain(moved))
    for key, entry in booked.items():
        if key not in known and entry["source"]["period"] == pack.month:
            theirs[f"{key}, a document that is not here"] = entry["entry_id"]
    return compare("documents are booked", "documents", f"journal {RECEIVABLE}", ours, theirs)


def _registers(pack: Pack, booked: Mapping[str, Row]) -> Check:
    """Registers are what accounts, journals and documents say; what is not billed has who approved that."""
    others = list(pack.of(DOCUMENTS_FILE))
    notes = [
        row
        for entity in pack.journals
        for row in registers.credit_notes((d for d in others if d["legal_entity"] == entity), booked)
    ]
    disputes = [row for entity in pack.journals for row in registers.disputes(pack.journal(entity), pack.month)]
    by_hand = [row for entity in pack.journals for row in registers.manual_journals(pack.journal(entity), pack.month)]
    since = since_signed(
        pack.signatures_before, pack.signed_contents, {each["billing_account"]: each for each in pack.accounts},
        {each["invoice_id"]: each for each in pack.of(INVOICES_FILE)}, others,
    )  # fmt: skip
    said: dict[str, Value] = {}
    there: dict[str, Value] = {}
    for name, columns, rows, written in (
        (registers.SINCE_FILE, SINCE, since, SINCE),
        (registers.LATE_FILE, registers.LATE, registers.late_usage(pack.accounts), registers.LATE),
        (registers.NOTES_FILE, registers.NOTES, notes, registers.NOTES),
        (registers.DISPUTES_FILE, registers.DISPUTES, disputes, registers.DISPUTES),
        (registers.MANUAL_FILE, registers.OF_JOURNAL, by_hand, registers.MANUAL),
    ):
        file = (pack.content / name).read_bytes()
        rewritten = file if columns == written else table(columns, _rows(file))
        ours, theirs = same_lines(name, table(columns, rows), rewritten)
        said |= ours
        there |= theirs
    for name, who in ((registers.MANUAL_FILE, "approved_by"), (registers.UNBILLABLE_FILE, "approved_by")):
        closed = name == registers.MANUAL_FILE or any(t["billing_account"] == BOOK for t in pack.transitions)
        for number, row in enumerate(_rows((pack.content / name).read_bytes()), start=1):
            if closed and not row[who]:
                said[f"{name}/row {number}/{who}"], there[f"{name}/row {number}/{who}"] = "a person", "nobody"
    return compare("registers are what the rest says", "accounts, journals, documents", "registers", said, there)


def _numbers(pack: Pack, documents: Iterable[Row], booked: Mapping[str, Row]) -> Check:
    """The register of numbers has no gap, and each document that bears one is in it once, with the month that booked
    it."""
    rows = _rows((pack.content / registers.NUMBERS_FILE).read_bytes())
    gaps = {f"{series}/{n}": n for series, missing in registers.missing_numbers(rows).items() for n in missing}
    ours: dict[str, Value] = dict(gaps)
    theirs: dict[str, Value] = dict.fromkeys(gaps, "missing, or there twice")
    for document in documents:
        entry = booked.get(document["invoice_id"])
        if document["number"] and entry is not None:
            ours[f"{document['invoice_id']}/number"] = document["number"]
    for row in rows:
        key = row["invoice_id"]
        entry = booked.get(key)
        ours[f"{key}/booked"] = entry["accounting_period"] if entry else ""
        theirs[f"{key}/booked"] = row["accounting_period"]
        if f"{key}/number" in ours:
            theirs[f"{key}/number"] = row["written"]
    return compare("numbers are those of the documents", "documents", registers.NUMBERS_FILE, ours, theirs)


def _movements(pack: Pack) -> Check:
    """What R11 had explained is in the register of movements, whose parts add up."""
    found = [each for each in pack.of(GATES_FILE) if each["gate"] == Gate.R11]
    told = {each["key"]: each["right"] for result in found for each in result["differences"]}
    ours: dict[str, Value] = {} if pack.is_without_events else dict(told)
    theirs: dict[str, Value] = {}
    for row in _rows((pack.content / registers.MOVED_FILE).read_bytes()):
        moved = movement.read(row)
        if moved.key in ours:
            theirs[moved.key] = moved.told
        ours[f"{moved.key}/parts"], theirs[f"{moved.key}/parts"] = str(moved.row), str(row)
    return compare("movements are as explained", "gates", registers.MOVED_FILE, ours, theirs)


def _in_stripe(pack: Pack) -> Check:
    """What a gate compared with Stripe when an account was closed; what it named as different is excused."""
    closed = {account for account, state in states(pack).items() if state is State.CLOSED}
    issued = list(pack.of(INVOICES_FILE))
    compared = {document["invoice_id"] for document in issued if document["billing_account"] in closed}
    named = {
        each["key"].split("/")[0].split(" ")[0]
        for result in pack.of(GATES_FILE)
        if result["gate"] == Gate.R5B
        for each in result["differences"]
    }
    return stripe_read.documents_check(pack.of(stripe_read.FILE), issued, compared, named, pack.of(DOCUMENTS_FILE))


def _page(pack: Pack) -> Check:
    """The page says what is made of the content, piece by piece; the PDF beside it is of that page."""
    content = {
        path.relative_to(pack.content).as_posix(): path.read_bytes()
        for path in sorted(pack.content.rglob("*"))
        if path.is_file() and not path.name.startswith("journal-")
    }
    page = (pack.folder / summary.PAGE).read_text()
    wanted, there = summary.words(renderings.page_of(pack.month, content)), summary.words(page)
    ours: dict[str, Value] = {}
    theirs: dict[str, Value] = {}
    for number, (left, right) in enumerate(zip_longest(wanted, there, fillvalue=""), start=1):
        ours[f"piece {number}"], theirs[f"piece {number}"] = left, right
    pdf = pack.folder / summary.PRINTED
    if pdf.exists():
        of_page = identifier(page)
        ours["pdf"] = of_page.decode()
        theirs["pdf"] = ours["pdf"] if of_page in pdf.read_bytes() else "of another page"
    return compare("the page says what the content says", "content", summary.FOLDER, ours, theirs)


def _rows(data: bytes) -> list[dict[str, Any]]:
    return list(csv.DictReader(data.decode().splitlines(keepends=True)))
