"""Closes in the database: where every account's month stands and how it came there, waivers, what is approved."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects.postgresql import distinct_on

from billing import tables
from billing.database import add_rows
from billing.invoicing.invoices import InvoiceKind
from billing.money import plain
from billing.periods import rfc3339
from reconciliation.close.states import PREPARING, Event, State, after, book_after
from reconciliation.errors import CloseRefused

BOOK: Final = ""
"""In place of a billing account: the book of the legal entity."""
APPROVED: Final = (InvoiceKind.USAGE, InvoiceKind.ADJUSTMENT)
"""What a close issues. Fees in advance, credit notes and top-ups have their own time."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a billing account's month stands (or the book, with the account BOOK), since when, by whom, why."""

    month: str
    legal_entity: str
    billing_account: str
    state: State = State.OPEN
    step: int = 0
    parked_from: State | None = None
    actor: str = ""
    reason: str = ""
    at: datetime | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of an account or a book, as it was recorded."""

    legal_entity: str
    billing_account: str
    step: int
    from_state: str
    event: str
    to_state: str
    actor: str
    reason: str
    detail: Mapping[str, Any]
    at: datetime


@dataclass(frozen=True, slots=True)
class Waiver:
    """A named person's word that a difference may stay as it was seen, and its worth: [low, high], major units."""

    gate: str
    key: str
    left: str | None
    right: str | None
    actor: str
    reason: str
    low: Decimal | None
    high: Decimal | None
    currency: str | None
    at: datetime

    def document(self) -> dict[str, Any]:
        """As JSON holds it; amounts as decimal strings."""
        return {
            "gate": self.gate, "key": self.key, "left": self.left, "right": self.right, "actor": self.actor,
            "reason": self.reason, "low": None if self.low is None else plain(self.low),
            "high": None if self.high is None else plain(self.high), "currency": self.currency,
            "at": rfc3339(self.at),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Content:
    """What an account's month comes to, as it was put before a person; with the approval, if there is one."""

    content_no: int
    billing_account: str
    content: str
    hash: str
    prepared_by: str
    at: datetime
    approved_by: str | None
    alone: bool | None
    approved_at: datetime | None


def lock(connection: Connection, month: str) -> None:
    """Let changes of one month's close go one after another, until the transaction ends."""
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"close/{month}", 0))))


def standings(connection: Connection, month: str) -> dict[str, Standing]:
    """Where every billing account stands that the month's close has seen, and the books that are closed.

    A book is under BOOK + its legal entity: `book_key`.
    """
    table = tables.close_transitions
    rows = connection.execute(
        select(table)
        .where(table.c.month == month)
        .ext(distinct_on(table.c.legal_entity, table.c.billing_account))
        .order_by(table.c.legal_entity, table.c.billing_account, table.c.step.desc())
    )
    found = {}
    for row in rows:
        key = row.billing_account or book_key(row.legal_entity)
        found[key] = Standing(
            month, row.legal_entity, row.billing_account, State(row.to_state), row.step,
            State(row.from_state) if row.event == Event.PARK else None, row.actor, row.reason, row.at, row.detail,
        )  # fmt: skip
    return found


def book_key(legal_entity: str) -> str:
    """The key of a legal entity's book among the standings: no account has such a name."""
    return f"book {legal_entity}"


def is_under_way(standing: Standing) -> bool:
    """Whether something still comes of it: an account that is neither closed nor parked."""
    return standing.billing_account != BOOK and standing.state not in (State.CLOSED, State.PARKED)


def months_before(connection: Connection, month: str) -> dict[str, str]:
    """Accounts of which an earlier month is being closed and is neither closed nor parked: account → that month."""
    table = tables.close_transitions
    last = (
        select(table.c.month, table.c.billing_account, table.c.to_state)
        .where(table.c.month < month, table.c.billing_account != BOOK)
        .ext(distinct_on(table.c.month, table.c.billing_account))
        .order_by(table.c.month, table.c.billing_account, table.c.step.desc())
        .subquery()
    )
    query = select(last.c.billing_account, func.min(last.c.month)).where(
        last.c.to_state.not_in((State.CLOSED, State.PARKED))
    )
    return {row[0]: row[1] for row in connection.execute(query.group_by(last.c.billing_account))}


def move(
    connection: Connection,
    standings: Iterable[Standing],
    event: Event,
    actor: str,
    *,
    reason: str = "",
    details: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Standing]:
    """Let the same happen to many accounts (or books); where they stand then. `details` are by account.

    The database refuses a step that another session has made meanwhile. Raises CloseRefused.
    """
    moved, rows = [], []
    for one in standings:
        of_book = one.billing_account == BOOK
        to = book_after(one.state, event) if of_book else after(one.state, event, parked_from=one.parked_from)
        detail = dict((details or {}).get(one.billing_account, {}))
        parked = one.state if event is Event.PARK else None
        moved.append(
            Standing(
                one.month, one.legal_entity, one.billing_account, to, one.step + 1, parked, actor, reason, None, detail
            )
        )
        rows.append(
            {
                "month": one.month, "legal_entity": one.legal_entity, "billing_account": one.billing_account,
                "step": one.step + 1, "from_state": one.state.value, "event": event.value, "to_state": to.value,
                "actor": actor, "reason": reason, "detail": detail,
            }
        )  # fmt: skip
    add_rows(connection, tables.close_transitions, rows)
    return moved


