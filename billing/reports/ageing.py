"""Receivables by how long they have been due, document by document. Values in, values out.

What a document asks for, less its credit notes and what was booked for it by name (written off, paid elsewhere). Money
through Stripe is booked per payer: it pays the documents that Stripe says are paid, then the one that was due first.
What is more than all of them is unapplied and stands as a row of its own, negative.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any, Final

from billing.money import ZERO, exactly, total
from billing.reports.report import Amounts, Report, grouped, summed, table, ties

BUCKETS: Final = ("not_due", "days_1_30", "days_31_60", "days_61_90", "days_over_90")
ENDS: Final = (0, 30, 60, 90)
COLUMNS: Final = ("billing_account", "document", "issue_date", "due_date", "days_overdue", "currency", "open", *BUCKETS)
UNAPPLIED: Final = "(unapplied)"


@dataclass(frozen=True, slots=True)
class Receivable:
    """What a document asks its payer for, in major units; negative on a credit note, which names what it is against.

    `is_paid`: whether Stripe has it as paid by then.
    """

    document_id: str
    billing_account: str
    currency: str
    amount: Decimal
    number: str = ""
    issued: date | None = None
    due: date | None = None
    is_paid: bool = False
    against: str | None = None


@dataclass(frozen=True, slots=True)
class Settled:
    """What an entry other than a document's adds to what an account owes, in major units: a payment is negative.

    `document_id`: which document it is for, where the entry says so.
    """

    billing_account: str
    currency: str
    amount: Decimal
    document_id: str | None = None


def ageing_report(
    receivables: Iterable[Receivable], settled: Iterable[Settled], on: date, booked: Amounts, *, by_document: bool
) -> Report:
    """What is open on a day, by document or billing account. `booked`: (currency, account) → balance of 1100."""
    rows = []
    for of, listed in _by_payer(receivables, settled).items():
        rows += _payer_rows(of, *listed, on)
    reported = summed(((row["currency"], row["billing_account"]), row["open"]) for row in rows)
    found = table(rows, COLUMNS)
    if not by_document:
        found = grouped(found, ["currency", "billing_account"], ["open", *BUCKETS])
    return Report("ageing", found, ties("open = 1100", reported, booked))


Payer = tuple[str, str]


def _by_payer(
    receivables: Iterable[Receivable], settled: Iterable[Settled]
) -> dict[Payer, tuple[list[Receivable], list[Settled]]]:
    found: dict[Payer, tuple[list[Receivable], list[Settled]]] = defaultdict(lambda: ([], []))
    for document in receivables:
        found[document.currency, document.billing_account][0].append(document)
    for each in settled:
        found[each.currency, each.billing_account][1].append(each)
    return dict(sorted(found.items()))


def _payer_rows(
    of: Payer, documents: Sequence[Receivable], settled: Sequence[Settled], on: date
) -> list[dict[str, Any]]:
    open_, pool = _named(documents, settled)
    unpaid = [document for document in documents if document.document_id in open_]
    for document in sorted(unpaid, key=lambda d: (not d.is_paid, d.due or date.max, d.number, d.document_id)):
        paid = max(ZERO, min(open_[document.document_id], pool))
        with exactly():
            open_[document.document_id] -= paid
            pool -= paid
    rows = [_row(document, open_[document.document_id], on) for document in unpaid if open_[document.document_id]]
    rows.sort(key=lambda row: (-row["days_overdue"], row["document"]))
    if pool:
        rows.append(_row(Receivable("", of[1], of[0], ZERO, UNAPPLIED), -pool, on))
    return rows


def _named(documents: Sequence[Receivable], settled: Sequence[Settled]) -> tuple[dict[str, Decimal], Decimal]:
    """What is open of each document by what names it, at least nothing; and what is there to pay with."""
    known = {document.document_id for document in documents if document.against is None}
    sums: dict[str, list[Decimal]] = {document_id: [] for document_id in known}
    pool: list[Decimal] = []
    named = [(d.against or d.document_id, d.amount) for d in documents] + [(s.document_id, s.amount) for s in settled]
    for document_id, amount in named:
        if document_id in known:
            sums[document_id].append(amount)
        else:
            pool.append(-amount)
    open_ = {document_id: total(amounts) for document_id, amounts in sums.items()}
    pool += [-amount for amount in open_.values() if amount < 0]
    return {document_id: max(ZERO, amount) for document_id, amount in open_.items()}, total(pool)


def _row(document: Receivable, amount: Decimal, on: date) -> dict[str, Any]:
    days = max(0, (on - document.due).days) if document.due else 0
    bucket = BUCKETS[sum(days > end for end in ENDS)]
    buckets: Mapping[str, Decimal] = {name: amount if name == bucket else ZERO for name in BUCKETS}
    return {
        "billing_account": document.billing_account, "document": document.number or document.document_id,
        "issue_date": document.issued, "due_date": document.due, "days_overdue": days,
        "currency": document.currency, "open": amount, **buckets,
    }  # fmt: skip
