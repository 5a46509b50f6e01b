"""The journal in the database: posting once per key, reading it in pages. Entries are appended, never changed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import ARRAY, Connection, String, any_, bindparam, cast, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from billing import tables
from billing.errors import AccountingPeriodClosed, IdempotencyConflict
from billing.ledger.balance_store import NOW, AsOf
from billing.ledger.journal import ACCOUNTS, FEES_EARNED, JournalEntry, Posting
from billing.ledger.journal_chain import BookedEntry
from billing.ledger.journal_chain_store import ENTRY, READ_AT_ONCE, booked_entry
from billing.money import currency

PERIOD_CLOSED_SQLSTATE = "TB005"
PAGE_MAX: Final = 1_000
"""Entries a page: what a person or one reply can take."""

_HEADERS = text(
    """
    insert into ledger.journal_entries (idempotency_key, input_hash, kind, legal_entity, accounting_period,
        original_period, effective_at, recorded_at, transaction_id, legs, reverses, source)
    select key, hash, kind, entity, month, original, effective, clock_timestamp(), pg_current_xact_id(),
           legs, reverses, source::jsonb
    from unnest(cast(:keys as text[]), cast(:hashes as bytea[]), cast(:kinds as text[]), cast(:entities as text[]),
        cast(:months as text[]), cast(:originals as text[]), cast(:effectives as timestamptz[]),
        cast(:legs as smallint[]), cast(:reverses as bigint[]), cast(:sources as text[]))
        as given (key, hash, kind, entity, month, original, effective, legs, reverses, source)
    order by key
    on conflict (idempotency_key) do nothing
    returning idempotency_key, entry_id
    """
)
# The amounts are not cast: the function takes numbers, and the database refuses a float.
_POSTINGS = text(
    "select ledger.add_postings(cast(:entries as bigint[]), cast(:seqs as smallint[]), cast(:accounts as bigint[]),"
    " cast(:currencies as text[]), :amounts)"
)


def post(connection: Connection, entries: Sequence[JournalEntry]) -> dict[str, int]:
    """Book entries in the caller's transaction; returns the entry id of each idempotency key.

    A key that is booked already with the same input gives the existing entry. Raises IdempotencyConflict where
    its input differs, AccountingPeriodClosed. The database checks the balance again when the transaction commits.
    """
    if not entries:
        return {}
    by_key = {entry.idempotency_key: entry for entry in entries}
    if len(by_key) != len(entries):
        raise IdempotencyConflict("two entries with one idempotency key are posted at once")
    # Looked up first: what is booked stays booked, also when its period has been closed since.
    existing = _existing(connection, by_key)
    fresh = [entry for key, entry in sorted(by_key.items()) if key not in existing]
    if not fresh:
        return existing
    _open_periods(connection, fresh)
    accounts = _account_ids(connection, fresh)
    booked = _add_headers(connection, fresh)
    _add_postings(connection, [(entry_id, by_key[key]) for key, entry_id in sorted(booked.items())], accounts)
    overtaken = {entry.idempotency_key: entry for entry in fresh if entry.idempotency_key not in booked}
    return existing | booked | (_existing(connection, overtaken) if overtaken else {})


def entry(connection: Connection, idempotency_key: str) -> tuple[int, JournalEntry] | None:
    """A booked entry with its id, or None."""
    headers, postings, accounts = tables.journal_entries, tables.postings, tables.accounts
    header = connection.execute(select(headers).where(headers.c.idempotency_key == idempotency_key)).first()
    if header is None:
        return None
    legs = connection.execute(
        select(accounts.c.code, postings.c.currency, postings.c.amount, accounts.c.subledger)
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(postings.c.entry_id == header.entry_id)
        .order_by(postings.c.seq)
    )
    return header.entry_id, JournalEntry(
        idempotency_key=header.idempotency_key,
        kind=header.kind,
        legal_entity=header.legal_entity,
        accounting_period=header.accounting_period,
        effective_at=header.effective_at,
        postings=tuple(Posting(ACCOUNTS[leg.code], leg.currency, leg.amount, leg.subledger) for leg in legs),
        original_period=header.original_period,
        reverses=header.reverses,
        source=header.source,
    )


def booked(connection: Connection, keys: Collection[str]) -> set[str]:
    """Which of these idempotency keys have an entry."""
    column = tables.journal_entries.c.idempotency_key
    return set(connection.execute(select(column).where(column == any_(cast(list(keys), ARRAY(String))))).scalars())


def entities(connection: Connection, keys: Collection[str]) -> dict[str, str]:
    """By idempotency key in whose books its entry is; nothing of a key that has none."""
    table = tables.journal_entries
    query = select(table.c.idempotency_key, table.c.legal_entity)
    query = query.where(table.c.idempotency_key == any_(cast(list(keys), ARRAY(String))))
    return {row[0]: row[1] for row in connection.execute(query)}


def books(connection: Connection) -> dict[str, dict[str, bool]]:
    """Per legal entity that somebody pays to, its months and whether each is closed."""
    rows = connection.execute(
        text(
            "select distinct a.legal_entity, p.month, p.state from ledger.billing_accounts as a"
            " left join ledger.accounting_periods as p using (legal_entity)"
        )
    )
    found: dict[str, dict[str, bool]] = {}
    for legal_entity, month, state in rows:
        months = found.setdefault(legal_entity, {})
        if month is not None:
            months[month] = state == "closed"
    return found


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries to show, and where a page begins: the entries after an id, at most so many."""

    legal_entity: str
    as_of: AsOf = NOW
    accounting_period: str | None = None
    code: int | None = None
    subledger: str | None = None
    kind: str | None = None
    key: str | None = None
    after: int = 0
    limit: int = PAGE_MAX


