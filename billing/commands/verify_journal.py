"""Verifying a journal against its hash chain, and exporting it so that others can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

from billing.database import transaction
from billing.errors import JournalBroken
from billing.ledger import balance_store, journal_chain_store
from billing.ledger.journal_chain import exported, verified
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY


@dataclass(frozen=True, slots=True)
class Verified:
    """A journal whose chain was recomputed: `broken` names the first entry that is not what was sealed."""

    legal_entity: str
    entries: int
    chain_hash: bytes
    snapshots: int
    waiting: int
    broken: str | None = None


def verify_journals(engine: Engine | Connection) -> list[Verified]:
    """Recompute every legal entity's chain from its entries, and the kept balances from the journal."""
    with transaction(engine) as connection:
        return [_verify(connection, entity) for entity in journal_chain_store.legal_entities(connection)]


def _verify(connection: Connection, legal_entity: str) -> Verified:
    journal_chain_store.lock(connection, legal_entity, shared=True)
    last = journal_chain_store.last_seal(connection, legal_entity)
    waiting = journal_chain_store.waiting(connection, legal_entity)
    try:
        entries, head = verified(journal_chain_store.links(connection, legal_entity))
        journal_chain_store.check_around(connection, legal_entity, entries, head)
        snapshots = balance_store.check_snapshots(connection, legal_entity)
    except JournalBroken as error:
        return Verified(legal_entity, last.last_position, last.chain_hash, 0, waiting, str(error))
    return Verified(legal_entity, entries, head, snapshots, waiting)


def export_chain(engine: Engine, *, legal_entity: str = DEFAULT_LEGAL_ENTITY) -> Iterator[str]:
    """The sealed journal as canonical JSON lines, that `verified_export` follows without the database."""
    with transaction(engine) as connection:
        journal_chain_store.lock(connection, legal_entity, shared=True)
        yield from exported(legal_entity, journal_chain_store.links(connection, legal_entity))
