"""What is booked of Stripe's money, and how our customers stand there: both sides read, and compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from itertools import accumulate
from typing import Final

from sqlalchemy import Connection, Engine, select

from billing import tables
from billing.database import transaction
from billing.errors import StripeRefused
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CorrectionKind, CorrectionState
from billing.ledger import balance_store, ledger_store
from billing.ledger.journal import AccountCode
from billing.money import ZERO, currency, exactly, plain
from billing.periods import BillingPeriod
from billing.posting.stripe_money import PAYMENTS, BalanceTransaction, major
from billing.stripe import customer_store, returns, returns_store, stripe_request_store
from billing.stripe.returns import Unreadable
from billing.stripe.stripe_accounts import Stripe
from billing.stripe.stripe_gateway import StripeGateway
from reconciliation import stripe_agreement
from reconciliation.agreement import Check, compare
from reconciliation.comparison import Value

CLEARING: Final = AccountCode.STRIPE_BALANCE_CLEARING.code
ASKED_BY_ID: Final = 100
"""More than are booked while a list is read; each is a request to Stripe."""
_KEPT: Final = tables.stripe_balance_transactions.c


@dataclass(frozen=True, slots=True)
class MoneySeen:
    """An account's balance transactions, those that cannot be read, its balance of payments by currency, and what those
    come to that the balance counts: not those of reserves."""

    moved: Mapping[str, BalanceTransaction]
    unreadable: Mapping[str, Unreadable]
    balance: Mapping[str, int]
    counted: Mapping[str, int]


def money_seen(gateway: StripeGateway) -> MoneySeen:
    """An account's money as it is now.

    The balance is asked for between two readings of the list: it may count some of what the second one has more.
    """
    listed = [each for page in returns.balance_transactions(gateway, None) for each in page]
    unreadable = {each.transaction_id: each for each in listed if isinstance(each, Unreadable)}
    moved = {each.transaction_id: each for each in listed if not isinstance(each, Unreadable)}
    balance = returns.balance(gateway)
    newest = max((each.created_at for each in moved.values()), default=None)
    since = [each for page in returns.balance_transactions(gateway, newest) for each in page]
    more = [
        each for each in reversed(since) if not isinstance(each, Unreadable) and each.transaction_id not in moved
    ]  # fmt: skip
    counted: dict[str, int] = defaultdict(int)
    for each in moved.values():
        counted[each.currency] += each.net if each.balance == PAYMENTS else 0
    for code, amount in balance.items():
        since_then = (each.net for each in more if each.currency == code and each.balance == PAYMENTS)
        sums = list(accumulate(since_then, initial=counted[code]))
        counted[code] = amount if amount in sums else sums[0]
    return MoneySeen(moved | {each.transaction_id: each for each in more}, unreadable, balance, counted)


def balances(connection: Connection, seen: Mapping[str, MoneySeen], today: date) -> Check:
    """By account and currency what Stripe says its balance is, and what 1010 is of the books that follow it.

    What is not taken in yet, or was after Stripe was asked, is no difference of this one. What Stripe holds in reserve
    is in 1010 as well: of that as much as its balance transactions say.
    """
    follow = returns_store.all_followed(connection)
    kept = returns_store.nets(connection)
    theirs: dict[str, Value] = {}
    ours: dict[str, Value] = {}
    for home, account in seen.items():
        entities = {home, *(each.legal_entity for each in follow if each.shares_with == home)}
        books: dict[str, Decimal] = defaultdict(lambda: ZERO)
        for entity in entities:
            for row in balance_store.account_balances(connection, legal_entity=entity, code=CLEARING):
                with exactly():
                    books[row.currency] += row.amount
        for code in (
            {code for of, code in kept if of == home} | account.counted.keys() | account.balance.keys() | {*books}
        ):
            said = account.balance.get(code, 0) - account.counted.get(code, 0) + kept.get((home, code), 0)
            theirs[f"{home}/{code}"] = Decimal(plain(major(said, currency(code, today)))) if said else ZERO
            ours[f"{home}/{code}"] = Decimal(plain(books[code]))
    return compare("Stripe's balance is booked", "Stripe's balance", "ledger 1010", theirs, ours)


def disputes(engine: Engine | Connection, gateway: Stripe) -> Check:
    """By dispute what is withdrawn for it in Stripe and not lost, and what 1180 has of it; what is not taken in yet, or
    whose payer nobody knows (1090), is no difference of this one."""
    listed = [each for account in gateway.each for each in returns.disputes(account)]
    theirs: dict[str, Value] = {}
    with transaction(engine) as connection:
        in_1180 = returns_store.disputed(connection)
        for dispute_id, status, moved in listed:
            known = returns_store.booked(connection, [each.transaction_id for each in moved])
            booked = [each for each in moved if each.transaction_id in known]
            suspended = any(p.account is AccountCode.SUSPENSE for p in returns_store.withdrawn(connection, dispute_id))
            if status != "lost" and not suspended:
                theirs |= {f"{dispute_id}/{code}": amount for code, amount in _withdrawn(booked).items() if amount}
    ours: dict[str, Value] = {f"{name}/{code}": Decimal(plain(amount)) for (name, code), amount in in_1180.items()}
    check = compare("disputes in Stripe are in 1180", "Stripe's disputes", "ledger 1180", theirs, ours)
    return Check(check.name, check.left, check.right, max(check.compared, 1 + len(listed)), check.differences)


def _withdrawn(moved: Iterable[BalanceTransaction]) -> dict[str, Decimal]:
    """What balance transactions of a dispute took from us, by the payer's currency, in major units."""
    found: dict[str, Decimal] = defaultdict(lambda: ZERO)
    for each in moved:
        amount, code = each.paid or (each.amount, each.currency)
        with exactly():
            found[code] -= major(amount, currency(code, each.created_at.date()))
    return {code: Decimal(plain(amount)) for code, amount in found.items()}


