"""The journal in the database: posting once per key, and balances as sums. Entries are appended, never changed."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC
from decimal import Decimal

from sqlalchemy import Connection, bindparam, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError

from billing import tables
from billing.errors import AccountingPeriodClosed, IdempotencyConflict
from billing.ledger import ACCOUNTS, AccountCode, JournalEntry, Posting
from billing.money import currency

PERIOD_CLOSED_SQLSTATE = "TB005"

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
_POSTINGS = text(
    """
    insert into ledger.postings (entry_id, seq, account_id, currency, amount)
    select entry, seq, account, currency, amount
    from unnest(cast(:entries as bigint[]), cast(:seqs as smallint[]), cast(:accounts as bigint[]),
        cast(:currencies as text[]), cast(:amounts as numeric[])) as given (entry, seq, account, currency, amount)
    """
)


@dataclass(frozen=True, slots=True)
class Balance:
    """One line of a trial balance, in major units: debit and credit are both ≥ 0, one of them is 0."""

    code: int
    name: str
    currency: str
    debit: Decimal
    credit: Decimal


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


def trial_balance(connection: Connection, *, legal_entity: str, accounting_period: str | None = None) -> list[Balance]:
    """Every account code with postings, per currency: sums of the journal, of one accounting period or of all."""
    postings, accounts, entries = tables.postings, tables.accounts, tables.journal_entries
    amount = func.sum(postings.c.amount)
    query = (
        select(accounts.c.code, accounts.c.currency, amount.label("amount"))
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(accounts.c.legal_entity == legal_entity)
        .group_by(accounts.c.code, accounts.c.currency)
        .order_by(accounts.c.code, accounts.c.currency)
    )
    if accounting_period is not None:
        query = query.join(entries, entries.c.entry_id == postings.c.entry_id).where(
            entries.c.accounting_period == accounting_period
        )
    return [
        Balance(
            row.code,
            ACCOUNTS[row.code].name.lower(),
            row.currency,
            max(row.amount, Decimal(0)),
            max(-row.amount, Decimal(0)),
        )
        for row in connection.execute(query)
    ]


def subledger_balances(connection: Connection, *, legal_entity: str, account: AccountCode) -> dict[str, Decimal]:
    """The balance of one account code per subledger (tenant, billing account …), in major units."""
    postings, accounts = tables.postings, tables.accounts
    query = (
        select(accounts.c.subledger, func.sum(postings.c.amount).label("amount"))
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(accounts.c.legal_entity == legal_entity, accounts.c.code == account.code)
        .group_by(accounts.c.subledger)
        .order_by(accounts.c.subledger)
    )
    return {row.subledger: row.amount for row in connection.execute(query)}


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


def movements(connection: Connection, *, kind: str, period: str) -> dict[tuple[int, str, str], Decimal]:
    """What entries of one kind moved for a billing period: (account code, subledger, currency) → amount.

    `kind` is `accrual` or `invoice`, `period` as in the entries' source, e.g. `2026-10`.
    """
    postings, accounts, entries = tables.postings, tables.accounts, tables.journal_entries
    query = (
        select(accounts.c.code, accounts.c.subledger, accounts.c.currency, func.sum(postings.c.amount))
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .join(entries, entries.c.entry_id == postings.c.entry_id)
        .where(entries.c.kind == kind, entries.c.source["period"].astext == period)
        .group_by(accounts.c.code, accounts.c.subledger, accounts.c.currency)
    )
    return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query) if row[3]}


def balances(connection: Connection, codes: Collection[int]) -> dict[tuple[int, str, str], Decimal]:
    """What entries of every kind and period moved: (account code, subledger, currency) → amount, zeros left out."""
    postings, accounts = tables.postings, tables.accounts
    key = (accounts.c.code, accounts.c.subledger, accounts.c.currency)
    query = (
        select(*key, func.sum(postings.c.amount))
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(accounts.c.code.in_(codes))
        .group_by(*key)
    )
    return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query) if row[3]}
