"""What came back from Stripe, in the database: events, balance transactions, how far both are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import (
    Connection,
    String,
    and_,
    any_,
    cast,
    func,
    literal,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert

from billing import tables
from billing.invoicing import correction_store
from billing.invoicing.invoice_states import InvoiceState
from billing.ledger.journal import ACCOUNTS, AccountCode, Posting
from billing.money import currency, to_minor, to_stripe
from billing.plans.account_store import DEFAULT_LEGAL_ENTITY
from billing.posting.stripe_money import BalanceTransaction
from billing.posting.suspense import Suspended, unexplained

EVENTS, MONEY = "events", "balance_transactions"
UNREADABLE = "unreadable"
"""The type of an event that was listed in a shape that cannot be read: it is kept as it came, under its own id, and
waits."""


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """That something happened to an object ("": to one that has no id). `body` is what came, as it came."""

    event_id: str
    type: str
    object_id: str
    created_at: datetime
    body: str


@dataclass(frozen=True, slots=True)
class Pass:
    """How far a list is read, from the newest on: the id that was read last, and when the newest was made."""

    page_after: str
    newest: datetime


@dataclass(frozen=True, slots=True)
class Outcome:
    """An event with what became of it."""

    event: StripeEvent
    outcome: str


@dataclass(frozen=True, slots=True)
class Followed:
    """The account of Stripe's, and whether its live mode, that a legal entity's books follow: its own, or the one that
    is `shares_with`'s."""

    legal_entity: str
    account_id: str
    live: bool
    shares_with: str | None = None


def keep_event(
    connection: Connection, event: StripeEvent, *, received_as: str, legal_entity: str = DEFAULT_LEGAL_ENTITY
) -> bool:
    """Keep an event of an entity's account as it came; False if it is there already."""
    table = tables.stripe_events
    values = {"event_id": event.event_id, "type": event.type, "object_id": event.object_id}
    values["legal_entity"] = legal_entity
    made = connection.execute(
        insert(table)
        .values(**values, created_at=event.created_at, body=event.body, received_as=received_as)
        .on_conflict_do_nothing()
        .returning(table.c.event_id)
    )
    return made.first() is not None


def known(connection: Connection, event_ids: Collection[str]) -> set[str]:
    """Which of these events are kept."""
    table = tables.stripe_events
    wanted = any_(cast(list(event_ids), ARRAY(String)))
    return set(connection.execute(select(table.c.event_id).where(table.c.event_id == wanted)).scalars())


def unhandled(
    connection: Connection, limit: int | None = None, after: StripeEvent | None = None,
    legal_entity: str | None = None,
) -> Sequence[StripeEvent]:  # fmt: skip
    """Events that wait, the oldest first; those after one; those of an entity's account."""
    table = tables.stripe_events
    place = tuple_(table.c.created_at, table.c.event_id)
    later = true() if after is None else place > tuple_(literal(after.created_at), literal(after.event_id))
    whose = true() if legal_entity is None else table.c.legal_entity == legal_entity
    rows = connection.execute(
        select(table)
        .where(table.c.handled_at.is_(None), later, whose)
        .order_by(table.c.created_at, table.c.event_id)
        .limit(limit)
    )
    return [StripeEvent(r.event_id, r.type, r.object_id, r.created_at, r.body) for r in rows]


def handled(connection: Connection, events: Collection[StripeEvent], outcome: str) -> None:
    """Say what became of events."""
    table = tables.stripe_events
    connection.execute(
        update(table)
        .where(table.c.event_id.in_([event.event_id for event in events]), table.c.handled_at.is_(None))
        .values(handled_at=func.clock_timestamp(), outcome=outcome)
    )


def follow(connection: Connection, asked: Followed) -> Followed | None:
    """What an entity's books follow: this, if they follow none yet; None where another's follow this account."""
    table = tables.stripe_account
    values = {"legal_entity": asked.legal_entity, "account_id": asked.account_id, "live": asked.live}
    connection.execute(insert(table).values(**values, shares_with=asked.shares_with).on_conflict_do_nothing())
    return next((each for each in all_followed(connection) if each.legal_entity == asked.legal_entity), None)


def all_followed(connection: Connection) -> list[Followed]:
    """What each entity's books follow."""
    table = tables.stripe_account
    rows = connection.execute(select(table).order_by(table.c.legal_entity))
    return [Followed(row.legal_entity, row.account_id, row.live, row.shares_with) for row in rows]


