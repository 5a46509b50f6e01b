"""How far Stripe is read, and whether 1010 is what the balance transactions taken in come to."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Engine

from billing.database import transaction
from billing.ledger import balance_store
from billing.ledger.journal import AccountCode
from billing.money import ZERO, currency, exactly, plain
from billing.plans import account_store
from billing.posting.stripe_money import major
from billing.stripe import returns_store
from billing.stripe.returns_store import EVENTS, MONEY

CLEARING: Final = AccountCode.STRIPE_BALANCE_CLEARING.code
CASH: Final = AccountCode.STRIPE_CUSTOMER_CASH.code


@dataclass(frozen=True, slots=True)
class ReturnsShown:
    """What the balance transactions taken in come to, beside 1010; what customers have in Stripe as `cash` (1012); what
    waits and what needs a person."""

    balances: tuple[dict[str, Any], ...]
    cash: tuple[dict[str, Any], ...]
    events_read_to: datetime | None
    money_read_to: datetime | None
    waiting: int
    problems: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether 1010 is what the balance transactions come to, and nothing needs a person."""
        return not self.problems and all(row["difference"] == "0" for row in self.balances)

    @property
    def document(self) -> dict[str, Any]:
        """All of it, for machines."""
        return {
            "balances": list(self.balances),
            "cash": list(self.cash),
            "events_read_to": self.events_read_to and self.events_read_to.isoformat(),
            "money_read_to": self.money_read_to and self.money_read_to.isoformat(),
            "waiting": self.waiting,
            "problems": list(self.problems),
            "agrees": self.agrees,
        }


def returns_shown(engine: Engine, now: datetime) -> ReturnsShown:
    """How Stripe stands in our books. That these are all balance transactions that Stripe has is asked when it is
    reconciled."""
    with transaction(engine) as connection:
        books: dict[str, Decimal] = defaultdict(lambda: ZERO)
        cash: list[dict[str, Any]] = []
        with exactly():
            for entity in account_store.legal_entities(connection):
                for row in balance_store.account_balances(connection, legal_entity=entity, code=CLEARING):
                    books[row.currency] += row.amount
                cash += [
                    {"billing_account": row.subledger, "currency": row.currency, "amount": plain(row.amount)}
                    for row in balance_store.account_balances(connection, legal_entity=entity, code=CASH)
                    if row.amount
                ]
        nets = returns_store.nets(connection)
        rows = []
        for code in sorted(books.keys() | nets.keys()):
            theirs = major(nets.get(code, 0), currency(code, now.date()))
            with exactly():
                difference = books[code] - theirs
            rows.append({"currency": code, "taken_in": plain(theirs), "books": plain(books[code]),
                         "difference": plain(difference)})  # fmt: skip
        return ReturnsShown(
            tuple(rows),
            tuple(cash),
            returns_store.read_to(connection, EVENTS),
            returns_store.read_to(connection, MONEY),
            returns_store.waiting(connection),
            (
                *(f"{unbooked} is not booked" for unbooked in returns_store.unbooked(connection)),
                *(each.told for each in returns_store.suspense(connection)),
                *(f"{p.event.object_id}: {p.outcome}" for p in returns_store.problems(connection)),
            ),
        )