def page(connection: Connection, wanted: Wanted) -> list[BookedEntry]:
    """Booked entries in order of their ids, with all their legs."""
    sealed = (
        " and exists (select from ledger.sealed_entries s where s.entry_id = e.entry_id and s.seal_no <= :seal_no)"
        if wanted.as_of.seal_no is not None
        else ""
    )
    rows = connection.execute(
        text(
            f"select {ENTRY} from ledger.journal_entries e where e.legal_entity = :legal_entity and e.entry_id > :after"
            " and (cast(:effective as timestamptz) is null or e.effective_at < :effective)"
            " and (cast(:accounting_period as text) is null or e.accounting_period = :accounting_period)"
            " and (cast(:kind as text) is null or e.kind = :kind)"
            " and (cast(:key as text) is null or e.idempotency_key = :key)"
            " and (cast(:code as smallint) is null and cast(:subledger as text) is null or exists ("
            "   select from ledger.postings p join ledger.accounts a on a.account_id = p.account_id"
            "   where p.entry_id = e.entry_id and (cast(:code as smallint) is null or a.code = :code)"
            "   and (cast(:subledger as text) is null or a.subledger = :subledger)))"
            f"{sealed} order by e.entry_id limit :limit"
        ),
        {
            "legal_entity": wanted.legal_entity,
            "after": wanted.after,
            "effective": wanted.as_of.effective,
            "accounting_period": wanted.accounting_period,
            "kind": wanted.kind,
            "key": wanted.key,
            "code": wanted.code,
            "subledger": wanted.subledger,
            "seal_no": wanted.as_of.seal_no,
            "limit": min(wanted.limit, PAGE_MAX),
        },
    )
    return [booked_entry(row) for row in rows]


def effective_span(
    connection: Connection, legal_entity: str, *, before: datetime | None
) -> tuple[datetime, datetime] | None:
    """The effective times of the first and the last entry before a moment (None: of all); None if there is none."""
    first, last = connection.execute(
        text(
            "select min(effective_at), max(effective_at) from ledger.journal_entries where legal_entity = :entity"
            " and (cast(:before as timestamptz) is null or effective_at < :before)"
        ),
        {"entity": legal_entity, "before": before},
    ).one()
    return None if first is None else (first, last)


