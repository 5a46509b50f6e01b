"""The trial balance: every account's balance, debit and credit columns, zero in sum per currency."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import Engine

from billing import ledger_store
from billing.account_store import DEFAULT_LEGAL_ENTITY
from billing.database import transaction
from billing.ledger_store import Balance
from billing.money import ZERO, total


@dataclass(frozen=True, slots=True)
class TrialBalance:
    """Balances by account code and currency, in major units."""

    legal_entity: str
    accounting_period: str | None
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
    engine: Engine, *, legal_entity: str = DEFAULT_LEGAL_ENTITY, accounting_period: str | None = None
) -> TrialBalance:
    """The trial balance of a legal entity, over all of the journal or one accounting period (`2026-10`)."""
    with transaction(engine) as connection:
        rows = ledger_store.trial_balance(connection, legal_entity=legal_entity, accounting_period=accounting_period)
    return TrialBalance(legal_entity, accounting_period, tuple(rows))
