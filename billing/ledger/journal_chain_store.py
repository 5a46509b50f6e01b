"""Sealing in the database: entries get their place in the chain some time after they were booked.

Not in the posting's own transaction, which would put all postings one after another. Ids are not in commit order, so
only entries below the oldest transaction under way are sealed: nothing can still appear among them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Row, text

from billing.errors import JournalBroken
from billing.ledger.journal_chain import BEFORE_THE_FIRST, BookedEntry, BookedLeg, Link, next_hash

ENTRIES_A_SEAL: Final = 10_000
"""Bounds a sealing transaction: about a second."""
READ_AT_ONCE: Final = 2_000

ENTRY: Final = """
    e.entry_id, e.idempotency_key, e.input_hash, e.kind, e.legal_entity, e.accounting_period, e.original_period,
    e.effective_at, e.recorded_at, e.reverses, e.source,
    (select jsonb_agg(jsonb_build_array(a.code, p.currency, a.subledger, p.amount::text) order by p.seq)
     from ledger.postings p join ledger.accounts a on a.account_id = p.account_id where p.entry_id = e.entry_id) as legs
"""
"""The columns of a BookedEntry, for `ledger.journal_entries e`."""
_OVER: Final = """
    e.transaction_id < coalesce((
        select x.running from pg_snapshot_xip(pg_current_snapshot()) as x (running)
        left join pg_locks l on l.locktype = 'transactionid' and l.mode = 'ExclusiveLock'
            and l.transactionid = x.running::xid
        left join pg_stat_activity a on a.pid = l.pid
        where a.datid is null or a.datid = (select oid from pg_database where datname = current_database())
        order by x.running limit 1
    ), pg_snapshot_xmax(pg_current_snapshot()))