def paid_to(connection: Connection, legal_entity: str) -> str | None:
    """Whose account of Stripe's has the money of an entity; None where its books follow none yet."""
    known = (each for each in all_followed(connection) if each.legal_entity == legal_entity)
    return next((each.shares_with or each.legal_entity for each in known), None)


def open_at(connection: Connection, legal_entity: str, opens_at: datetime, actor: str) -> bool:
    """An entity's books follow its account from a moment on: what moved before is its opening. False where another one
    is said, or money of it is taken in."""
    known, taken_in = opening(connection, legal_entity), any(of == legal_entity for of, _ in nets(connection))
    if known is None and not taken_in:
        values = {"legal_entity": legal_entity, "opens_at": opens_at, "actor": actor}
        connection.execute(tables.stripe_openings.insert().values(**values))
        return True
    return known == opens_at


def opening(connection: Connection, legal_entity: str) -> datetime | None:
    """From when on an entity's books follow its account; None: from its beginning."""
    table = tables.stripe_openings
    return connection.execute(select(table.c.opens_at).where(table.c.legal_entity == legal_entity)).scalar()


def read_to(connection: Connection, name: str, legal_entity: str = DEFAULT_LEGAL_ENTITY) -> datetime | None:
    """How far a list of an entity's account is read."""
    table = tables.stripe_cursors
    query = select(table.c.read_to).where(table.c.legal_entity == legal_entity, table.c.name == name)
    return connection.execute(query).scalar()


def set_read_to(connection: Connection, legal_entity: str, name: str, at: datetime) -> None:
    """A list is read to here; never back."""
    table = tables.stripe_cursors
    made = insert(table).values(legal_entity=legal_entity, name=name, read_to=at)
    further = {"read_to": func.greatest(table.c.read_to, made.excluded.read_to)}
    connection.execute(made.on_conflict_do_update(index_elements=[table.c.legal_entity, table.c.name], set_=further))


def read_again(connection: Connection, since: datetime) -> None:
    """Let the lists be read again from a moment on, where they are read further."""
    table = tables.stripe_cursors
    connection.execute(update(table).where(table.c.read_to > since).values(read_to=since))
    connection.execute(tables.stripe_passes.delete())


def broken_off(connection: Connection, legal_entity: str, name: str) -> Pass | None:
    """Where reading a list was broken off."""
    table = tables.stripe_passes
    query = select(table).where(table.c.legal_entity == legal_entity, table.c.name == name)
    row = connection.execute(query).first()
    return None if row is None else Pass(row.page_after, row.newest)


def keep_page(connection: Connection, legal_entity: str, name: str, reached: Pass) -> None:
    """A list is read to the end of a page."""
    table = tables.stripe_passes
    values = {"legal_entity": legal_entity, "name": name}
    made = insert(table).values(**values, page_after=reached.page_after, newest=reached.newest)
    changed = {"page_after": made.excluded.page_after, "newest": made.excluded.newest}
    connection.execute(made.on_conflict_do_update(index_elements=[table.c.legal_entity, table.c.name], set_=changed))


def end_pass(connection: Connection, legal_entity: str, name: str) -> None:
    """A list is read to its end, or from its beginning again."""
    table = tables.stripe_passes
    connection.execute(table.delete().where(table.c.legal_entity == legal_entity, table.c.name == name))


def booked(connection: Connection, transaction_ids: Collection[str]) -> set[str]:
    """Which of these balance transactions are booked."""
    table = tables.stripe_balance_transactions
    # One parameter, however many there are.
    wanted = any_(cast(list(transaction_ids), ARRAY(String)))
    return set(connection.execute(select(table.c.transaction_id).where(table.c.transaction_id == wanted)).scalars())


def unbooked(connection: Connection, legal_entity: str | None = None) -> dict[str, datetime]:
    """The balance transactions that could not be booked, and when they were made; the oldest first; of an entity's
    account alone, if one is named."""
    table = tables.stripe_unbooked
    query = select(table.c.transaction_id, table.c.created_at).order_by(table.c.created_at, table.c.transaction_id)
    if legal_entity is not None:
        query = query.where(table.c.legal_entity == legal_entity)
    return {row.transaction_id: row.created_at for row in connection.execute(query)}


def set_aside(
    connection: Connection, legal_entity: str, transaction_id: str, created_at: datetime, because: str | None
) -> None:
    """Keep why a balance transaction cannot be booked; None where it is booked by now."""
    table = tables.stripe_unbooked
    connection.execute(table.delete().where(table.c.transaction_id == transaction_id))
    if because is not None:
        values = {"legal_entity": legal_entity, "transaction_id": transaction_id, "because": because}
        connection.execute(table.insert().values(**values, created_at=created_at))


