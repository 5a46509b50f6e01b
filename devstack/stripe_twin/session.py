"""What a request may read and write: the objects of one account, within one transaction.

Every change of an object goes through ``insert``, ``update`` or ``delete`` here. That is the place where an
outbox of events can be written in the same transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

from devstack.stripe_twin.errors import resource_missing
from devstack.stripe_twin.rules.pagination import Page, cut

State = dict[str, Any]
"""An object as stored: Stripe's attributes, and the twin's own under names that begin with ``_``."""

_COMPARISONS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

PRESENT = object()
"""A filter's value for "is not null", as None is for "is null"."""

_FILTERS = frozenset({"customer", "invoice", "status", "number", "email", "created", "due_date", "collection_method"})
_UNINDEXED = {
    "charge": "$.charge", "currency": "$.currency", "source": "$.source", "type": "$.type",
    "payment_intent": "$.payment_intent", "payment": "$.payment.payment_intent",
    "test_clock": "$.test_clock",
}  # fmt: skip
"""Filters on lists that stay short: read from the objects themselves."""


class Session:
    def __init__(self, connection: sqlite3.Connection, account: str) -> None:
        self._connection = connection
        self.account = account
        self.events: list[State] = []
        """What was emitted, for webhooks to tell once it is committed."""

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo the changes inside if they end in an exception; the transaction goes on."""
        self._connection.execute("SAVEPOINT handler")
        told = len(self.events)
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK TO handler")
            del self.events[told:]
            raise
        finally:
            self._connection.execute("RELEASE handler")

    def find(self, kind: str, object_id: str) -> State | None:
        """The object, unless it is missing or deleted."""
        row = self._row(kind, object_id)
        return None if row is None or row["deleted"] else json.loads(row["body"])

    def get(self, kind: str, object_id: str, param: str | None = None) -> State:
        """The object, or ``resource_missing``: ``param`` names the parameter that referred to it."""
        state = self.find(kind, object_id)
        if state is None:
            raise resource_missing(kind, object_id, param)
        return state

    def is_deleted(self, kind: str, object_id: str) -> bool:
        row = self._row(kind, object_id)
        return row is not None and bool(row["deleted"])

    def insert(self, state: State, created: int) -> None:
        self._connection.execute(
            "INSERT INTO objects (account, type, id, created, body) VALUES (?, ?, ?, ?, ?)",
            (self.account, state["object"], state["id"], created, _encode(state)),
        )

    def update(self, state: State) -> None:
        self._connection.execute(
            "UPDATE objects SET body = ? WHERE account = ? AND id = ?",
            (_encode(state), self.account, state["id"]),
        )

    def delete(self, state: State) -> dict[str, Any]:
        """Mark as deleted; returns Stripe's shape of a deleted object."""
        self._connection.execute(
            "UPDATE objects SET deleted = 1 WHERE account = ? AND id = ?", (self.account, state["id"])
        )
        return deleted_object(state["object"], state["id"])

    def page(self, kind: str, filters: dict[str, Any], page: Page) -> tuple[list[State], bool]:
        """Newest first. A filter is a value, a hash of gt, gte, lt, lte, None or PRESENT."""
        clauses, values = ["account = ?", "type = ?", "deleted = 0"], [self.account, kind]
        for name, wanted in filters.items():
            for clause, value in _conditions(name, wanted):
                clauses.append(clause)
                values.extend(value)
        if page.cursor is not None:
            row = self._row(kind, page.cursor)
            if row is None:
                raise resource_missing(kind, page.cursor, page.cursor_param)
            clauses.append(f"(created, seq) {'>' if page.backward else '<'} (?, ?)")
            values.extend((row["created"], row["seq"]))
        direction = "ASC" if page.backward else "DESC"
        # Only fixed names and operators are put into the text; every value is bound.
        query = (
            f"SELECT body FROM objects WHERE {' AND '.join(clauses)} "
            f"ORDER BY created {direction}, seq {direction} LIMIT ?"
        )
        rows = self._connection.execute(query, (*values, page.limit + 1))
        return cut([json.loads(row["body"]) for row in rows], page)

    def all(self, kind: str) -> list[State]:
        """Every object of a type of which there are few."""
        rows = self._connection.execute(
            "SELECT body FROM objects WHERE account = ? AND type = ? AND deleted = 0", (self.account, kind)
        )
        return [json.loads(row["body"]) for row in rows]

    def has(self, kind: str) -> bool:
        """Whether there is any object of a type."""
        found = self._connection.execute(
            "SELECT EXISTS (SELECT 1 FROM objects WHERE account = ? AND type = ? AND deleted = 0)", (self.account, kind)
        )
        return bool(found.fetchone()[0])

    def of_customer(self, kind: str, customer_id: str, status: str) -> list[State]:
        """A customer's objects of a type in a status, the oldest first."""
        rows = self._connection.execute(
            "SELECT body FROM objects WHERE account = ? AND type = ? AND deleted = 0 AND customer = ? AND status = ?"
            " ORDER BY created, seq",
            (self.account, kind, customer_id, status),
        )
        return [json.loads(row["body"]) for row in rows]

    def items_of_invoice(self, invoice_id: str, limit: int = -1) -> list[State]:
        """The invoice's items in the order of its lines."""
        rows = self._connection.execute(
            "SELECT body FROM objects WHERE account = ? AND type = 'invoiceitem' AND deleted = 0 "
            "AND invoice = ? ORDER BY position LIMIT ?",
            (self.account, invoice_id, limit),
        )
        return [json.loads(row["body"]) for row in rows]

    def pending_items(self, customer_id: str) -> list[State]:
        """The customer's items that are on no invoice, newest first."""
        rows = self._connection.execute(
            "SELECT body FROM objects WHERE account = ? AND type = 'invoiceitem' AND deleted = 0 "
            "AND customer = ? AND invoice IS NULL ORDER BY created DESC, seq DESC",
            (self.account, customer_id),
        )
        return [json.loads(row["body"]) for row in rows]

    def told_of(self, kind: str, before: int) -> list[dict[str, Any]]:
        """The objects of a type as events up to a moment showed them last; without those that were deleted by then."""
        rows = self._connection.execute(
            "SELECT body FROM objects WHERE account = ? AND type = 'event' AND created <= ? ORDER BY created, seq",
            (self.account, before),
        )
        shown: dict[str, dict[str, Any]] = {}
        for event in (json.loads(row["body"]) for row in rows):
            about = event["data"]["object"]
            if about["object"] == kind:
                shown[about["id"]] = about
        return [about for about in shown.values() if not about.get("deleted")]

    def sums_by(self, kind: str, summed: str, name: str, **having: str) -> dict[str, int]:
        """The sums of one number over the objects of a type that have some values, by one of their values."""
        wanted = "".join(" AND json_extract(body, '$.' || ?) = ?" for _ in having)
        rows = self._connection.execute(
            "SELECT json_extract(body, '$.' || ?) AS value, sum(json_extract(body, '$.' || ?)) AS total FROM objects"
            f" WHERE account = ? AND type = ? AND deleted = 0{wanted} GROUP BY 1",
            (name, summed, self.account, kind, *chain.from_iterable(having.items())),
        )
        return {row["value"]: int(row["total"]) for row in rows}

    def invoice_with_number(self, number: str) -> str | None:
        row = self._connection.execute(
            "SELECT id FROM objects WHERE account = ? AND type = 'invoice' AND deleted = 0 AND number = ?",
            (self.account, number),
        ).fetchone()
        return None if row is None else row["id"]

    def _row(self, kind: str, object_id: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._connection.execute(
            "SELECT seq, created, deleted, body FROM objects WHERE id = ? AND account = ? AND type = ?",
            (object_id, self.account, kind),
        ).fetchone()
        return row


def deleted_object(kind: str, object_id: str) -> dict[str, Any]:
    return {"id": object_id, "object": kind, "deleted": True}


def _conditions(name: str, wanted: Any) -> Iterator[tuple[str, list[Any]]]:
    if name in _UNINDEXED:
        name = f"json_extract(body, '{_UNINDEXED[name]}')"
    elif name not in _FILTERS:
        raise ValueError(f"objects cannot be filtered by {name}")
    if wanted is None:
        yield f"{name} IS NULL", []
    elif wanted is PRESENT:
        yield f"{name} IS NOT NULL", []
    elif isinstance(wanted, dict):
        for comparison, value in wanted.items():
            yield f"{name} {_COMPARISONS[comparison]} ?", [value]
    else:
        yield f"{name} = ?", [wanted]


def _encode(state: State) -> str:
    return json.dumps(state, separators=(",", ":"), ensure_ascii=False)
