"""Corrections of invoices in the database: added, and ended once."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import UUID, Connection, Row, and_, any_, cast, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert

from billing import tables
from billing.errors import CorrectionRefused
from billing.invoicing.correcting import Correction, CorrectionEvent, CorrectionKind, CorrectionState, after

ENDS = (CorrectionKind.VOID, CorrectionKind.WRITE_OFF, CorrectionKind.PAID_ELSEWHERE)


def add(
    connection: Connection,
    invoice_id: uuid.UUID,
    kind: CorrectionKind,
    *,
    reason: str,
    actor: str,
    note_id: uuid.UUID | None = None,
    content: Mapping[str, Any] | None = None,
) -> Correction:
    """Append a correction. The same credit note, or overpayment up to the same amount, gives the one that is there.

    Raises CorrectionRefused where another one still ends the invoice otherwise.
    """
    table = tables.corrections
    if kind in ENDS and (other := open_end(connection, invoice_id)) is not None:
        raise CorrectionRefused(f"{other.kind} of this invoice is under way: `tollbook stripe sync` goes on with it")
    values = {"invoice_id": invoice_id, "kind": kind.value, "note_id": note_id, "content": dict(content or {})}
    row = connection.execute(
        insert(table).values(**values, reason=reason, made_by=actor).on_conflict_do_nothing().returning(table)
    ).first()
    if row is None:
        content_same = and_(table.c.invoice_id == invoice_id, table.c.content == values["content"])
        same = (table.c.note_id == note_id) if note_id is not None else content_same
        row = connection.execute(select(table).where(same, table.c.kind == kind.value)).one()
    return _correction(row)


def one(connection: Connection, correction_no: int) -> Correction:
    """A correction as it is now."""
    table = tables.corrections
    return _correction(connection.execute(select(table).where(table.c.correction_no == correction_no)).one())


def open_end(connection: Connection, invoice_id: uuid.UUID) -> Correction | None:
    """What is under way to end an invoice: void, write off, paid elsewhere."""
    table = tables.corrections
    row = connection.execute(
        select(table).where(
            table.c.invoice_id == invoice_id,
            table.c.kind.in_([kind.value for kind in ENDS]),
            table.c.state == CorrectionState.OPEN.value,
        )
    ).first()
    return None if row is None else _correction(row)


def listed(
    connection: Connection,
    *,
    state: CorrectionState | None = None,
    invoice_ids: Collection[uuid.UUID] | None = None,
    kind: CorrectionKind | None = None,
) -> list[Correction]:
    """Corrections in order."""
    table = tables.corrections
    query = select(table).order_by(table.c.correction_no)
    if state is not None:
        query = query.where(table.c.state == state.value)
    if kind is not None:
        query = query.where(table.c.kind == kind.value)
    if invoice_ids is not None:
        query = query.where(table.c.invoice_id == any_(cast(list(invoice_ids), ARRAY(UUID))))
    return [_correction(row) for row in connection.execute(query)]


def end(
    connection: Connection,
    correction: Correction,
    event: CorrectionEvent,
    *,
    stripe_id: str | None = None,
    entry_id: int | None = None,
    because: str | None = None,
) -> None:
    """End an open correction. The database refuses a second time."""
    table = tables.corrections
    connection.execute(
        update(table)
        .where(table.c.correction_no == correction.correction_no)
        .values(
            state=after(correction.state, event).value,
            stripe_id=stripe_id,
            entry_id=entry_id,
            told_because=because,
            ended_at=func.clock_timestamp(),
        )
    )


def hinder(connection: Connection, correction_no: int, because: str) -> None:
    """Say what an open correction waits for."""
    table = tables.corrections
    connection.execute(
        update(table)
        .where(table.c.correction_no == correction_no, table.c.state == CorrectionState.OPEN.value)
        .values(told_because=because)
    )


def entries(connection: Connection) -> list[int]:
    """The entries that corrections made."""
    table = tables.corrections
    return list(connection.execute(select(table.c.entry_id).where(table.c.entry_id.is_not(None))).scalars())


def _correction(row: Row[Any]) -> Correction:
    return Correction(
        row.correction_no,
        row.invoice_id,
        CorrectionKind(row.kind),
        row.reason,
        row.made_by,
        row.note_id,
        row.content,
        CorrectionState(row.state),
        row.told_because,
        row.stripe_id,
        row.entry_id,
    )
