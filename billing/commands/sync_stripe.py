"""Take in what happened in Stripe: money into the books, payments onto invoices. Running it again takes in what is new.

Money is booked from balance transactions alone, each once. Events only say what to look at: the object is asked for as
it is now, so that their order and repeats do not matter. Nothing external happens inside a transaction.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import InterfaceError, OperationalError

from billing.commands.send_corrections import send_corrections
from billing.database import connection as connected
from billing.database import raw, transaction
from billing.errors import (
    MoneyNotBooked,
    OpeningRefused,
    StripeAccessRefused,
    StripeBusy,
    StripeOutcomeUnknown,
    StripeRefused,
    in_words,
)
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CORRECTION, CorrectionState
from billing.ledger import ledger_store
from billing.posting.booking import booking
from billing.posting.stripe_money import BalanceTransaction, money_moved, opening_moved
from billing.stripe import customer_store, returns, returns_store
from billing.stripe.event_handlers import HANDLERS, PAID, PERSON, UNPAID, WAITS, kind_of
from billing.stripe.payers import customer_who_paid, payer
from billing.stripe.returns import Unreadable
from billing.stripe.returns_store import EVENTS, MONEY, Pass, StripeEvent
from billing.stripe.sender_lock import sync_held
from billing.stripe.stripe_accounts import Stripe, all_followed
from billing.stripe.stripe_gateway import StripeGateway
from streams import audit

OVERLAP: Final = timedelta(hours=1)
"""Lists are read again from so long before where they were read to: what Stripe dates back is not missed."""
AT_ONCE: Final = 500
EVENTS_KEPT: Final = timedelta(days=30)
"""So long Stripe keeps events (https://docs.stripe.com/api/events)."""
T = TypeVar("T", BalanceTransaction | Unreadable, StripeEvent)
UNREACHABLE: Final = (StripeAccessRefused, StripeBusy, StripeOutcomeUnknown, InterfaceError, OperationalError)
"""What stops a run: Stripe or the database is not there. The next one goes on. Anything else is about one object."""


@dataclass(frozen=True, slots=True)
class StripeSynced:
    """What a run took in: balance transactions, events, invoices that are paid now; `corrected` was told to Stripe.

    `problems` need a person.
    """

    booked: int
    events: int
    paid: int
    waiting: int
    problems: tuple[str, ...]
    corrected: int = 0


def sync_stripe(
    engine: Engine, *, gateway: Stripe, now: datetime, actor: str = "tollbook", poll: bool = True,
    again: bool = False, since: datetime | None = None, opening: datetime | None = None,
) -> StripeSynced:  # fmt: skip
    """Take in what is new in Stripe; without `poll` only the events that webhooks brought, and the money.

    What was done to invoices here and waits to be told is told (`send_corrections`), `again` also what Stripe refused a
    moment ago. `since` reads Stripe's lists again from then on; where its events do not reach back so far (30 days),
    all that they may have been about is looked at. One run goes after another, and one account after another.

    `opening`, with the first run of an account: what moved in it before then is one sum in 1090 for each currency.

    Raises OpeningRefused where money of each is taken in already, OtherStripeAccount where the books follow another
    account or mode: the first run says which.
    """
    with connected(engine) as opened, sync_held(opened):
        all_followed(engine, gateway)
        if since is not None:
            _read_again(engine, since, actor)
        if opening is not None:
            _open(engine, gateway, opening, actor)
        told = send_corrections(engine, gateway=gateway, now=now, actor=actor, again=again)
        booked, unbooked = 0, list[str]()
        outcomes, stuck = list[tuple[str, list[StripeEvent]]](), list[str]()
        for account in gateway.each:
            count, left = _take_money(engine, account, now)
            booked, unbooked = booked + count, unbooked + left
            if poll:
                _take_events(engine, account)
            if since is not None and since < now - EVENTS_KEPT:
                _look_at_all(engine, account, now)
            handled_, waits = _handle(engine, account, now, actor)
            outcomes, stuck = outcomes + handled_, stuck + waits
        before = {each.correction.correction_no for each in told}
        told += send_corrections(engine, gateway=gateway, now=now, actor=actor, but=before, again=again)
    with transaction(engine) as connection:
        waiting = returns_store.waiting(connection)
    handled = sum(len(events) for _, events in outcomes)
    paid = sum(outcome == PAID for outcome, _ in outcomes)
    problems = tuple(
        f"{events[0].object_id}: {outcome.removeprefix(PERSON)}"
        for outcome, events in outcomes
        if outcome.startswith(PERSON)
    )
    hindered = tuple(
        f"{each.correction.kind} of invoice {each.correction.invoice_id}: {each.reason}" for each in told if each.reason
    )
    return StripeSynced(
        booked, handled, paid, waiting, (*unbooked, *stuck, *problems, *hindered), sum(each.done for each in told)
    )


def look_ahead(engine: Engine, *, gateway: Stripe, since: datetime | None = None) -> StripeSynced:
    """What a run would begin with: balance transactions to book, events to handle, corrections to tell. Nothing is
    kept, booked or told.

    Raises OtherStripeAccount.
    """
    all_followed(engine, gateway, dry_run=True)
    to_book = to_keep = 0
    for account in gateway.each:
        money = partial(_not_there, engine, account, MONEY, partial(returns.balance_transactions, account))
        to_book += money(lambda moved: moved.transaction_id, returns_store.booked, since)
        events = partial(_not_there, engine, account, EVENTS, partial(returns.events, account))
        to_keep += events(lambda event: event.event_id, returns_store.known, since)
    with transaction(engine) as connection:
        waiting = returns_store.waiting(connection)
        to_tell = len(correction_store.listed(connection, state=CorrectionState.OPEN))
    return StripeSynced(to_book, to_keep + waiting, 0, waiting, (), to_tell)


def _not_there(
    engine: Engine, gateway: StripeGateway, name: str,
    listed: Callable[[datetime | None, str | None], Iterable[list[T]]], id_of: Callable[[T], str],
    there: Callable[[Connection, Collection[str]], set[str]], since: datetime | None,
) -> int:  # fmt: skip
    with transaction(engine) as connection:
        read_to = returns_store.read_to(connection, name, gateway.legal_entity)
    if read_to is not None and since is not None:
        read_to = min(read_to, since)
    count = 0
    for page in listed(read_to and read_to - OVERLAP, None):
        ids = {id_of(each) for each in page}
        with transaction(engine) as connection:
            count += len(ids - there(connection, ids))
    return count


def _open(engine: Engine, gateway: Stripe, opening: datetime, actor: str) -> None:
    with transaction(engine) as connection:
        homes = [account.legal_entity for account in gateway.each]
        opened = [home for home in homes if returns_store.open_at(connection, home, opening, actor)]
        if not opened:
            raise OpeningRefused(
                f"the books of {', '.join(homes)} follow Stripe already: an opening is said with an account's first"
                " `stripe sync`, and once"
            )
        audit.record(raw(connection), actor, "stripe.open", ", ".join(opened), {"opening": opening.isoformat()})


def _read_again(engine: Engine, since: datetime, actor: str) -> None:
    with transaction(engine) as connection:
        returns_store.read_again(connection, since)
        audit.record(raw(connection), actor, "stripe.read_again", "", {"since": since.isoformat()})


def _take_money(engine: Engine, gateway: StripeGateway, now: datetime) -> tuple[int, list[str]]:
    """Book an account's balance transactions that are not booked yet, page by page: how many, and which cannot be.

    One that cannot be booked holds up no other, and not the reading of the list: it is kept aside by its id, asked for
    by it and tried again by each run.
    """
    whose = gateway.legal_entity
    with transaction(engine) as connection:
        aside = returns_store.unbooked(connection, whose)
    count = 0
    unbooked: list[str] = []

    def take(transaction_id: str, at: datetime, moved: BalanceTransaction | Unreadable | None) -> None:
        nonlocal count
        because = None
        try:
            if isinstance(moved, Unreadable):
                raise MoneyNotBooked(moved.because)
            moved = moved or returns.balance_transaction(gateway, transaction_id)
            customer = moved.stripe_customer_id or customer_who_paid(engine, gateway, moved.charge_id)
            with transaction(engine) as connection:
                if not returns_store.booked(connection, [transaction_id]):
                    _book(connection, whose, moved, customer, now)
                    count += 1
        except UNREACHABLE:
            raise
        except Exception as error:  # also of a shape that nobody thought of
            because = in_words(error)
            unbooked.append(f"{transaction_id} of {at:%Y-%m-%d} is not booked: {because}")
        with transaction(engine) as connection:
            returns_store.set_aside(connection, whose, transaction_id, at, because)

    for transaction_id, at in aside.items():
        take(transaction_id, at, None)
    listed = partial(returns.balance_transactions, gateway)
    for page in _new_pages(engine, whose, MONEY, listed, lambda moved: moved.transaction_id):
        with transaction(engine) as connection:
            known = returns_store.booked(connection, [moved.transaction_id for moved in page])
        for moved in page:
            if moved.transaction_id not in known and moved.transaction_id not in aside:
                take(moved.transaction_id, moved.created_at, moved)
    return count, unbooked


def _new_pages(
    engine: Engine, whose: str, name: str, listed: Callable[[datetime | None, str | None], Iterable[list[T]]],
    id_of: Callable[[T], str],
) -> Iterator[list[T]]:  # fmt: skip
    """What a list of an entity's account has had since it was read to its end last, page by page, each the oldest
    first.

    Where that is broken off, the next run goes on with the page after the last one that was taken in, and then reads
    what is new since.
    """
    while True:
        with transaction(engine) as connection:
            read_to = returns_store.read_to(connection, name, whose)
            begun = returns_store.broken_off(connection, whose, name)
        newest = begun.newest if begun else None
        try:
            for page in listed(read_to and read_to - OVERLAP, begun.page_after if begun else None):
                newest = newest or page[0].created_at
                yield page[::-1]
                with transaction(engine) as connection:
                    returns_store.keep_page(connection, whose, name, Pass(id_of(page[-1]), newest))
        except StripeRefused as error:
            if begun is None or error.code != "resource_missing":
                raise
            newest = None  # where it was broken off is not there any more: from the beginning again
        with transaction(engine) as connection:
            returns_store.end_pass(connection, whose, name)
            if newest is not None:
                returns_store.set_read_to(connection, whose, name, newest)
        if begun is None:
            return


def _book(connection: Connection, whose: str, moved: BalanceTransaction, customer: str | None, now: datetime) -> None:
    opening = returns_store.opening(connection, whose)
    before = opening is not None and moved.created_at < opening
    account, entity = (None, whose) if before else payer(connection, customer, whose)
    key = f"stripe:{moved.transaction_id}"
    where = booking(connection, key, legal_entity=entity, at=moved.created_at, now=now)
    if opening is not None and before:
        entry = opening_moved(moved, opening, booking=where)
    else:
        entry = money_moved(moved, account, booking=where)
    entry_id = None if entry is None else ledger_store.post(connection, [entry])[key]
    returns_store.keep_transaction(connection, whose, moved, customer, entry_id)


def _take_events(engine: Engine, gateway: StripeGateway) -> None:
    """Keep what the list of events has since it was read last: what webhooks did not bring."""
    whose, listed = gateway.legal_entity, partial(returns.events, gateway)
    for page in _new_pages(engine, whose, EVENTS, listed, lambda event: event.event_id):
        with transaction(engine) as connection:
            for event in page:
                returns_store.keep_event(connection, event, received_as="poll", legal_entity=whose)


def _look_at_all(engine: Engine, gateway: StripeGateway, now: datetime) -> None:
    """Let all that may have changed be looked at, as if an event of it had come: Stripe has those of then no more."""
    whose = gateway.legal_entity
    with transaction(engine) as connection:
        unpaid = invoice_store.listed(connection, states=UNPAID, as_stored=True)
        homes = {e: returns_store.paid_to(connection, e) for e in {s.invoice.identity.legal_entity for s in unpaid}}
        customers = customer_store.current(connection)
    about = [("invoice", s.stripe_invoice_id or "") for s in unpaid if homes[s.invoice.identity.legal_entity] == whose]
    about += [("charge.dispute", each["id"]) for each in gateway.pages("/v1/disputes")]
    for kind, path in (("credit_note", "/v1/credit_notes"), ("refund", "/v1/refunds")):
        by_hand = (each for each in gateway.pages(path) if CORRECTION not in (each["metadata"] or {}))
        about += [(kind, each["id"]) for each in by_hand]
    about += [
        ("customer_cash_balance_transaction", each["id"]) for each in gateway.customers(None) if each["id"] in customers
    ]
    with transaction(engine) as connection:
        for kind, name in about:
            told = {"data": {"object": {"id": name, "customer": name}}}
            event = StripeEvent(f"looked_at:{name}:{now.isoformat()}", f"{kind}.looked_at", name, now, json.dumps(told))
            returns_store.keep_event(connection, event, received_as="poll", legal_entity=whose)


def _handle(
    engine: Engine, gateway: StripeGateway, now: datetime, actor: str
) -> tuple[list[tuple[str, list[StripeEvent]]], list[str]]:
    """Handle an account's events that wait, object by object: what became of each object's, and what stands in the way
    of some.

    Those wait on, and are tried again by each run.
    """
    outcomes: list[tuple[str, list[StripeEvent]]] = []
    stuck: list[str] = []
    after: StripeEvent | None = None
    while True:
        with transaction(engine) as connection:
            found = returns_store.unhandled(connection, AT_ONCE, after, gateway.legal_entity)
        if not found:
            return outcomes, stuck
        after = found[-1]
        by_object: dict[tuple[str, str], list[StripeEvent]] = defaultdict(list)
        for event in found:
            by_object[kind_of(event), event.object_id].append(event)
        for (kind, object_id), events in by_object.items():
            try:
                outcome = _outcome(engine, gateway, kind, events, now, actor)
            except UNREACHABLE:
                raise
            except Exception as error:  # also of a shape that nobody thought of
                stuck.append(f"{object_id}: {in_words(error)}")
                continue
            if outcome == WAITS:
                continue
            with transaction(engine) as connection:
                returns_store.handled(connection, events, outcome)
            outcomes.append((outcome, events))


def _outcome(
    engine: Engine, gateway: StripeGateway, kind: str, events: Sequence[StripeEvent], now: datetime, actor: str
) -> str:
    """What becomes of an object's events. What Stripe refuses to show is for a person, and asked for no more."""
    handle = HANDLERS.get(kind)
    try:
        return "kept" if handle is None else handle(engine, gateway, events, now, actor)
    except StripeRefused as error:
        return f"{PERSON}{error}"
