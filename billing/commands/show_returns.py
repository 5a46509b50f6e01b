"""How far Stripe's accounts are read, and whether 1010 is what the balance transactions taken in come to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.ledger import balance_store
from billing.ledger.journal import AccountCode
from billing.money import ZERO, currency, exactly, plain
from billing.plans import account_store
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.posting.stripe_money import major
from billing.stripe import returns_store
from billing.stripe.returns_store import EVENTS, MONEY

CLEARING: Final = AccountCode.STRIPE_BALANCE_CLEARING.code
CASH: Final = AccountCode.STRIPE_CUSTOMER_CASH.code


@dataclass(frozen=True, slots=True)
class ReturnsShown:
    """By account what the balance transactions taken in come to, beside 1010 of the books that follow it; what
    customers have in Stripe as `cash` (1012); what waits and what needs a person.

    Entities that share an account have one row: what of it is whose cannot be told.
    """

    accounts: tuple[dict[str, Any], ...]
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
            "accounts": list(self.accounts),
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
        of_account = _accounts(connection)
        books: dict[tuple[str, str], Decimal] = defaultdict(lambda: ZERO)
        cash: list[dict[str, Any]] = []
        with exactly():
            for entity in account_store.legal_entities(connection):
                for row in balance_store.account_balances(connection, legal_entity=entity, code=CLEARING):
                    books[of_account.get(entity, entity), row.currency] += row.amount
                cash += [
                    {"billing_account": row.subledger, "currency": row.currency, "amount": plain(row.amount)}
                    for row in balance_store.account_balances(connection, legal_entity=entity, code=CASH)
                    if row.amount
                ]
        nets = returns_store.nets(connection)
        rows = []
        for whose, code in sorted(books.keys() | nets.keys()):
            theirs, ours = major(nets.get((whose, code), 0), currency(code, now.date())), books[whose, code]
            with exactly():
                difference = ours - theirs
            entities = ", ".join([whose, *(entity for entity, of in of_account.items() if of == whose != entity)])
            rows.append({"legal_entity": entities, "currency": code, "taken_in": plain(theirs),
                         "books": plain(ours), "difference": plain(difference)})  # fmt: skip
        homes = sorted({*of_account.values()} or {DEFAULT_LEGAL_ENTITY})
        read = {name: [returns_store.read_to(connection, name, home) for home in homes] for name in (EVENTS, MONEY)}
        return ReturnsShown(
            tuple(
                {
                    "legal_entity": each.legal_entity,
                    "account": each.account_id,
                    "live": each.live,
                    "shares_with": each.shares_with,
                }
                for each in returns_store.all_followed(connection)
            ),
            tuple(rows),
            tuple(cash),
            _earliest(read[EVENTS]),
            _earliest(read[MONEY]),
            returns_store.waiting(connection),
            (
                *(f"{unbooked} is not booked" for unbooked in returns_store.unbooked(connection)),
                *(each.told for each in returns_store.suspense(connection)),
                *(f"{p.event.object_id}: {p.outcome}" for p in returns_store.problems(connection)),
            ),
        )


def _accounts(connection: Connection) -> dict[str, str]:
    """By entity whose books follow an account of Stripe's: whose account it is."""
    return {each.legal_entity: each.shares_with or each.legal_entity for each in returns_store.all_followed(connection)}


def _earliest(read_to: Sequence[datetime | None]) -> datetime | None:
    """How far all accounts are read; None where one is not read at all."""
    return None if None in read_to else min(each for each in read_to if each is not None)
