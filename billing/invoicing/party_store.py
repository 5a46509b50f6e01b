"""What stands on documents about legal entities and billing accounts: every version is kept, the last one holds."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, UUID, Connection, Row, String, any_, cast, select

from billing import tables
from billing.invoicing.invoices import InvoiceIdentity
from billing.invoicing.parties import FIELDS, Party
from billing.plans import account_store

PartyKey = tuple[str | None, str | None]
"""A legal entity, or a billing account: the other of the two is None."""


@dataclass(frozen=True, slots=True)
class Sides:
    """Who invoices, who pays, and within how many days of the issue date."""

    seller: Party
    buyer: Party
    payment_terms_days: int


def add(connection: Connection, key: PartyKey, party: Party, actor: str) -> None:
    """Record how a party stands on documents from now on."""
    connection.execute(
        tables.parties.insert().values(
            legal_entity=key[0],
            billing_account=key[1],
            recorded_by=actor,
            **{name: getattr(party, name) for name in FIELDS},
        )
    )


def versions(connection: Connection, keys: Collection[PartyKey]) -> dict[PartyKey, list[tuple[datetime, Party]]]:
    """Every version of some parties with when it was recorded, the last one first."""
    table = tables.parties
    entities = cast([key[0] for key in keys if key[0] is not None], ARRAY(String))
    accounts = cast([key[1] for key in keys if key[1] is not None], ARRAY(String))
    query = (
        select(table)
        .where((table.c.legal_entity == any_(entities)) | (table.c.billing_account == any_(accounts)))
        .order_by(table.c.party_no.desc())
    )
    found: dict[PartyKey, list[tuple[datetime, Party]]] = {}
    for row in connection.execute(query):
        found.setdefault((row.legal_entity, row.billing_account), []).append((row.recorded_at, _party(row)))
    return found


def present(connection: Connection, key: PartyKey, otherwise: str) -> Party:
    """How a party stands on documents from now on; by its name alone (`otherwise`) where nobody has said more."""
    known = versions(connection, [key]).get(key)
    return known[0][1] if known else Party(otherwise)


def on_documents(connection: Connection, identities: Mapping[uuid.UUID, InvoiceIdentity]) -> dict[uuid.UUID, Sides]:
    """Seller and buyer of invoices by id: as recorded before each was issued, or by now where it is not."""
    moves = tables.invoice_transitions
    issued = {
        row.invoice_id: row.recorded_at
        for row in connection.execute(
            select(moves.c.invoice_id, moves.c.recorded_at).where(
                moves.c.invoice_id == any_(cast(list(identities), ARRAY(UUID))), moves.c.from_state == "draft"
            )
        )
    }
    sides = {key for of in identities.values() for key in _keys(of)}
    known = versions(connection, sides)
    entities = account_store.legal_entities(connection)
    accounts = account_store.accounts(connection, {of.billing_account for of in identities.values()})

    def party(key: PartyKey, at: datetime | None, otherwise: str) -> Party:
        return next((p for recorded, p in known.get(key, ()) if at is None or recorded <= at), Party(otherwise))

    return {
        invoice_id: Sides(
            party(_keys(of)[0], issued.get(invoice_id), entities[of.legal_entity]),
            party(_keys(of)[1], issued.get(invoice_id), accounts[of.billing_account].name),
            accounts[of.billing_account].payment_terms_days,
        )
        for invoice_id, of in identities.items()
    }


def _keys(of: InvoiceIdentity) -> tuple[PartyKey, PartyKey]:
    return (of.legal_entity, None), (None, of.billing_account)


def _party(row: Row[tuple[object, ...]]) -> Party:
    return Party(**{name: getattr(row, name) for name in FIELDS})
