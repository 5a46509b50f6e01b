"""The journal as a Beancount file, with the balances of every month's end asserted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time

from sqlalchemy import Connection, Engine

from billing.database import one_moment
from billing.ledger import balance_store, ledger_store
from billing.ledger.balance_store import AsOf
from billing.ledger.beancount import AssertedBalance, ledger, month_starts
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY


def export_beancount(
    engine: Engine, *, legal_entity: str = DEFAULT_LEGAL_ENTITY, as_of: datetime | None = None
) -> Iterator[str]:
    """The lines of the file: what is effective before `as_of` (None: everything), as the database has it now.

    The balances asserted come from the database's sums (and the snapshots they begin with), the entries from the
    journal: a program that adds up the entries and agrees has checked both.
    """
    with one_moment(engine) as connection:
        entries = ledger_store.by_effective_time(connection, legal_entity, before=as_of)
        yield from ledger(legal_entity, entries, _balances(connection, legal_entity, as_of))


def _balances(connection: Connection, legal_entity: str, as_of: datetime | None) -> Iterator[AssertedBalance]:
    span = ledger_store.effective_span(connection, legal_entity, before=as_of)
    for day in month_starts(*span) if span else ():
        midnight = datetime.combine(day, time(), UTC)
        until = midnight if as_of is None else min(midnight, as_of)
        for one in balance_store.account_balances(connection, legal_entity=legal_entity, as_of=AsOf(until)):
            yield AssertedBalance(day, one.account.code, one.subledger, one.currency, one.amount)
