"""Journal entries, page by page."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from sqlalchemy import Engine

from billing.commands.trial_balance import moment_in_both_times
from billing.database import transaction
from billing.ledger import ledger_store
from billing.ledger.journal_chain import BookedEntry
from billing.ledger.ledger_store import Wanted


def journal_entries(
    engine: Engine, wanted: Wanted, *, as_of: datetime | None = None, booked_as_of: datetime | int | None = None
) -> list[BookedEntry]:
    """A page of booked entries in order of their ids; the next begins after the last. Raises UnknownMoment."""
    with transaction(engine) as connection:
        moment = moment_in_both_times(connection, wanted.legal_entity, as_of, booked_as_of)
        return ledger_store.page(connection, replace(wanted, as_of=moment))
