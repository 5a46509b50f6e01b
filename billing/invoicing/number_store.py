"""Numbers of documents: per legal entity and series, without gaps (docs/spec/money.md 8)."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import ARRAY, UUID, Connection, and_, any_, cast, func, select, text
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY

INVOICE_SERIES: Final = "invoice"
CREDIT_NOTE_SERIES: Final = "credit_note"
_PREFIX: Final = {INVOICE_SERIES: "", CREDIT_NOTE_SERIES: "CN-"}
MISSING_MAX: Final = 100
"""More are told by their count."""
_DEFAULT: Final = frozenset({"INV-", "CN-"})
"""How numbers of the first legal entity begin: its series are there from the beginning."""


def prefixes(legal_entity: str) -> frozenset[str]:
    """How the numbers of a legal entity's series begin."""
    if legal_entity == DEFAULT_LEGAL_ENTITY:
        return _DEFAULT
    return frozenset(_prefix(legal_entity, series) for series in _PREFIX)


def _prefix(legal_entity: str, series_name: str) -> str:
    return f"{legal_entity.upper()}-{_PREFIX[series_name]}"


def issue_number(
    connection: Connection, legal_entity: str, invoice_id: uuid.UUID, series_name: str = INVOICE_SERIES
) -> str:
    """The next number of the legal entity's invoices, or of another series. The counter stays locked until the
    transaction ends: no gaps."""
    series = tables.number_series
    row = connection.execute(
        insert(series)
        .values(legal_entity=legal_entity, series=series_name, prefix=_prefix(legal_entity, series_name), last_number=1)
        .on_conflict_do_update(
            index_elements=[series.c.legal_entity, series.c.series], set_={"last_number": series.c.last_number + 1}
        )
        .returning(series.c.prefix, series.c.last_number)
    ).one()
    written = f"{row.prefix}{row.last_number:06d}"
    connection.execute(
        tables.issued_numbers.insert().values(
            legal_entity=legal_entity,
            series=series_name,
            number=row.last_number,
            written=written,
            invoice_id=invoice_id,
        )
    )
    return written


def issued_around(connection: Connection, legal_entity: str, invoice_ids: Iterable[uuid.UUID]) -> list[dict[str, Any]]:
    """Every number of each series of a legal entity from the first to the last that some documents bear.

    With its document: `legal_entity, series, number, written, invoice_id, kind, billing_account, currency`.
    """
    issued, invoices = tables.issued_numbers, tables.invoices
    bounds = (
        select(issued.c.series, func.min(issued.c.number).label("first"), func.max(issued.c.number).label("last"))
        .where(
            issued.c.legal_entity == legal_entity,
            issued.c.invoice_id == any_(cast(list(invoice_ids), ARRAY(UUID))),
        )
        .group_by(issued.c.series)
        .subquery()
    )
    query = (
        select(
            issued.c.legal_entity, issued.c.series, issued.c.number, issued.c.written, issued.c.invoice_id,
            invoices.c.kind, invoices.c.billing_account, invoices.c.currency,
        )
        .join(bounds, and_(bounds.c.series == issued.c.series, issued.c.number.between(bounds.c.first, bounds.c.last)))
        .join(invoices, invoices.c.invoice_id == issued.c.invoice_id, isouter=True)
        .where(issued.c.legal_entity == legal_entity)
        .order_by(issued.c.series, issued.c.number)
    )  # fmt: skip
    return [dict(row) for row in connection.execute(query).mappings()]


def miswritten(connection: Connection) -> list[tuple[str, str | None, str | None]]:
    """Numbers that their documents do not bear, and that documents bear and nobody issued: `entity/series/number`
    (of the latter `entity/` and what is borne), as it was issued, and what is borne.

    Not one that an invoice has lost to somebody's own in Stripe: it stays used, and is listed beside the next.
    """
    issued, invoices, restarts = tables.issued_numbers, tables.invoices, tables.sending_restarts
    of_it = and_(restarts.c.invoice_id == issued.c.invoice_id, restarts.c.number_gone == issued.c.written)
    lost = select(restarts.c.restart_no).where(of_it).correlate(issued)
    entity = func.coalesce(issued.c.legal_entity, invoices.c.legal_entity)
    query = (
        select(entity, issued.c.series, issued.c.number, issued.c.written, invoices.c.number, invoices.c.invoice_id)
        .join_from(issued, invoices, invoices.c.invoice_id == issued.c.invoice_id, full=True)
        .where(invoices.c.number.is_distinct_from(issued.c.written), ~lost.exists())
        .order_by(entity, issued.c.series, issued.c.number, invoices.c.number)
    )
    return [
        (f"{row[0]}/{row[4]}" if row[1] is None else f"{row[0]}/{row[1]}/{row[2]}", row[3], row[4])
        for row in connection.execute(query)
    ]


def missing(connection: Connection) -> list[str]:
    """Numbers that a counter has passed and that are nobody's: `entity/series/number`, in order, some of them."""
    query = text(
        "select s.legal_entity, s.series, n from ledger.number_series as s, generate_series(1, s.last_number) as n"
        " where not exists (select from ledger.issued_numbers as i"
        " where (i.legal_entity, i.series, i.number) = (s.legal_entity, s.series, n)) order by 1, 2, 3 limit :at_most"
    )
    return [f"{row[0]}/{row[1]}/{row[2]}" for row in connection.execute(query, {"at_most": MISSING_MAX})]


def numbers(connection: Connection) -> dict[str, tuple[int, int, int]]:
    """`entity/series` → (last number, how many were issued, the highest of these)."""
    series, issued = tables.number_series, tables.issued_numbers
    key = (series.c.legal_entity, series.c.series)
    query = (
        select(*key, series.c.last_number, func.count(issued.c.number), func.coalesce(func.max(issued.c.number), 0))
        .join(
            issued,
            (issued.c.legal_entity == series.c.legal_entity) & (issued.c.series == series.c.series),
            isouter=True,
        )
        .group_by(*key, series.c.last_number)
    )
    return {f"{row[0]}/{row[1]}": (row[2], row[3], row[4]) for row in connection.execute(query)}
