"""Journal entries, page by page or all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Engine

from billing.commands.trial_balance import moment_in_both_times
from billing.database import one_moment, transaction
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


def whole_journal(engine: Engine, *, legal_entity: str, as_of: datetime | None = None) -> Iterator[BookedEntry]:
    """All entries effective before `as_of` (None: all), in order of that time, as they stood at one moment."""
    with one_moment(engine) as connection:
        yield from ledger_store.by_effective_time(connection, legal_entity, before=as_of)
