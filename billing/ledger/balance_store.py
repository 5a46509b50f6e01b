"""Balances as of any moment in both times, as sums of the journal over sums kept at earlier moments.

Effective time: when an entry holds for business; booking time: when it was sealed. There is no live balance row: on a
shared account it would put all postings one after another.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, text

from billing.errors import JournalBroken, UnknownMoment
from billing.ledger import journal_chain_store
from billing.ledger.journal import ACCOUNTS, AccountCode
from billing.money import ZERO, total
from billing.periods import rfc3339

FOREVER: Final = "infinity"


@dataclass(frozen=True, slots=True)
class AsOf:
    """A moment in both times.

    `effective`: entries effective before it; None: all. `seal_no`: entries up to this seal; None: all that is booked.
    """

    effective: datetime | None = None
    seal_no: int | None = None


NOW: Final = AsOf()


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """An account and its balance: debit positive, major units."""

    account_id: int
    account: AccountCode
    currency: str
    subledger: str
    amount: Decimal


@dataclass(frozen=True, slots=True)
class Balance:
    """One line of a trial balance, in major units: debit and credit are both ≥ 0, one of them is 0."""

    code: int
    name: str
    currency: str
    debit: Decimal
    credit: Decimal


# A snapshot's sums, and what it does not have: entries sealed after it, entries not sealed, and of those sealed before
# it the ones that hold from its moment on. Each of the three comes by an index of its own.
_BALANCES: Final = """
with moved as (
    select account_id, amount from ledger.snapshot_balances
    where legal_entity = :entity and snapshot_no = :snapshot
    union all
    select p.account_id, p.amount
    from ledger.sealed_entries s join ledger.journal_entries e using (entry_id) join ledger.postings p using (entry_id)
    where s.legal_entity = :entity and s.position > :after_position and s.position <= :upto_position
      and e.effective_at < cast(:effective as timestamptz)
    union all
    select p.account_id, p.amount
    from ledger.journal_entries e join ledger.sealed_entries s using (entry_id) join ledger.postings p using (entry_id)
    where e.legal_entity = :entity and s.position <= :after_position
      and e.effective_at >= cast(:from_effective as timestamptz) and e.effective_at < cast(:effective as timestamptz)
    {unsealed}
)
select a.account_id, a.code, a.currency, a.subledger, sum(m.amount) as amount
from moved m join ledger.accounts a on a.account_id = m.account_id
where (cast(:code as smallint) is null or a.code = :code)
  and (cast(:subledger as text) is null or a.subledger = :subledger)
group by a.account_id order by a.code, a.currency, a.subledger
"""
_UNSEALED: Final = """
    union all
    select p.account_id, p.amount from ledger.journal_entries e join ledger.postings p using (entry_id)
    where e.legal_entity = :entity and e.effective_at < cast(:effective as timestamptz) and {not_sealed}
