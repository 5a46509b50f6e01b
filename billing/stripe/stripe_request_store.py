"""Requests to Stripe in the database: frozen before they are first sent, with the reply once there is one."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from sqlalchemy import UUID, Connection, any_, cast, func, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert

from billing import tables
from billing.invoicing import correction_store
from billing.invoicing.correcting import CorrectionState, correction_of
from billing.invoicing.sending import Operation, Request

LONGEST_REQUEST: Final = timedelta(minutes=2)
"""Four times the gateway's timeout: after it, no request that was sent can still be under way."""
KEY_LIVES: Final = timedelta(hours=23)
"""Stripe may forget a key after 24 h and do it again: an older one is never resent (docs/spec/money.md 10)."""
LAST_SENT: Final = timedelta(minutes=10)
"""So long before that it is sent for the last time: what is looked up then must not be under way (all tries of one run
take about three minutes)."""


@dataclass(frozen=True, slots=True)
class FrozenRequest:
    """A request as it is sent, however often.

    `reply_id` is what Stripe made or changed, once that is known. `settled`: it was frozen so long ago that it
    cannot be under way any more; `fading`: so long ago that it is not sent again; `expired`: so long ago that what
    became of it can be looked up.
    """

    request: Request
    reply_id: str | None
    settled: bool
    expired: bool
    fading: bool = False


def freeze(
    connection: Connection, request: Request, *, billing_account: str, invoice_id: uuid.UUID | None
) -> FrozenRequest | None:
    """Fix a request under its key; None if something is frozen under it already.

    Age is measured by the database's clock, as Stripe measures it by its own: `now` of a test run plays no part.
    """
    table = tables.stripe_requests
    made = connection.execute(
        insert(table)
        .values(
            idempotency_key=request.idempotency_key,
            billing_account=billing_account,
            invoice_id=invoice_id,
            step=request.operation.value,
            chunk=request.chunk,
            epoch=request.epoch,
            target=request.target,
            parameters=request.parameters,
        )
        .on_conflict_do_nothing()
        .returning(table.c.idempotency_key)
    ).first()
    return None if made is None else FrozenRequest(request, reply_id=None, settled=False, expired=False)


def newest(connection: Connection, keys: Collection[str]) -> FrozenRequest:
    """Of requests with these keys, one of which is frozen, the one of the highest epoch."""
    table = tables.stripe_requests
    age = func.clock_timestamp() - table.c.frozen_at
    row = connection.execute(
        select(
            table,
            (age > LONGEST_REQUEST).label("settled"),
            (age > KEY_LIVES).label("expired"),
            (age > KEY_LIVES - LAST_SENT).label("fading"),
        )
        .where(table.c.idempotency_key.in_(keys))
        .order_by(table.c.epoch.desc())
        .limit(1)
    ).one()
    request = Request(row.idempotency_key, Operation(row.step), row.chunk, row.epoch, row.target, row.parameters)
    return FrozenRequest(request, row.reply_id, row.settled, row.expired, row.fading)


def unanswered(connection: Connection, invoice_ids: Collection[uuid.UUID]) -> list[tuple[str, str]]:
    """Requests for invoices of which nobody knows whether Stripe did them: key and step, in order.

    Not one whose change was asked for again under the key's next epoch, nor one of a correction that is over.
    """
    table, later = tables.stripe_requests, tables.stripe_requests.alias()
    of, of_later = (func.regexp_replace(each.c.idempotency_key, ":e[0-9]+$", "") for each in (table, later))
    asked_again = select(later.c.epoch).where(
        later.c.invoice_id == table.c.invoice_id, of_later == of, later.c.epoch > table.c.epoch
    )
    query = (
        select(table.c.idempotency_key, table.c.step)
        .where(
            table.c.replied_at.is_(None),
            table.c.invoice_id == any_(cast(list(invoice_ids), ARRAY(UUID))),
            ~asked_again.exists(),
        )
        .order_by(table.c.idempotency_key)
    )
    corrections = correction_store.listed(connection, state=CorrectionState.OPEN, invoice_ids=invoice_ids)
    open_ = {None, *(each.correction_no for each in corrections)}
    return [(row[0], row[1]) for row in connection.execute(query) if correction_of(row[0]) in open_]


def record_reply(connection: Connection, idempotency_key: str, reply_id: str) -> None:
    """Keep what Stripe answered."""
    table = tables.stripe_requests
    connection.execute(
        update(table)
        .where(table.c.idempotency_key == idempotency_key, table.c.reply_id.is_(None))
        .values(reply_id=reply_id, replied_at=func.clock_timestamp())
    )


def customer_of(connection: Connection, billing_account: str) -> str | None:
    """The Stripe customer of a billing account, if it has one."""
    table = tables.stripe_customers
    return connection.execute(
        select(table.c.stripe_customer_id).where(table.c.billing_account == billing_account)
    ).scalar()


def customers(connection: Connection) -> set[str]:
    """The Stripe customers of all billing accounts."""
    return set(connection.execute(select(tables.stripe_customers.c.stripe_customer_id)).scalars())


def set_customer(connection: Connection, billing_account: str, stripe_customer_id: str) -> None:
    """Keep the Stripe customer of a billing account, once."""
    connection.execute(
        insert(tables.stripe_customers)
        .values(billing_account=billing_account, stripe_customer_id=stripe_customer_id)
        .on_conflict_do_nothing()
    )
