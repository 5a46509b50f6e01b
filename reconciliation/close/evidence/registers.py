"""The registers of a close, as rows: what came late, credit notes, disputes, entries by hand, numbers. Values only.

Whoever writes a pack and whoever verifies it make them with the same functions, from the pack's other files.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

from billing.money import ZERO, exactly, plain
from billing.posting.manual_entries import KINDS as BY_HAND

FOLDER: Final = "registers"
LATE_FILE, UNBILLABLE_FILE, NOTES_FILE, DISPUTES_FILE, MANUAL_FILE, NUMBERS_FILE, MOVED_FILE, SINCE_FILE = (
    f"{FOLDER}/{name}.csv"
    for name in ("late_usage", "unbillable_usage", "credit_notes", "disputes", "manual_journals", "number_series",
                 "movements", "since_signed")
)  # fmt: skip
LATE: Final = ("billing_account", "tenant_id", "original_period", "billed_with", "key", "metric", "quantity", "amount",
               "currency", "tax_group")  # fmt: skip
UNBILLABLE: Final = ("billing_account", "tenant_id", "completed_at", "request_id", "attempt", "kind", "correction_no",
                     "model", "input_tokens", "cache_hit_tokens", "output_tokens", "horizon_days", "billed_to",
                     "approved_by", "reason")  # fmt: skip
NOTES: Final = ("legal_entity", "number", "issue_date", "billing_account", "credits_number", "original_period",
                "accounting_period", "currency", "net", "tax", "total", "invoice_id")  # fmt: skip
_ENTRY: Final = ("legal_entity", "position", "entry_id", "kind", "effective_at", "accounting_period", "original_period")
DISPUTES: Final = (*_ENTRY, "about", "billing_account", "currency", "disputed", "fee", "lost")
MANUAL: Final = (*_ENTRY, "code", "subledger", "currency", "debit", "credit", "memo", "document", "proposal_no",
                 "proposed_by", "approved_by")  # fmt: skip
OF_JOURNAL: Final = MANUAL[: MANUAL.index("proposal_no")]
"""Of the entries by hand what the journal itself says; who approved them is beside it."""
NUMBERS: Final = ("legal_entity", "series", "number", "written", "kind", "billing_account", "currency",
                  "accounting_period", "invoice_id")  # fmt: skip
DISPUTE_KINDS: Final = ("stripe_dispute", "stripe_dispute_reversal", "dispute_lost", "dispute_regained")
_DISPUTED, _FEE, _LOST = 1180, 5110, 4930
DOCUMENT_KINDS: Final = ("invoice", "credit_note")
"""Kinds of journal entries that book a document."""

Row = Mapping[str, Any]


def late_usage(accounts: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """What drafts bill of earlier periods, and what of this one came when its draft was built: the next invoice's."""
    for account in accounts:
        of = {"billing_account": account["billing_account"]}
        for document in account["documents"]:
            for line in document["lines"]:
                if line["original_period"] != document["period"]:
                    yield of | {
                        "tenant_id": line["tenant_id"], "original_period": line["original_period"],
                        "billed_with": f"{document['kind']} {document['period']}", "key": line["line_key"],
                        "metric": line["token_class"], "quantity": line["quantity"], "amount": line["amount_exact"],
                        "currency": document["currency"], "tax_group": line["tax_group"],
                    }  # fmt: skip
        for tenant in account["tenants"]:
            for line in tenant["late_lines"]:
                if line["billing_account"] == account["billing_account"]:
                    late = {"original_period": tenant["period"], "billed_with": "next invoice"}
                    yield of | late | {name: line[name] for name in LATE if name not in of | late}


def entries(journal: Iterable[Row], since: str = "", month: str = "") -> Iterator[Row]:
    """A journal's entries with their positions: of a month, or of all that are booked since one."""
    for line in journal:
        entry = line.get("entry")
        if entry is not None and entry["accounting_period"] >= since and month in ("", entry["accounting_period"]):
            yield entry | {"position": line["position"]}


def booked_documents(journal: Iterable[Row], since: str) -> dict[str, Row]:
    """The entries that book documents since a month, by the document's id."""
    return {
        each["source"]["invoice_id"]: each for each in entries(journal, since=since) if each["kind"] in DOCUMENT_KINDS
    }


def credit_notes(documents: Iterable[Row], booked: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
    """Credit notes among documents, with the month that booked each. Amounts in minor units, as on the documents."""
    for document in documents:
        if document["kind"] == "credit_note":
            original = document["credits_invoice"] or {}
            entry = booked.get(document["invoice_id"], {})
            yield {name: document.get(name) for name in NOTES} | {
                "credits_number": original.get("number"), "original_period": document["period"],
                "accounting_period": entry.get("accounting_period"),
                "tax": sum(row["amount"] for row in document["tax"]),
            }  # fmt: skip


def disputes(journal: Iterable[Row], month: str) -> Iterator[dict[str, Any]]:
    """What disputes moved in a month: withdrawn and given back (1180), fees (5110), lost for good (4930)."""
    for entry in entries(journal, month=month):
        if entry["kind"] in DISPUTE_KINDS:
            on = [leg for leg in entry["legs"] if leg["code"] == _DISPUTED]
            yield {name: entry[name] for name in _ENTRY} | {
                "about": entry["source"].get("dispute") or entry["source"].get("source", ""),
                "billing_account": on[0]["subledger"] if on else "",
                "currency": (on or entry["legs"])[0]["currency"],
                "disputed": _sum(entry, _DISPUTED), "fee": _sum(entry, _FEE), "lost": _sum(entry, _LOST),
            }  # fmt: skip


def manual_journals(journal: Iterable[Row], month: str) -> Iterator[dict[str, Any]]:
    """Entries by hand that a month booked, leg by leg, as far as the journal says them."""
    for entry in entries(journal, month=month):
        if entry["kind"] in BY_HAND:
            for leg in entry["legs"]:
                amount = Decimal(leg["amount"])
                yield {name: entry[name] for name in _ENTRY} | {
                    "code": leg["code"], "subledger": leg["subledger"], "currency": leg["currency"],
                    "debit": plain(amount) if amount > 0 else "", "credit": plain(-amount) if amount < 0 else "",
                    "memo": entry["source"].get("memo", ""), "document": entry["source"].get("document", ""),
                }  # fmt: skip


def missing_numbers(rows: Iterable[Row]) -> dict[str, list[int]]:
    """By series the numbers between the first and the last of a register that are not there once."""
    numbers: dict[str, Counter[int]] = defaultdict(Counter)
    for row in rows:
        numbers[f"{row['legal_entity']}/{row['series']}"][int(row["number"])] += 1
    return {
        series: [number for number in range(min(listed), max(listed) + 1) if listed[number] != 1]
        for series, listed in numbers.items()
    }


def _sum(entry: Row, code: int) -> str:
    with exactly():
        return plain(sum((Decimal(leg["amount"]) for leg in entry["legs"] if leg["code"] == code), ZERO))