def money(connection: Connection, month: BillingPeriod, gateway: Stripe, seen: Mapping[str, MoneySeen]) -> Check:
    """Each balance transaction is booked once, and kept as it is: of those that were made by the month's end, or before
    what `stripe sync` has read Stripe's money to, in all accounts. What is younger waits for it (docs/spec/money.md
    10)."""
    cursors = [returns_store.read_to(connection, returns_store.MONEY, each.legal_entity) for each in gateway.each]
    read_to = max(month.end, min((each or month.end for each in cursors), default=month.end))
    booked: dict[str, Value] = dict(returns_store.booked_nets(connection))
    kept = connection.execute(select(_KEPT.transaction_id, _KEPT.amount, _KEPT.fee, _KEPT.net)).all()
    moved = {name: each for account in seen.values() for name, each in account.moved.items()}
    younger = {f"stripe:{name}" for name, each in moved.items() if name not in booked and each.created_at >= read_to}
    younger -= ledger_store.booked(connection, younger)
    there = {name: each for name, each in moved.items() if f"stripe:{name}" not in younger}
    # Booked since the listing: each is asked for by its id
    for name in sorted(booked.keys() - there.keys())[:ASKED_BY_ID]:
        for account in gateway.each:
            with suppress(StripeRefused):
                there[name] = returns.balance_transaction(account, name)
    listed: dict[str, Value] = {name: each.net for name, each in there.items()}
    listed |= {name: each.because for account in seen.values() for name, each in account.unreadable.items()}
    for name, *amounts in kept:
        if name in there:
            each = there[name]
            listed[f"{name}/kept"] = f"{each.amount} - {each.fee} = {each.net}"
            booked[f"{name}/kept"] = "{} - {} = {}".format(*amounts)
    return _of_books(connection, stripe_agreement.money_in_stripe(listed, booked), seen)


def _of_books(connection: Connection, check: Check, seen: Mapping[str, MoneySeen]) -> Check:
    """Differences begin with the legal entity in whose books the money is, or whose account alone it moved in; what is
    in no books yet of an account that several share is nobody's."""
    names = {each.key: each.key.partition("/")[0] for each in check.differences}
    booked = ledger_store.entities(connection, {f"stripe:{name}" for name in names.values()})
    shared = {each.shares_with for each in returns_store.all_followed(connection)}
    own = {
        name: home
        for home, account in seen.items()
        if home not in shared
        for name in (*account.moved, *account.unreadable)
    }
    of = {key: booked.get(f"stripe:{name}") or own.get(name) for key, name in names.items()}
    found = [replace(each, key="/".join(filter(None, (of[each.key], each.key)))) for each in check.differences]
    return replace(check, differences=tuple(found))


def customers(engine: Engine | Connection, gateway: Stripe) -> Check:
    """Our customers stand in Stripe as we can explain: what was overpaid, and does not leave their balance yet; who
    they are, as Stripe was told."""
    found = [customer for each in gateway.each for customer in each.customers(None)]
    pending = [item for each in gateway.each for item in each.pages("/v1/invoiceitems", pending=True)]
    with transaction(engine) as connection:
        ours, billed = customer_store.current(connection), customer_store.being_billed(connection)
        told = {name: each.data for name, each in stripe_request_store.customers_told(connection).items()}
        open_ = correction_store.listed(connection, state=CorrectionState.OPEN, kind=CorrectionKind.OVERPAYMENT)
        of = {
            s.invoice.invoice_id: s for s in invoice_store.listed(connection, invoice_ids={c.invoice_id for c in open_})
        }
    explained: dict[str, int] = defaultdict(int)
    for each in open_:
        if each.note_id is None:
            explained[of[each.invoice_id].stripe_customer_id or ""] -= each.content["amount"]
    return stripe_agreement.customers_in_stripe(ours, explained, told, billed, found, pending)