def history(connection: Connection, month: str, *, reopened: bool = False) -> list[Transition]:
    """Every step of a month's close, in the order in which they were made; or those of accounts that were reopened."""
    table = tables.close_transitions
    query = select(table).where(table.c.month == month).order_by(table.c.transition_no)
    if reopened:
        again = select(table.c.billing_account).where(table.c.month == month, table.c.event == Event.REOPEN)
        query = query.where(table.c.billing_account.in_(again))
    return [
        Transition(
            row.legal_entity, row.billing_account, row.step, row.from_state, row.event, row.to_state, row.actor,
            row.reason, row.detail, row.at,
        )
        for row in connection.execute(query)
    ]  # fmt: skip


def waivers(connection: Connection, month: str) -> list[Waiver]:
    """What was waived or explained of a month, in order."""
    table = tables.close_waivers
    query = select(table).where(table.c.month == month).order_by(table.c.waiver_no)
    return [
        Waiver(
            row.gate,
            row.key,
            row.seen_left,
            row.seen_right,
            row.actor,
            row.reason,
            row.low,
            row.high,
            row.currency,
            row.at,
        )
        for row in connection.execute(query)
    ]


def waived(connection: Connection, month: str) -> dict[tuple[str, str, str | None, str | None], str]:
    """Who let what stay: gate, key, and both values as they were seen → the person; a later word goes before."""
    return {(each.gate, each.key, each.left, each.right): each.actor for each in waivers(connection, month)}


def add_waivers(connection: Connection, month: str, given: Sequence[Mapping[str, object]]) -> None:
    """Append waivers: gate, key, seen_left, seen_right, actor, reason, low, high, currency."""
    for row in given:
        connection.execute(tables.close_waivers.insert().values(month=month, **row))


def add_contents(connection: Connection, month: str, contents: Mapping[str, str], actor: str) -> None:
    """Append what accounts' months come to, where it is not what waits for a person already."""
    known = {each.billing_account: each for each in latest_contents(connection, month, contents.keys())}
    rows = [
        {"month": month, "billing_account": name, "content": text, "hash": content_hash(text), "prepared_by": actor}
        for name, text in sorted(contents.items())
        if name not in known or known[name].content != text or known[name].approved_by is not None
    ]
    add_rows(connection, tables.close_contents, rows)


def latest_contents(connection: Connection, month: str, accounts: Collection[str] | None = None) -> list[Content]:
    """The latest content of each account in order, with its approval."""
    contents, approvals = tables.close_contents, tables.close_approvals
    query = (
        select(
            contents.c.content_no, contents.c.billing_account, contents.c.content, contents.c.hash,
            contents.c.prepared_by, contents.c.at, approvals.c.approved_by, approvals.c.alone,
            approvals.c.at.label("approved_at"),
        )
        .join(approvals, approvals.c.content_no == contents.c.content_no, isouter=True)
        .where(contents.c.month == month)
        .ext(distinct_on(contents.c.billing_account))
        .order_by(contents.c.billing_account, contents.c.content_no.desc())
    )  # fmt: skip
    found = [Content(*row) for row in connection.execute(query)]
    return [each for each in found if accounts is None or each.billing_account in accounts]


def to_sign(connection: Connection, month: str) -> list[Content]:
    """What waits for another person's approval: the content of each account that is reconciled."""
    ready = [name for name, standing in standings(connection, month).items() if standing.state is State.RECONCILED]
    return latest_contents(connection, month, ready)


def signed(contents: Sequence[Content]) -> str:
    """One hash over the hashes of accounts' contents, in order."""
    return content_hash("\n".join(f"{each.billing_account} {each.hash}" for each in contents))


def preparers(transitions: Iterable[Transition]) -> dict[str, set[str]]:
    """By account who has collected, frozen, drafted or reconciled it since it was reopened last."""
    found: dict[str, set[str]] = defaultdict(set)
    for each in transitions:
        if each.event == Event.REOPEN:
            found[each.billing_account].clear()
        elif each.event in PREPARING:
            found[each.billing_account].add(each.actor)
    return found


def approve(connection: Connection, month: str, contents: Iterable[Content], actor: str, *, alone: bool) -> None:
    """Append a person's approval of each content. Raises CloseRefused where who prepared it approves, unless `alone`.

    The database refuses the same.
    """
    prepared = preparers(history(connection, month))
    listed = [(each, actor in prepared[each.billing_account] | {each.prepared_by}) for each in contents]
    own = [each.billing_account for each, by_actor in listed if by_actor]
    if own and not alone:
        raise CloseRefused(f"{actor} has prepared {own[0]} and {len(own) - 1} more: another person approves them")
    rows = [{"content_no": each.content_no, "approved_by": actor, "alone": by_actor} for each, by_actor in listed]
    add_rows(connection, tables.close_approvals, rows)


def content_hash(content: str) -> str:
    """What a person signs: SHA-256 of the content, in hex."""
    return hashlib.sha256(content.encode()).hexdigest()
