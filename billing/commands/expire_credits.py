"""Expire what is left of credits whose time is over. What was paid for and not used is breakage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, Engine

from billing.bills.credits import GrantKind
from billing.commands.grant_credit import unreserved
from billing.database import raw, retrying, transaction
from billing.errors import CreditRefused
from billing.invoicing import credit_store
from billing.invoicing.credit_store import CreditState, Movement, MovementKind
from billing.ledger import ledger_store
from billing.money import plain
from billing.periods import rfc3339
from billing.plans import account_store
from billing.posting.booking import booking
from billing.posting.posting_rules import credit_expired
from streams import audit


@dataclass(frozen=True, slots=True)
class CreditExpired:
    """What was left of a credit when it expired, in major units."""

    grant_id: str
    billing_account: str
    currency: str
    amount: Decimal


@retrying
def expire_credits(
    engine: Engine, *, up_to: datetime, now: datetime, actor: str, dry_run: bool = False
) -> list[CreditExpired]:
    """Expire credits that expire by `up_to`: Dr 2100 / Cr 4100 for paid ones. Doing it again changes nothing.

    What an invoice that is frozen is about to draw stays. Usage of the time before that comes later still draws.
    Raises CreditRefused for a time to come: credits that expire until then still hold.
    """
    if up_to > now:
        raise CreditRefused(f"{rfc3339(up_to)} is yet to come: credits that expire by then still hold")
    found: list[CreditExpired] = []
    with transaction(engine, dry_run=dry_run) as connection:
        over = [
            state.grant.grant_id
            for state in credit_store.states(connection)
            if state.grant.expires is not None and state.grant.expires <= up_to and state.remaining > 0
        ]
        for grant_id in sorted(over):
            state = credit_store.one(connection, grant_id)
            amount = unreserved(connection, state)
            if amount > 0 and (state.is_liability or state.grant.kind is not GrantKind.PAID):
                _expire(connection, state, amount, now, actor)
                found.append(CreditExpired(grant_id, state.given.billing_account, state.grant.currency, amount))
    return found


def _expire(connection: Connection, state: CreditState, amount: Decimal, now: datetime, actor: str) -> None:
    grant, account = state.grant, state.given.billing_account
    assert grant.expires is not None, "only these expire"
    key = f"credit:{grant.grant_id}:expired:{state.expiries + 1}"
    entity = account_store.accounts(connection, [account])[account].legal_entity
    where = booking(connection, key, legal_entity=entity, at=grant.expires, now=now)
    entry_id = None
    if state.is_liability:
        entry_id = ledger_store.post(connection, [credit_expired(grant, amount, booking=where)])[key]
    movement = Movement(key, grant.grant_id, MovementKind.EXPIRED, -amount, where.effective_at, entry_id=entry_id)
    credit_store.move(connection, [movement], actor)
    audit.record(raw(connection), actor, "credit.expire", grant.grant_id, {"amount": plain(amount)})
