"""Sealing: what is booked gets its place in the hash chain; balances at a period's end are kept for speed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from sqlalchemy import Connection, Engine

from billing.database import retried, transaction
from billing.ledger import balance_store, journal_chain_store

PAUSES_S: Final = (0.01, 0.05, 0.2, 0.0)
"""After each try that left entries waiting: most transactions are over by then. A transaction of another database that
ends in the middle of a try cannot be told from one of ours, and holds up that try alone."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A journal's chain: what a run sealed, how far the chain goes, how many entries wait for transactions to end."""

    legal_entity: str
    sealed: int
    seal_no: int
    entries: int
    chain_hash: bytes
    waiting: int


def seal_journals(engine: Engine) -> list[Sealed]:
    """Seal every legal entity's journal as far as transactions are over. Running it again seals what came since."""
    with transaction(engine) as connection:
        entities = journal_chain_store.legal_entities(connection)
    return [_seal(engine, entity) for entity in entities]


def _seal(engine: Engine, legal_entity: str) -> Sealed:
    sealed = 0
    for pause_s in PAUSES_S:
        while found := retried(engine, lambda connection: journal_chain_store.seal(connection, legal_entity)):
            sealed += found
            if found < journal_chain_store.ENTRIES_A_SEAL:
                break
        with transaction(engine) as connection:
            last = journal_chain_store.last_seal(connection, legal_entity)
            waiting = journal_chain_store.waiting(connection, legal_entity)
        if not waiting:
            break
        time.sleep(pause_s)
    return Sealed(legal_entity, sealed, last.seal_no, last.last_position, last.chain_hash, waiting)


def keep_balances(engine: Engine, *, effective_before: datetime) -> None:
    """Keep every legal entity's balances as of a moment and its last seal, so that later balances are quick."""
    with transaction(engine) as connection:
        entities = journal_chain_store.legal_entities(connection)
    for entity in entities:
        retried(engine, partial(_keep, entity, effective_before))


def _keep(legal_entity: str, effective_before: datetime, connection: Connection) -> None:
    balance_store.take_snapshot(connection, legal_entity, effective_before=effective_before)