def by_effective_time(connection: Connection, legal_entity: str, *, before: datetime | None) -> Iterator[BookedEntry]:
    """All entries effective before a moment (None: all), in order of that time, in parts that fit in memory."""
    rows = connection.execute(
        text(
            f"select {ENTRY} from ledger.journal_entries e where e.legal_entity = :entity"
            " and (cast(:before as timestamptz) is null or e.effective_at < :before)"
            " order by e.effective_at, e.entry_id"
        ).execution_options(yield_per=READ_AT_ONCE),
        {"entity": legal_entity, "before": before},
    )
    return (booked_entry(row) for row in rows)


def _open_periods(connection: Connection, entries: Sequence[JournalEntry]) -> None:
    books = sorted({(entry.legal_entity, entry.accounting_period) for entry in entries})
    connection.execute(
        insert(tables.accounting_periods)
        .values([{"legal_entity": entity, "month": month} for entity, month in books])
        .on_conflict_do_nothing()
    )


_AccountKey = tuple[str, int, str, str]


def _account_key(entry: JournalEntry, posting: Posting) -> _AccountKey:
    return (entry.legal_entity, posting.account.code, posting.currency, posting.subledger)


def _account_ids(connection: Connection, entries: Sequence[JournalEntry]) -> dict[_AccountKey, int]:
    """The ids of the accounts that entries post to. New ones are made in order, against deadlocks."""
    wanted: dict[_AccountKey, Decimal | None] = {}
    for entry_ in entries:
        on = entry_.effective_at.astimezone(UTC).date()
        for posting in entry_.postings:
            quantum = currency(posting.currency, on).quantum if posting.account.in_quanta else None
            wanted[_account_key(entry_, posting)] = quantum
    keys = sorted(wanted)
    given: dict[str, list[object]] = {
        "entities": [key[0] for key in keys],
        "codes": [key[1] for key in keys],
        "currencies": [key[2] for key in keys],
        "subledgers": [key[3] for key in keys],
    }
    source = (
        "unnest(cast(:entities as text[]), cast(:codes as smallint[]), cast(:currencies as text[]),"
        " cast(:subledgers as text[])"
    )
    find = text(
        "select legal_entity, code, currency, subledger, account_id from ledger.accounts"
        f" join {source}) as given (entity, number, money, sub)"
        " on (legal_entity, code, currency, subledger) = (entity, number, money, sub)"
    )
    found = {tuple(row[:4]): row[4] for row in connection.execute(find, given)}
    if len(found) < len(keys):
        connection.execute(
            text(
                "insert into ledger.accounts (legal_entity, code, currency, subledger, quantum)"
                f" select * from {source}, cast(:quanta as numeric[]))"
                " as given (entity, number, money, sub, quantum) order by 1, 2, 3, 4 on conflict do nothing"
            ),
            given | {"quanta": [wanted[key] for key in keys]},
        )
        found = {tuple(row[:4]): row[4] for row in connection.execute(find, given)}
    return {key: found[key] for key in keys}


def _add_headers(connection: Connection, entries: Sequence[JournalEntry]) -> dict[str, int]:
    try:
        rows = connection.execute(
            _HEADERS,
            {
                "keys": [entry.idempotency_key for entry in entries],
                "hashes": [entry.input_hash for entry in entries],
                "kinds": [entry.kind for entry in entries],
                "entities": [entry.legal_entity for entry in entries],
                "months": [entry.accounting_period for entry in entries],
                "originals": [entry.original_period for entry in entries],
                "effectives": [entry.effective_at for entry in entries],
                "legs": [len(entry.postings) for entry in entries],
                "reverses": [entry.reverses for entry in entries],
                "sources": [json.dumps(dict(entry.source)) for entry in entries],
            },
        )
        return {row.idempotency_key: row.entry_id for row in rows}
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == PERIOD_CLOSED_SQLSTATE:
            raise AccountingPeriodClosed(str(error.orig).splitlines()[0]) from None
        raise


