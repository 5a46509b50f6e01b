"""What of Stripe a gate has read: kept as it was read, and compared with the documents and the journal of a pack."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, select
from sqlalchemy.dialects.postgresql import distinct_on

from billing import tables
from billing.database import add_rows
from billing.ledger.journal_chain import canonical
from billing.money import ZERO, currency, exactly, plain, to_stripe
from billing.periods import BillingPeriod
from billing.posting.stripe_money import major
from billing.stripe.stripe_gateway import Json, StripeGateway
from reconciliation.agreement import Check, compare
from reconciliation.close.evidence.registers import Row, entries
from reconciliation.comparison import Value

FILE: Final = "stripe.jsonl"
INVOICE, LINE, MONEY, NOTE, BALANCE = "invoice", "line_item", "balance_transaction", "credit_note", "balance"
KEPT: Final = (INVOICE, LINE, MONEY, NOTE)
CASH: Final = 1010

Objects = Mapping[tuple[str, str], str]
"""(kind, Stripe's id; of a balance whose it is) → the object as canonical JSON, all its fields."""


class ReadingGateway(StripeGateway):
    """Reads through another gateway, and keeps in `read` what is a month's: invoices by their Stripe `ids`, with their
    lines and credit notes, and the balance transactions that were made in it; and what the balance was."""

    def __init__(
        self, gateway: StripeGateway, month: BillingPeriod, ids: Collection[str], read: dict[tuple[str, str], str]
    ) -> None:
        self._gateway = gateway
        self.legal_entity, self.live = gateway.legal_entity, gateway.live
        self._begins, self._ends = month.start.timestamp(), month.end.timestamp()
        self._ids = ids
        self.read = read

    def get(self, path: str, target: str = "", **parameters: Any) -> Json:
        """As the gateway's; what it read is kept."""
        found = self._gateway.get(path, target, **parameters)
        if found.get("object") == BALANCE:
            whose = {"legal_entity": self.legal_entity}
            self.read[BALANCE, self.legal_entity] = canonical({**found, **whose}).decode()
        for each in found["data"] if found.get("object") == "list" else (found,):
            kind = each.get("object")
            if kind in KEPT and self._is_ours(kind, each, target):
                self.read[kind, each["id"]] = canonical({**each, "invoice": target} if kind == LINE else each).decode()
        return found

    def _is_ours(self, kind: str, found: Json, target: str) -> bool:
        if kind == MONEY:
            return self._begins <= int(found["created"]) < self._ends
        return {LINE: target, NOTE: found.get("invoice")}.get(kind, found["id"]) in self._ids


def keep(connection: Connection, month: str, read: Objects) -> None:
    """Append objects that are not as they were read last."""
    last = latest(connection, month)
    rows = [
        {"month": month, "kind": kind, "stripe_id": name, "body": body}
        for (kind, name), body in sorted(read.items())
        if last.get((kind, name)) != body
    ]
    add_rows(connection, tables.close_stripe_objects, rows)


def latest(connection: Connection, month: str) -> dict[tuple[str, str], str]:
    """What was read of a month last, in order."""
    table = tables.close_stripe_objects
    query = (
        select(table.c.kind, table.c.stripe_id, table.c.body)
        .where(table.c.month == month)
        .ext(distinct_on(table.c.kind, table.c.stripe_id))
        .order_by(table.c.kind, table.c.stripe_id, table.c.object_no.desc())
    )
    return {(kind, name): body for kind, name, body in connection.execute(query)}


def written(objects: Objects) -> bytes:
    """Objects as a file: canonical JSON, one a line, by kind and id."""
    return "".join(f"{objects[key]}\n" for key in sorted(objects)).encode()


def documents_check(
    objects: Iterable[Row], documents: Iterable[Row], required: Collection[str], excused: Collection[str],
    notes: Iterable[Row] = (),
) -> Check:  # fmt: skip
    """Invoices as Stripe had them are our documents, both ways: number, currency, what is due, and what lines sum to.

    `required`: ids of documents that were compared with Stripe, so that they must be there; `excused`: Stripe's ids
    that a gate has named as different; `notes`: documents of which the credit notes are what Stripe had under their
    numbers.
    """
    invoices: dict[str, Row] = {}
    noted: dict[str, Row] = {}
    summed: dict[str, int] = defaultdict(int)
    for each in objects:
        if each["object"] == NOTE and each["status"] == "issued":
            noted[(each["metadata"] or {}).get(NOTE, "")] = each
        if each["object"] == INVOICE:
            invoices[each["id"]] = each
            if not each["lines"]["has_more"]:
                summed[each["id"]] += sum(line["amount"] for line in each["lines"]["data"])
        elif each["object"] == LINE:
            summed[each["invoice"]] += each["amount"]
    by_document = {(each["metadata"] or {}).get("invoice_id"): each for each in invoices.values()}
    ours: dict[str, Value] = {}
    theirs: dict[str, Value] = {}
    known = set()
    for document in documents:
        found = by_document.get(document["invoice_id"])
        if found is None:
            if document["invoice_id"] in required and document["stripe_invoice_id"]:
                ours[document["invoice_id"]] = document["stripe_invoice_id"]
            continue
        known.add(found["id"])
        if found["id"] in excused:
            continue
        key, money = found["id"], currency(document["currency"], datetime.fromisoformat(document["service_end"]).date())
        due = to_stripe(document["amount_due"], money)
        ours |= {
            f"{key}/number": document["number"], f"{key}/currency": document["currency"].lower(), f"{key}/total": due,
            f"{key}/lines": due, f"{key}/id": document.get("stripe_invoice_id") or key,
        }  # fmt: skip
        theirs |= {
            f"{key}/number": found["number"], f"{key}/currency": found["currency"], f"{key}/total": found["total"],
            f"{key}/lines": summed[key], f"{key}/id": key,
        }  # fmt: skip
    for note in notes:
        if note["kind"] == NOTE and (there := noted.get(note["number"])) is not None:
            key = there["id"]
            ours |= {f"{key}/currency": note["currency"].lower(), f"{key}/total": -_due(note)}
            theirs |= {f"{key}/currency": there["currency"], f"{key}/total": there["total"]}
    theirs |= {f"{name} is nobody's": name for name in invoices.keys() - known - set(excused)}
    return compare("Stripe's invoices are the documents", "documents", FILE, ours, theirs)


def _due(document: Row) -> int:
    """What is asked for, in Stripe's integer: of a credit note less than nothing."""
    paid = sum(credit["amount"] for credit in document["credits"] if credit["pays"])
    ends = datetime.fromisoformat(document["service_end"]).date()
    return to_stripe(document["total"] - paid, currency(document["currency"], ends))


def money_check(objects: Iterable[Row], journals: Iterable[Iterable[Row]], month: str) -> Check:
    """Balance transactions as Stripe had them are what the journal has of each in 1010, both ways. In major units."""
    ours: dict[str, Value] = {}
    for each in objects:
        if each["object"] == MONEY:
            at = datetime.fromtimestamp(each["created"], UTC).date()
            ours[each["id"]] = Decimal(plain(major(each["net"], currency(each["currency"].upper(), at))))
    booked: dict[str, Decimal] = {}
    for entry in _of_money(journals):
        name = entry["source"]["balance_transaction"]
        if name in ours or (entry["accounting_period"] == month and entry["original_period"] is None):
            with exactly():
                booked[name] = booked.get(name, ZERO) + sum(
                    (Decimal(leg["amount"]) for leg in entry["legs"] if leg["code"] == CASH), ZERO
                )
    theirs: dict[str, Value] = {name: Decimal(plain(amount)) for name, amount in booked.items()}
    theirs |= {name: ZERO for name, net in ours.items() if not net and name not in theirs}
    return compare("Stripe's money is the journal's", FILE, f"journal {CASH}", ours, theirs)


def _of_money(journals: Iterable[Iterable[Row]]) -> Iterator[Row]:
    for journal in journals:
        yield from (entry for entry in entries(journal) if "balance_transaction" in entry["source"])
