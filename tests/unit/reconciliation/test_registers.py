"""Registers of a close and Stripe's objects: rows of a journal and of documents, worked by hand."""

from __future__ import annotations

from typing import Any

from reconciliation.close.evidence import registers
from reconciliation.close.evidence.stripe_read import documents_check, money_check


def entry(position: int, kind: str, *legs: tuple[int, str, str], **source: str) -> dict[str, Any]:
    return {
        "position": position,
        "entry": {
            "entry_id": position, "kind": kind, "legal_entity": "default", "accounting_period": "2026-10",
            "original_period": None, "effective_at": "2026-10-05T00:00:00.000000Z", "source": source,
            "legs": [{"code": code, "subledger": sub, "currency": "USD", "amount": a} for code, sub, a in legs],
        },
    }  # fmt: skip


JOURNAL = [
    {"journal": "tollbook.journal.v1"},
    entry(1, "stripe_dispute", (1010, "", "-35"), (1180, "acme", "20"), (5110, "", "15"),
          balance_transaction="txn_1", source="dp_1"),
    entry(2, "dispute_lost", (4930, "", "20"), (1180, "acme", "-20"), dispute="dp_1"),
    entry(3, "manual", (5200, "", "7"), (1100, "acme", "-7"), memo="bankrupt", document="court 7"),
    entry(4, "credit_note", (1100, "acme", "-2"), (1150, "acme", "2"), invoice_id="note", period="2026-09"),
    {"entries": 4},
]  # fmt: skip
DOCUMENT: dict[str, Any] = {
    "invoice_id": "i1", "currency": "USD", "service_end": "2026-11-01T00:00:00Z", "amount_due": 602, "number": "N-1",
    "stripe_invoice_id": "in_1",
}  # fmt: skip
IN_STRIPE: dict[str, Any] = {
    "object": "invoice", "id": "in_1", "number": "N-1", "currency": "usd", "total": 602,
    "metadata": {"invoice_id": "i1"}, "lines": {"has_more": True, "data": []},
}  # fmt: skip
LINE = {"object": "line_item", "invoice": "in_1", "amount": 602}
NOTE = {"kind": "credit_note", "number": "CN-1", "total": -3, "credits": [{"pays": True, "amount": -1}],
        "currency": "USD", "service_end": "2026-10-01T00:00:00Z"}  # fmt: skip
NOTE_IN_STRIPE = {"object": "credit_note", "id": "cn_1", "invoice": "in_1", "status": "issued", "currency": "usd",
                  "total": 2, "metadata": {"credit_note": "CN-1"}}  # fmt: skip
MONEY = {"object": "balance_transaction", "id": "txn_1", "net": -3500, "currency": "usd", "created": 1_791_000_000}


def test_disputes_and_entries_by_hand_come_from_the_journal() -> None:
    found = list(registers.disputes(JOURNAL, "2026-10"))
    assert [(row["about"], row["billing_account"], row["disputed"], row["fee"], row["lost"]) for row in found] == [
        ("dp_1", "acme", "20", "15", "0"), ("dp_1", "acme", "-20", "0", "20"),
    ]  # fmt: skip
    rows = [(r["code"], r["debit"], r["credit"], r["document"]) for r in registers.manual_journals(JOURNAL, "2026-10")]
    assert rows == [(5200, "7", "", "court 7"), (1100, "", "7", "court 7")]
    assert list(registers.disputes(JOURNAL, "2026-11")) == []


def test_a_credit_note_is_listed_with_what_it_takes_back_and_when_it_was_booked() -> None:
    note = {"invoice_id": "note", "kind": "credit_note", "number": "CN-1", "credits_invoice": {"number": "N-1"},
            "period": "2026-09", "tax": [{"amount": -1}], "total": -3}  # fmt: skip
    booked = registers.booked_documents(JOURNAL, "2026-10")
    (row,) = registers.credit_notes([note, note | {"kind": "advance"}], booked)
    assert (row["credits_number"], row["original_period"], row["accounting_period"], row["tax"]) == (
        "N-1", "2026-09", "2026-10", -1
    )  # fmt: skip
    assert registers.booked_documents(JOURNAL, "2026-11") == {}


def test_numbers_that_are_missing_or_there_twice_are_named() -> None:
    rows = [{"legal_entity": "default", "series": "invoice", "number": n} for n in (3, 4, 4, 7)]
    assert registers.missing_numbers(rows) == {"default/invoice": [4, 5, 6]}


def test_stripes_invoices_are_the_documents_both_ways() -> None:
    def keys(objects: list[dict[str, Any]], required: tuple[str, ...] = ("i1",), excused: tuple[str, ...] = ()) -> Any:
        found = documents_check(objects, [DOCUMENT], required, excused, [NOTE, NOTE | {"number": "CN-2"}])
        return [each.key for each in found.differences]

    assert keys([IN_STRIPE, LINE]) == []
    assert keys([]) == ["i1"]
    assert keys([], required=()) == []
    assert keys([IN_STRIPE, LINE | {"amount": 1}]) == ["in_1/lines"]
    assert keys([IN_STRIPE | {"total": 1}, LINE]) == ["in_1/total"]
    assert keys([IN_STRIPE | {"total": 1}, LINE], excused=("in_1",)) == []
    assert keys([IN_STRIPE, LINE, NOTE_IN_STRIPE]) == []
    assert keys([IN_STRIPE, LINE, NOTE_IN_STRIPE | {"total": 3}]) == ["cn_1/total"]
    assert keys([IN_STRIPE, LINE, NOTE_IN_STRIPE | {"total": 3, "status": "void"}]) == []
    assert keys([IN_STRIPE, LINE, IN_STRIPE | {"id": "in_2", "metadata": {}}]) == ["in_2 is nobody's"]


def test_stripes_money_is_the_journals_both_ways() -> None:
    assert money_check([MONEY], [JOURNAL], "2026-10").differences == ()
    assert [each.key for each in money_check([], [JOURNAL], "2026-10").differences] == ["txn_1"]
    assert [each.key for each in money_check([MONEY | {"net": 1}], [JOURNAL], "2026-10").differences] == ["txn_1"]
    assert [each.key for each in money_check([MONEY, MONEY | {"id": "t"}], [JOURNAL], "2026-10").differences] == ["t"]
