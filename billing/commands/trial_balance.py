"""The trial balance: every account's balance, debit and credit columns, zero in sum per currency."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.ledger import balance_store
from billing.ledger.balance_store import AccountBalance, AsOf, Balance
from billing.money import ZERO, total
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """Balances by account code and currency, in major units."""

    legal_entity: str
    accounting_period: str | None
    as_of: AsOf
    rows: tuple[Balance, ...]

    @property
    def totals(self) -> dict[str, tuple[Decimal, Decimal]]:
        """Debit and credit per currency; they are equal."""
        codes = sorted({row.currency for row in self.rows})
        return {
            code: (
                total(row.debit for row in self.rows if row.currency == code),
                total(row.credit for row in self.rows if row.currency == code),
            )
            for code in codes
        }

    @property
    def balanced(self) -> bool:
        """Whether debit equals credit in every currency."""
        return all(total([debit, -credit]) == ZERO for debit, credit in self.totals.values())


def trial_balance(
    engine: Engine | Connection,
    *,
    legal_entity: str = DEFAULT_LEGAL_ENTITY,
    accounting_period: str | None = None,
    as_of: datetime | None = None,
    booked_as_of: datetime | int | None = None,
    use_snapshots: bool = True,
) -> TrialBalance:
    """The trial balance of a legal entity, over all of the journal or one accounting period (`2026-10`).

    `as_of`: of what is effective before this moment. `booked_as_of`: of what was sealed by this moment, or with this
    seal. A period goes with neither. Without snapshots the journal itself is added up, whole: for whoever checks it.
    Raises UnknownMoment.
    """
    with transaction(engine) as connection:
        if accounting_period is not None:
            moment = AsOf()
            found = balance_store.period_balances(
                connection, legal_entity=legal_entity, accounting_period=accounting_period
            )
        else:
            moment = moment_in_both_times(connection, legal_entity, as_of, booked_as_of)
            found = balance_store.account_balances(
                connection, legal_entity=legal_entity, as_of=moment, use_snapshots=use_snapshots
            )
    return TrialBalance(legal_entity, accounting_period, moment, tuple(balance_store.by_code(found)))


def account_balances(
    engine: Engine,
    *,
    legal_entity: str = DEFAULT_LEGAL_ENTITY,
    as_of: datetime | None = None,
    booked_as_of: datetime | int | None = None,
    code: int | None = None,
    subledger: str | None = None,
    after: int | None = None,
    limit: int,
) -> list[AccountBalance]:
    """A page of accounts with their balances, by code, currency and subledger; those after the account with that id.

    Raises UnknownMoment.
    """
    with transaction(engine) as connection:
        moment = moment_in_both_times(connection, legal_entity, as_of, booked_as_of)
        found = balance_store.account_balances(
            connection, legal_entity=legal_entity, as_of=moment, code=code, subledger=subledger
        )
    ids = [one.account_id for one in found]
    begin = ids.index(after) + 1 if after in ids else 0
    return found[begin : begin + limit]


def moment_in_both_times(
    connection: Connection, legal_entity: str, as_of: datetime | None, booked_as_of: datetime | int | None
) -> AsOf:
    """A moment as people ask for it. Raises UnknownMoment."""
    if isinstance(booked_as_of, datetime):
        booked_as_of = balance_store.seal_at(connection, legal_entity, booked_as_of)
    return AsOf(as_of, booked_as_of)