def _add_postings(
    connection: Connection, booked: Sequence[tuple[int, JournalEntry]], accounts: dict[_AccountKey, int]
) -> None:
    legs = [(entry_id, seq, entry_, leg) for entry_id, entry_ in booked for seq, leg in enumerate(entry_.postings, 1)]
    if not legs:
        return
    connection.execute(
        _POSTINGS,
        {
            "entries": [entry_id for entry_id, _, _, _ in legs],
            "seqs": [seq for _, seq, _, _ in legs],
            "accounts": [accounts[_account_key(entry_, leg)] for _, _, entry_, leg in legs],
            "currencies": [leg.currency for _, _, _, leg in legs],
            "amounts": [leg.amount for _, _, _, leg in legs],
        },
    )


def _existing(connection: Connection, entries: dict[str, JournalEntry]) -> dict[str, int]:
    table = tables.journal_entries
    query = select(table.c.idempotency_key, table.c.entry_id, table.c.input_hash).where(
        table.c.idempotency_key.in_(bindparam("keys", expanding=True))
    )
    found: dict[str, int] = {}
    for row in connection.execute(query, {"keys": list(entries)}):
        if bytes(row.input_hash) != entries[row.idempotency_key].input_hash:
            raise IdempotencyConflict(f"journal entry {row.idempotency_key} is booked already with other input")
        found[row.idempotency_key] = row.entry_id
    return found


def movements(
    connection: Connection, *, kind: str, of: str, names: Collection[str]
) -> dict[tuple[int, str, str], Decimal]:
    """What entries of one kind moved: (account code, subledger, currency) → amount.

    `kind` is e.g. `accrual` or `invoice`; `of` what their source names (`period`, `invoice_id`), by one of `names`.
    """
    postings, accounts, entries = tables.postings, tables.accounts, tables.journal_entries
    query = (
        select(accounts.c.code, accounts.c.subledger, accounts.c.currency, func.sum(postings.c.amount))
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .join(entries, entries.c.entry_id == postings.c.entry_id)
        .where(entries.c.kind == kind, entries.c.source[of].astext == any_(cast(list(names), ARRAY(String))))
        .group_by(accounts.c.code, accounts.c.subledger, accounts.c.currency)
    )
    return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query) if row[3]}


def accrued(connection: Connection, month: str) -> dict[tuple[int, str, str], Decimal]:
    """What accruals for an accounting period moved, also those that came after its book was closed."""
    postings, accounts, entries = tables.postings, tables.accounts, tables.journal_entries
    key = (accounts.c.code, accounts.c.subledger, accounts.c.currency)
    query = (
        select(*key, func.sum(postings.c.amount))
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .join(entries, entries.c.entry_id == postings.c.entry_id)
        .where(
            entries.c.kind == "accrual",
            func.coalesce(entries.c.original_period, entries.c.accounting_period) == month,
        )
        .group_by(*key)
    )
    return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query) if row[3]}


def earned_months(connection: Connection) -> dict[str, set[str]]:
    """Which months of invoices for fees in advance are booked as earned: invoice id → months."""
    source = tables.journal_entries.c.source
    query = select(source["invoice_id"].astext, source["period"].astext)
    found: dict[str, set[str]] = defaultdict(set)
    for invoice_id, month in connection.execute(query.where(tables.journal_entries.c.kind == FEES_EARNED)):
        found[invoice_id].add(month)
    return found


def balances(
    connection: Connection, codes: Collection[int], *, of_entries: Collection[int] | None = None
) -> dict[tuple[int, str, str], Decimal]:
    """What all entries, or some, moved: (account code, subledger, currency) → amount, zeros left out."""
    postings, accounts = tables.postings, tables.accounts
    key = (accounts.c.code, accounts.c.subledger, accounts.c.currency)
    query = (
        select(*key, func.sum(postings.c.amount))
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(accounts.c.code.in_(codes))
        .group_by(*key)
    )
    if of_entries is not None:
        query = query.where(postings.c.entry_id.in_(of_entries))
    return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query) if row[3]}