"""
"""Below the oldest transaction that may still write here. Those of other databases on the server are told by the lock
that each holds on its own number; one whose lock cannot be found counts as one of ours."""
_OF_THE_OLD_SERVER: Final = "e.transaction_id > pg_snapshot_xmax(pg_current_snapshot())"
"""After a dump and restore: this server has not come to that transaction yet, so it was one of before, and is over."""


@dataclass(frozen=True, slots=True)
class Seal:
    """The newest seal of a legal entity's journal. Number 0: nothing is sealed yet.

    `upto`: (transaction, entry) of the last entry sealed. `here`: whether the transaction is of this server; after a
    dump and restore it is not, and says nothing about the transactions that follow.
    """

    seal_no: int
    last_position: int
    chain_hash: bytes
    upto: tuple[str, int]
    sealed_at: datetime | None
    here: bool


def legal_entities(connection: Connection) -> list[str]:
    """Whose journals there are."""
    return list(connection.execute(text("select legal_entity from ledger.legal_entities order by 1")).scalars())


def last_seal(connection: Connection, legal_entity: str) -> Seal:
    """The newest seal."""
    row = connection.execute(
        text(
            "select seal_no, last_position, chain_hash, upto_transaction::text, upto_entry, sealed_at,"
            " server = (select system_identifier from pg_control_system()) as here"
            " from ledger.seals where legal_entity = :entity order by seal_no desc limit 1"
        ),
        {"entity": legal_entity},
    ).first()
    if row is None:
        return Seal(0, 0, BEFORE_THE_FIRST, ("0", 0), None, True)
    return Seal(row[0], row[1], bytes(row[2]), (row[3], row[4]), row[5], row.here)


def not_sealed(last: Seal) -> str:
    """The condition on `ledger.journal_entries e` of the entries that are not sealed; its values: `not_sealed_values`.

    By the index on (transaction, entry) where transactions can be compared, else by looking at all.
    """
    beyond = "(e.transaction_id, e.entry_id) > (cast(:upto_transaction as xid8), :upto_entry) and " if last.here else ""
    return f"{beyond}not exists (select from ledger.sealed_entries x where x.entry_id = e.entry_id)"


def not_sealed_values(last: Seal) -> dict[str, object]:
    """The values of `not_sealed`."""
    return {"upto_transaction": last.upto[0], "upto_entry": last.upto[1]} if last.here else {}


def lock(connection: Connection, legal_entity: str, *, shared: bool = False) -> None:
    """Keep sealers out until the transaction ends; they keep each other out. `shared`: beside other readers."""
    way = "pg_advisory_xact_lock_shared" if shared else "pg_advisory_xact_lock"
    connection.execute(text(f"select {way}(hashtextextended('ledger-seal/' || :entity, 0))"), {"entity": legal_entity})


def seal(connection: Connection, legal_entity: str, *, limit: int = ENTRIES_A_SEAL) -> int:
    """Give the next entries, at most `limit`, their places in the chain; how many. 0: there is nothing to seal now."""
    lock(connection, legal_entity)
    last = last_seal(connection, legal_entity)
    over = _OVER if last.here else f"({_OVER} or {_OF_THE_OLD_SERVER})"
    rows = connection.execute(
        text(
            f"select e.transaction_id::text as transaction_id, {_OVER} as comparable, {ENTRY}"
            f" from ledger.journal_entries e where e.legal_entity = :entity and {over} and {not_sealed(last)}"
            " and e.transaction_id is distinct from pg_current_xact_id_if_assigned()"
            " order by e.transaction_id, e.entry_id limit :limit"
        ),
        {"entity": legal_entity, "limit": limit, **not_sealed_values(last)},
    ).all()
    if not rows:
        return 0
    head, hashes = last.chain_hash, []
    for row in rows:
        head = next_hash(head, booked_entry(row).content())
        hashes.append(head)
    _store(connection, legal_entity, last, rows, hashes, whole=len(rows) < limit)
    return len(rows)


def _store(
    connection: Connection, legal_entity: str, last: Seal, rows: Sequence[Row[Any]], hashes: list[bytes], *, whole: bool
) -> None:
    comparable = [(row.transaction_id, row.entry_id) for row in rows if row.comparable]
    upto = max(comparable, key=lambda pair: (int(pair[0]), pair[1]), default=("0", 0))
    # What came from a dump is through only when one seal was not filled up by it
    server = "system_identifier" if last.here or whole else "0"
    connection.execute(
        text(
            "insert into ledger.seals (legal_entity, seal_no, last_position, chain_hash, upto_transaction, upto_entry,"
            " server) select :entity, :seal_no, :last, :head, cast(:upto_transaction as xid8), :upto_entry,"
            f" {server} from pg_control_system()"
        ),
        {
            "entity": legal_entity,
            "seal_no": last.seal_no + 1,
            "last": last.last_position + len(rows),
            "head": hashes[-1],
            "upto_transaction": upto[0],
            "upto_entry": upto[1],
        },
    )
    connection.execute(
        text(
            "insert into ledger.sealed_entries (entry_id, legal_entity, position, seal_no, chain_hash)"
            " select entry, :entity, :before + place, :seal_no, hash"
            " from unnest(cast(:entries as bigint[]), cast(:hashes as bytea[])) with ordinality"
            " as given (entry, hash, place)"
        ),
        {
            "entity": legal_entity,
            "before": last.last_position,
            "seal_no": last.seal_no + 1,
            "entries": [row.entry_id for row in rows],
            "hashes": hashes,
        },
    )


def waiting(
    connection: Connection, legal_entity: str, *, up_to: str | None = None, documents: Collection[str] = ()
) -> int:
    """How many booked entries have no place in the chain yet; `up_to`: of those that are of accounting periods up to
    this one, whenever they were booked, or that book one of these `documents`."""
    last = last_seal(connection, legal_entity)
    query = f"select count(*) from ledger.journal_entries e where e.legal_entity = :entity and {not_sealed(last)}"
    values: dict[str, object] = {"entity": legal_entity, **not_sealed_values(last)}
    if up_to is not None:
        query += (
            " and (e.accounting_period <= :up_to or e.original_period <= :up_to"
            " or e.source ->> 'invoice_id' = any(cast(:documents as text[])))"
        )
        values |= {"up_to": up_to, "documents": sorted(documents)}
    return int(connection.execute(text(query), values).scalar_one())


def links(connection: Connection, legal_entity: str) -> Iterator[Link]:
    """The chain from its beginning, in parts that fit in memory."""
    rows = connection.execute(
        text(
            f"select s.position, s.entry_id as sealed_id, s.chain_hash, {ENTRY} from ledger.sealed_entries s"
            " left join ledger.journal_entries e on e.entry_id = s.entry_id"
            " where s.legal_entity = :entity order by s.position"
        ).execution_options(yield_per=READ_AT_ONCE),
        {"entity": legal_entity},
    )
    for row in rows:
        content = booked_entry(row).content() if row.entry_id is not None else None
        yield Link(row.position, row.sealed_id, bytes(row.chain_hash), content)


def check_around(connection: Connection, legal_entity: str, position: int, head: bytes) -> None:
    """What the chain alone cannot tell, its end being at `position` with the hash `head`. Raises JournalBroken.

    Seals that name other hashes, an entry slipped in below the last seal, an entry out of balance.
    """
    last = last_seal(connection, legal_entity)
    if (last.last_position, last.chain_hash) != (position, head):
        raise JournalBroken(f"the chain ends at number {position}; the last seal, {last.seal_no}, says other")
    values: dict[str, object] = {"entity": legal_entity, **not_sealed_values(last)}
    for query, text_ in (
        (
            "select s.seal_no from ledger.seals s left join ledger.sealed_entries x on x.legal_entity = s.legal_entity"
            " and x.position = s.last_position and x.seal_no = s.seal_no and x.chain_hash = s.chain_hash"
            " where s.legal_entity = :entity and x.entry_id is null order by s.seal_no limit 1",
            "seal {} names another hash than the chain",
        ),
        (
            "select e.entry_id from ledger.journal_entries e where e.legal_entity = :entity"
            " and (e.transaction_id, e.entry_id) <= (cast(:upto_transaction as xid8), :upto_entry)"
            " and not exists (select from ledger.sealed_entries x where x.entry_id = e.entry_id)"
            " order by e.entry_id limit 1"
            if last.here
            else "",
            "entry {} was slipped in: it claims a transaction that was sealed without it",
        ),
        (
            "select e.entry_id from ledger.journal_entries e left join ledger.postings p on p.entry_id = e.entry_id"
            " where e.legal_entity = :entity group by e.entry_id, p.currency having sum(p.amount) is distinct from 0"
            " order by e.entry_id limit 1",
            "entry {} does not balance",
        ),
    ):
        found = connection.execute(text(query), values).scalar() if query else None
        if found is not None:
            raise JournalBroken(text_.format(found))


def booked_entry(row: Row[Any]) -> BookedEntry:
    """The entry of a row with the columns `ENTRY`."""
    return BookedEntry(
        entry_id=row.entry_id,
        idempotency_key=row.idempotency_key,
        input_hash=bytes(row.input_hash),
        kind=row.kind,
        legal_entity=row.legal_entity,
        accounting_period=row.accounting_period,
        original_period=row.original_period,
        effective_at=row.effective_at,
        recorded_at=row.recorded_at,
        reverses=row.reverses,
        source=row.source,
        legs=tuple(BookedLeg(code, money, sub, Decimal(amount)) for code, money, sub, amount in row.legs or ()),
    )