def keep_transaction(
    connection: Connection, legal_entity: str, moved: BalanceTransaction, customer: str | None, entry_id: int | None
) -> None:
    """Keep a balance transaction of an entity's account with the entry that books it."""
    connection.execute(
        tables.stripe_balance_transactions.insert().values(
            legal_entity=legal_entity,
            transaction_id=moved.transaction_id,
            reporting_category=moved.category,
            currency=moved.currency,
            amount=moved.amount,
            fee=moved.fee,
            net=moved.net,
            source_id=moved.source_id,
            stripe_customer_id=customer,
            created_at=moved.created_at,
            entry_id=entry_id,
        )
    )


def customer_of_source(connection: Connection, source_id: str) -> str | None:
    """The customer of a charge whose payment is booked."""
    table = tables.stripe_balance_transactions
    query = select(table.c.stripe_customer_id).where(table.c.source_id == source_id).limit(1)
    return connection.execute(query).scalar()


def account_of_customer(connection: Connection, stripe_customer_id: str) -> str | None:
    """The billing account that a Stripe customer is."""
    table = tables.stripe_customers
    query = select(table.c.billing_account).where(table.c.stripe_customer_id == stripe_customer_id)
    return connection.execute(query).scalar()


def entries(connection: Connection) -> list[int]:
    """The entries that book what moved in Stripe, and what became of invoices there."""
    table = tables.stripe_balance_transactions
    moved = connection.execute(select(table.c.entry_id).where(table.c.entry_id.is_not(None))).scalars()
    return [*moved, *correction_store.entries(connection)]


def booked_nets(connection: Connection) -> dict[str, int]:
    """What the journal has in 1010 of each balance transaction, in Stripe's integers, times how often it is booked."""
    table, postings, accounts = tables.stripe_balance_transactions, tables.postings, tables.accounts
    query = (
        select(table.c.transaction_id, table.c.currency, table.c.created_at, func.sum(postings.c.amount))
        .join(postings, postings.c.entry_id == table.c.entry_id)
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(accounts.c.code == AccountCode.STRIPE_BALANCE_CLEARING.code)
        .group_by(table.c.transaction_id, table.c.currency, table.c.created_at)
    )
    nothing = select(table.c.transaction_id).where(table.c.net == 0)
    found = dict.fromkeys(connection.execute(nothing).scalars(), 0)
    for transaction_id, code, at, amount in connection.execute(query):
        money = currency(code, at.date())
        found[transaction_id] = to_stripe(to_minor(amount, money), money)
    return found


def received(connection: Connection) -> dict[tuple[str, str], Decimal]:
    """What balance transactions moved on 1100: (billing account, currency) → amount in major units, zeros left out."""
    table, postings, accounts = tables.stripe_balance_transactions, tables.postings, tables.accounts
    key = (accounts.c.subledger, accounts.c.currency)
    query = (
        select(*key, func.sum(postings.c.amount))
        .select_from(table)
        .join(postings, postings.c.entry_id == table.c.entry_id)
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(accounts.c.code == AccountCode.ACCOUNTS_RECEIVABLE.code)
        .group_by(*key)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(query) if row[2]}


def disputed(connection: Connection) -> dict[tuple[str, str], Decimal]:
    """What is in 1180, by what brought it there (a dispute, or an entry by hand) and currency; zeros left out."""
    moved, entries = tables.stripe_balance_transactions, tables.journal_entries
    postings, accounts = tables.postings, tables.accounts
    by_hand = literal("entry ").concat(cast(entries.c.entry_id, String))
    name = func.coalesce(moved.c.source_id, entries.c.source["dispute"].astext, by_hand)
    query = (
        select(name, accounts.c.currency, func.sum(postings.c.amount))
        .select_from(postings)
        .join(entries, entries.c.entry_id == postings.c.entry_id)
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .join(moved, moved.c.entry_id == postings.c.entry_id, isouter=True)
        .where(accounts.c.code == AccountCode.DISPUTE_RECEIVABLE.code)
        .group_by(name, accounts.c.currency)
    )
    return {(row[0], row[1]): row[2] for row in connection.execute(query) if row[2]}


