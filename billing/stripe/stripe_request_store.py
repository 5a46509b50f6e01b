"""Requests to Stripe in the database: frozen before they are first sent, with the reply once there is one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import UUID, Connection, String, any_, cast, func, select, update
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


class Answer(StrEnum):
    """What Stripe answered last, and may repeat as long as it knows the key: a no, or that it failed."""

    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class FrozenRequest:
    """A request as it is sent, however often.

    `reply_id` is what Stripe made or changed, once that is known; `answer` what it said instead. `quiet`: it went out
    so long ago, the last time, that it cannot be under way any more. `fading`: it was frozen so long ago that it is not
    sent again; `expired`: so long ago that Stripe may have forgotten its key. `fresh`: nobody has sent it yet.
    `silent`: since when it went out, the last time, or was answered.
    """

    request: Request
    reply_id: str | None = None
    answer: Answer | None = None
    quiet: bool = False
    expired: bool = False
    fading: bool = False
    fresh: bool = False
    silent: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True)
class CustomerTold:
    """What Stripe was told of a customer, as parameters, and how often it was told of changes."""

    data: Mapping[str, Any]
    times: int


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
    return None if made is None else FrozenRequest(request, fresh=True)


def newest(connection: Connection, keys: Collection[str]) -> FrozenRequest | None:
    """Of the frozen requests with these keys, the one of the highest epoch."""
    table = tables.stripe_requests
    age = func.clock_timestamp() - table.c.frozen_at
    silent = func.clock_timestamp() - func.coalesce(table.c.sent_at, table.c.frozen_at)
    row = connection.execute(
        select(
            table,
            silent.label("silent"),
            (silent > LONGEST_REQUEST).label("quiet"),
            (age > KEY_LIVES).label("expired"),
            (age > KEY_LIVES - LAST_SENT).label("fading"),
        )
        .where(table.c.idempotency_key == any_(cast(list(keys), ARRAY(String))))
        .order_by(table.c.epoch.desc())
        .limit(1)
    ).first()
    if row is None:
        return None
    request = Request(row.idempotency_key, Operation(row.step), row.chunk, row.epoch, row.target, row.parameters)
    answer = None if row.answer is None else Answer(row.answer)
    return FrozenRequest(request, row.reply_id, answer, row.quiet, row.expired, row.fading, silent=row.silent)


def sent_again(connection: Connection, idempotency_key: str) -> None:
    """A request goes out that may have gone out before: from now on it may be under way, and nothing is known of it."""
    table = tables.stripe_requests
    connection.execute(
        update(table)
        .where(table.c.idempotency_key == idempotency_key, table.c.reply_id.is_(None))
        .values(sent_at=func.clock_timestamp(), answer=None)
    )


def keep_answer(connection: Connection, idempotency_key: str, answer: Answer) -> None:
    """Keep that Stripe did not do what was asked. It was sent until now, as far as is known."""
    table = tables.stripe_requests
    connection.execute(
        update(table)
        .where(table.c.idempotency_key == idempotency_key, table.c.reply_id.is_(None))
        .values(sent_at=func.clock_timestamp(), answer=answer.value)
    )


def first_frozen(connection: Connection, billing_account: str, operation: Operation) -> datetime | None:
    """When a change was asked for first for a billing account."""
    table = tables.stripe_requests
    query = select(func.min(table.c.frozen_at)).where(
        table.c.billing_account == billing_account, table.c.step == operation.value
    )
    return connection.execute(query).scalar()


def customers_told(connection: Connection, billing_account: str | None = None) -> dict[str, CustomerTold]:
    """By customer what Stripe was told, of all or of an account's; not of one that somebody made there."""
    table = tables.stripe_requests
    steps = (Operation.CREATE_CUSTOMER.value, Operation.UPDATE_CUSTOMER.value)
    query = select(table.c.step, table.c.reply_id, table.c.parameters).where(
        table.c.step.in_(steps), table.c.reply_id.is_not(None)
    )
    if billing_account is not None:
        query = query.where(table.c.billing_account == billing_account)
    found: dict[str, CustomerTold] = {}
    for step, customer, parameters in connection.execute(query.order_by(table.c.replied_at)):
        before = found.get(customer, CustomerTold({}, 0))
        is_change = step == Operation.UPDATE_CUSTOMER.value
        found[customer] = CustomerTold({**before.data, **json.loads(parameters)}, before.times + is_change)
    return found


def under_way(connection: Connection, invoice_id: uuid.UUID) -> bool:
    """Whether a request for an invoice may still be under way: it went out a moment ago, and has no answer."""
    table = tables.stripe_requests
    silent = func.clock_timestamp() - func.coalesce(table.c.sent_at, table.c.frozen_at)
    query = select(func.count()).where(
        table.c.invoice_id == invoice_id, table.c.replied_at.is_(None), silent <= LONGEST_REQUEST,
        table.c.answer.is_distinct_from(Answer.REFUSED.value),
    )  # fmt: skip
    return connection.execute(query).scalar_one() > 0


def unanswered(connection: Connection, invoice_ids: Collection[uuid.UUID]) -> list[tuple[str, str]]:
    """Requests for invoices of which nobody knows whether Stripe did them: key and step, in order.

    Not one that it refused, nor one whose change was asked for again under the key's next epoch, nor one of a
    correction that is over.
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
            table.c.answer.is_distinct_from(Answer.REFUSED.value),
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