"""


def account_balances(
    connection: Connection,
    *,
    legal_entity: str,
    as_of: AsOf = NOW,
    code: int | None = None,
    subledger: str | None = None,
    use_snapshots: bool = True,
) -> list[AccountBalance]:
    """Every account that was ever moved by then, with its balance; of one code or one subledger where given."""
    values: dict[str, object] = {
        "entity": legal_entity,
        "effective": as_of.effective or FOREVER,
        "code": code,
        "subledger": subledger,
        "upto_position": 2**62 if as_of.seal_no is None else _position(connection, legal_entity, as_of.seal_no),
    }
    values |= _snapshot(connection, legal_entity, as_of) if use_snapshots else _NO_SNAPSHOT
    unsealed = ""
    if as_of.seal_no is None:
        last = journal_chain_store.last_seal(connection, legal_entity)
        unsealed = _UNSEALED.format(not_sealed=journal_chain_store.not_sealed(last))
        values |= journal_chain_store.not_sealed_values(last)
    rows = connection.execute(text(_BALANCES.format(unsealed=unsealed)), values)
    return [AccountBalance(row[0], ACCOUNTS[row[1]], row[2], row[3], row[4]) for row in rows]


def period_balances(connection: Connection, *, legal_entity: str, accounting_period: str) -> list[AccountBalance]:
    """What the entries of one accounting period moved, per account."""
    rows = connection.execute(
        text(
            "select a.account_id, a.code, a.currency, a.subledger, sum(p.amount)"
            " from ledger.journal_entries e join ledger.postings p using (entry_id)"
            " join ledger.accounts a on a.account_id = p.account_id"
            " where e.legal_entity = :entity and e.accounting_period = :month"
            " group by a.account_id order by a.code, a.currency, a.subledger"
        ),
        {"entity": legal_entity, "month": accounting_period},
    )
    return [AccountBalance(row[0], ACCOUNTS[row[1]], row[2], row[3], row[4]) for row in rows]


def by_code(found: list[AccountBalance]) -> list[Balance]:
    """The lines of a trial balance."""
    keys = sorted({(one.account.code, one.currency) for one in found})
    lines = []
    for code, currency in keys:
        amount = total(one.amount for one in found if (one.account.code, one.currency) == (code, currency))
        lines.append(Balance(code, ACCOUNTS[code].name.lower(), currency, max(amount, ZERO), max(-amount, ZERO)))
    return lines


def seal_at(connection: Connection, legal_entity: str, moment: datetime) -> int:
    """The last seal made by a moment, 0 if none was. The answer stays what it is, for ever.

    A seal under way is waited for, and later ones bear later times. Raises UnknownMoment for one that lies ahead.
    """
    journal_chain_store.lock(connection, legal_entity, shared=True)
    row = connection.execute(
        text(
            "select clock_timestamp() < :moment, (select max(seal_no) from ledger.seals"
            " where legal_entity = :entity and sealed_at <= :moment)"
        ),
        {"entity": legal_entity, "moment": moment},
    ).one()
    if row[0]:
        raise UnknownMoment(f"{rfc3339(moment)} lies ahead: what is booked by then is not known yet")
    return row[1] or 0


def take_snapshot(connection: Connection, legal_entity: str, *, effective_before: datetime) -> int | None:
    """Keep the balances as of a moment and the last seal; its number. None: nothing is sealed, or it is kept already.

    For speed only: balances are the same with and without it.
    """
    journal_chain_store.lock(connection, legal_entity)
    last = journal_chain_store.last_seal(connection, legal_entity)
    if last.seal_no == 0:
        return None
    found = account_balances(connection, legal_entity=legal_entity, as_of=AsOf(effective_before, last.seal_no))
    number = connection.execute(
        text(
            "insert into ledger.balance_snapshots (legal_entity, snapshot_no, effective_before, seal_no)"
            " select :entity, coalesce(max(snapshot_no), 0) + 1, :effective, :seal from ledger.balance_snapshots"
            " where legal_entity = :entity on conflict (legal_entity, effective_before, seal_no) do nothing"
            " returning snapshot_no"
        ),
        {"entity": legal_entity, "effective": effective_before, "seal": last.seal_no},
    ).scalar()
    if number is None:
        return None
    kept = [one for one in found if one.amount]
    connection.execute(
        text(
            "insert into ledger.snapshot_balances (legal_entity, snapshot_no, account_id, amount)"
            " select :entity, :snapshot, account, amount"
            " from unnest(cast(:accounts as bigint[]), cast(:amounts as numeric[])) as given (account, amount)"
        ),
        {
            "entity": legal_entity,
            "snapshot": number,
            "accounts": [one.account_id for one in kept],
            "amounts": [one.amount for one in kept],
        },
    )
    return int(number)


def check_snapshots(connection: Connection, legal_entity: str) -> int:
    """Recompute what snapshots keep from the journal alone; how many there are. Raises JournalBroken."""
    taken = connection.execute(
        text(
            "select snapshot_no, effective_before, seal_no from ledger.balance_snapshots where legal_entity = :entity"
            " order by snapshot_no"
        ),
        {"entity": legal_entity},
    ).all()
    for number, effective, seal_no in taken:
        sums = account_balances(
            connection, legal_entity=legal_entity, as_of=AsOf(effective, seal_no), use_snapshots=False
        )
        kept = connection.execute(
            text(
                "select account_id, amount from ledger.snapshot_balances"
                " where (legal_entity, snapshot_no) = (:entity, :snapshot)"
            ),
            {"entity": legal_entity, "snapshot": number},
        )
        if {row[0]: row[1] for row in kept} != {one.account_id: one.amount for one in sums if one.amount}:
            raise JournalBroken(f"balance snapshot {number} is not what the journal comes to")
    return len(taken)


_NO_SNAPSHOT: Final[dict[str, object]] = {"snapshot": 0, "after_position": 0, "from_effective": FOREVER}


def _snapshot(connection: Connection, legal_entity: str, as_of: AsOf) -> dict[str, object]:
    """The newest snapshot that lies before a moment in both times."""
    row = connection.execute(
        text(
            "select b.snapshot_no as snapshot, s.last_position as after_position, b.effective_before as from_effective"
            " from ledger.balance_snapshots b join ledger.seals s using (legal_entity, seal_no)"
            " where b.legal_entity = :entity and b.effective_before <= cast(:effective as timestamptz)"
            " and b.seal_no <= :seal_no order by b.effective_before desc, b.seal_no desc limit 1"
        ),
        {
            "entity": legal_entity,
            "effective": as_of.effective or FOREVER,
            "seal_no": 2**31 - 1 if as_of.seal_no is None else as_of.seal_no,
        },
    ).first()
    return _NO_SNAPSHOT if row is None else dict(row._mapping)


def _position(connection: Connection, legal_entity: str, seal_no: int) -> int:
    """How far the chain goes with a seal. Raises UnknownMoment."""
    if seal_no == 0:
        return 0
    found = connection.execute(
        text("select last_position from ledger.seals where (legal_entity, seal_no) = (:entity, :seal_no)"),
        {"entity": legal_entity, "seal_no": seal_no},
    ).scalar()
    if found is None:
        raise UnknownMoment(f"{legal_entity} has no seal {seal_no} yet")
    return int(found)