def withdrawn(connection: Connection, dispute_id: str) -> list[Posting]:
    """What a dispute has in 1180, or in 1090 where its payer is not known: by its balance transactions, less what was
    booked as lost of it and not regained."""
    moved, entries = tables.stripe_balance_transactions, tables.journal_entries
    postings, accounts = tables.postings, tables.accounts
    of = select(moved.c.entry_id).where(moved.c.source_id == dispute_id)
    ended = select(entries.c.entry_id).where(
        entries.c.kind.in_(("dispute_lost", "dispute_regained")), entries.c.source["dispute"].astext == dispute_id
    )
    held = (AccountCode.DISPUTE_RECEIVABLE, AccountCode.SUSPENSE)
    key = (accounts.c.code, accounts.c.currency, accounts.c.subledger)
    query = (
        select(*key, func.sum(postings.c.amount))
        .select_from(postings)
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(
            or_(postings.c.entry_id.in_(of), postings.c.entry_id.in_(ended)),
            accounts.c.code.in_([each.code for each in held]),
        )
        .group_by(*key)
        .order_by(*key)
    )
    rows = connection.execute(query).all()
    return [Posting(ACCOUNTS[code], unit, amount, subledger) for code, unit, subledger, amount in rows if amount]


def suspense(connection: Connection) -> list[Suspended]:
    """What of Stripe's is in 1090, and nobody has posted where it belongs."""
    postings, accounts, entries = tables.postings, tables.accounts, tables.journal_entries
    query = (
        select(entries.c.source, entries.c.legal_entity, accounts.c.currency, postings.c.amount)
        .select_from(entries)
        .join(postings, postings.c.entry_id == entries.c.entry_id)
        .join(accounts, accounts.c.account_id == postings.c.account_id)
        .where(accounts.c.code == AccountCode.SUSPENSE.code)
        .order_by(entries.c.entry_id)
    )
    booked: list[Suspended] = []
    by_hand: list[Suspended] = []
    for source, *rest in connection.execute(query):
        name = source.get("opening") or source.get("balance_transaction") or source.get("dispute")
        (booked if name else by_hand).append(Suspended(name or source.get("memo", ""), *rest))
    return unexplained(booked, by_hand)


def nets(connection: Connection) -> dict[tuple[str, str], int]:
    """What the balance of each entity's account came to by all that is booked, by currency, in Stripe's integers."""
    table = tables.stripe_balance_transactions
    key = (table.c.legal_entity, table.c.currency)
    rows = connection.execute(select(*key, func.sum(table.c.net)).group_by(*key))
    return {(row[0], row[1]): int(row[2]) for row in rows}


def kept(connection: Connection) -> int:
    """How many events there are."""
    return connection.execute(select(func.count()).select_from(tables.stripe_events)).scalar_one()


def waiting(connection: Connection) -> int:
    """How many events are not handled."""
    table = tables.stripe_events
    return connection.execute(select(func.count()).where(table.c.handled_at.is_(None))).scalar_one()


def problems(connection: Connection) -> list[Outcome]:
    """Events that need a person, the newest first. An invoice that is over here needs nobody any more, nor does
    what was made in Stripe by hand and is void by now, nor what was begun anew since."""
    table, invoices = tables.stripe_events, tables.invoices
    over = select(invoices.c.invoice_id).where(
        invoices.c.stripe_invoice_id == table.c.object_id,
        or_(
            invoices.c.state.in_((InvoiceState.PAID, InvoiceState.VOID)),
            and_(invoices.c.state == InvoiceState.UNCOLLECTIBLE, table.c.outcome.contains("made uncollectible")),
        ),
    )
    hand, anew = tables.stripe_by_hand, tables.sending_restarts
    undone = select(hand.c.object_id).where(hand.c.object_id == table.c.object_id, hand.c.over)
    restarted = select(anew.c.restart_no).where(
        or_(anew.c.stripe_invoice_id == table.c.object_id, anew.c.customer_gone == table.c.object_id)
    )
    query = select(table).where(
        table.c.outcome.like("needs a person:%"), ~over.exists(), ~undone.exists(), ~restarted.exists()
    )
    query = query.order_by(table.c.handled_at.desc()).limit(100)
    return [
        Outcome(StripeEvent(r.event_id, r.type, r.object_id, r.created_at, r.body), r.outcome)
        for r in connection.execute(query)
    ]


def heard_of(connection: Connection, object_id: str, kind: str) -> bool:
    """Whether an event of a type came for an object."""
    table = tables.stripe_events
    query = select(func.count()).where(table.c.object_id == object_id, table.c.type == kind)
    return connection.execute(query).scalar_one() > 0
