"""What is booked of Stripe's money, and how our customers stand there: both sides read, and compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from sqlalchemy import Connection, Engine, select

from billing import tables
from billing.database import transaction
from billing.errors import StripeRefused
from billing.invoicing import correction_store, invoice_store
from billing.invoicing.correcting import CorrectionKind, CorrectionState
from billing.ledger import ledger_store
from billing.periods import BillingPeriod
from billing.posting.stripe_money import BalanceTransaction
from billing.stripe import customer_store, returns, returns_store
from billing.stripe.stripe_accounts import Stripe
from reconciliation import stripe_agreement
from reconciliation.agreement import Check
from reconciliation.comparison import Value

ASKED_BY_ID: Final = 100
"""More than are booked while a list is read; each is a request to Stripe."""
_KEPT: Final = tables.stripe_balance_transactions.c


def money(
    connection: Connection,
    month: BillingPeriod,
    gateway: Stripe,
    moved: Mapping[str, BalanceTransaction],
) -> Check:
    """Each balance transaction is booked once, and kept as it is: of those that were made by the month's end, or before
    what `stripe sync` has read Stripe's money to, in all accounts. What is younger waits for it (docs/spec/money.md
    10)."""
    cursors = [returns_store.read_to(connection, returns_store.MONEY, each.legal_entity) for each in gateway.each]
    read_to = max(month.end, min((each or month.end for each in cursors), default=month.end))
    booked: dict[str, Value] = dict(returns_store.booked_nets(connection))
    kept = connection.execute(select(_KEPT.transaction_id, _KEPT.amount, _KEPT.fee, _KEPT.net)).all()
    younger = {f"stripe:{name}" for name, each in moved.items() if name not in booked and each.created_at >= read_to}
    younger -= ledger_store.booked(connection, younger)
    there = {name: each for name, each in moved.items() if f"stripe:{name}" not in younger}
    # Booked since the listing: each is asked for by its id
    for name in sorted(booked.keys() - there.keys())[:ASKED_BY_ID]:
        for account in gateway.each:
            with suppress(StripeRefused):
                there[name] = returns.balance_transaction(account, name)
    listed: dict[str, Value] = {name: each.net for name, each in there.items()}
    for name, *amounts in kept:
        if name in there:
            each = there[name]
            listed[f"{name}/kept"] = f"{each.amount} - {each.fee} = {each.net}"
            booked[f"{name}/kept"] = "{} - {} = {}".format(*amounts)
    return stripe_agreement.money_in_stripe(listed, booked)


def customers(engine: Engine | Connection, gateway: Stripe) -> Check:
    """Our customers stand in Stripe as we can explain: what was overpaid, and does not leave their balance yet."""
    found = [customer for each in gateway.each for customer in each.customers(None)]
    pending = [item for each in gateway.each for item in each.pages("/v1/invoiceitems", pending=True)]
    with transaction(engine) as connection:
        ours, billed = customer_store.current(connection), customer_store.being_billed(connection)
        open_ = correction_store.listed(connection, state=CorrectionState.OPEN, kind=CorrectionKind.OVERPAYMENT)
        of = {
            s.invoice.invoice_id: s for s in invoice_store.listed(connection, invoice_ids={c.invoice_id for c in open_})
        }
    explained: dict[str, int] = defaultdict(int)
    for each in open_:
        if each.note_id is None:
            explained[of[each.invoice_id].stripe_customer_id or ""] -= each.content["amount"]
    return stripe_agreement.customers_in_stripe(ours, explained, billed, found, pending)
