"""Booking what of paid credits is expected never to be used, month by month (docs/decisions/0034)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection

from billing.bills.breakage import BreakageEstimate, expected_breakage, share_at
from billing.bills.credits import GrantKind
from billing.invoicing import credit_store
from billing.invoicing.credit_store import CreditState
from billing.ledger import ledger_store
from billing.ledger.journal import AccountCode, JournalEntry
from billing.money import ZERO, exactly
from billing.periods import INSTANT, BillingPeriod, parse_period
from billing.plans import account_store
from billing.posting import breakage_store
from billing.posting.booking import booking
from billing.posting.posting_rules import breakage_expected


def recognise_breakage(
    connection: Connection, month: BillingPeriod, *, now: datetime, legal_entity: str | None = None
) -> int:
    """Bring account 2105 to what is expected by the end of a month; how many entries that made.

    By the estimate in force then and what was drawn by then; what is expired, refunded or voided is expected no more.
    A credit of which a later month is booked is left as it is. Doing it again books nothing.
    """
    estimates = breakage_store.recorded(connection)
    if not estimates:
        return 0
    breakage_store.lock(connection)
    known = {each.legal_entity for each in estimates if legal_entity in (None, each.legal_entity)}
    accounts = {n: a.legal_entity for n, a in account_store.accounts(connection).items() if a.legal_entity in known}
    booked = breakage_store.booked(connection)
    held = ledger_store.balances(connection, [AccountCode.EXPECTED_BREAKAGE.code])
    entries: list[JournalEntry] = []
    for state in credit_store.states(connection, accounts=accounts.keys(), as_of=month.end):
        grant = state.grant
        if grant.kind is not GrantKind.PAID or any(g == grant.grant_id and m > month.name for g, m in booked):
            continue
        entity = accounts[state.given.billing_account]
        with exactly():
            more = _expected(state, estimates, entity, month) - held.get(
                (AccountCode.EXPECTED_BREAKAGE.code, grant.grant_id, grant.currency), ZERO
            )
        if more:
            key = f"breakage:{grant.grant_id}:{month.name}:{booked[grant.grant_id, month.name]}"
            where = booking(connection, key, legal_entity=entity, at=month.end - INSTANT, now=now)
            entries.append(breakage_expected(grant, more, month.name, booking=where))
    return len(ledger_store.post(connection, entries))


def expected_as_booked(connection: Connection) -> dict[tuple[str, str], Decimal | None]:
    """What account 2105 must hold of each credit by the month that was booked of it last: (credit, currency) → amount.

    None of a credit of which something of that time became known since: its next month takes it in.
    """
    last = breakage_store.last_booked(connection)
    if not last:
        return {}
    estimates = breakage_store.recorded(connection)
    moved = credit_store.moved_at(connection, last.keys())
    entities = {name: account.legal_entity for name, account in account_store.accounts(connection).items()}
    by_month: dict[str, list[str]] = defaultdict(list)
    for grant_id, (name, _) in last.items():
        by_month[name].append(grant_id)
    found: dict[tuple[str, str], Decimal | None] = {}
    for name, grant_ids in by_month.items():
        month = parse_period(name)
        for state in credit_store.states(connection, grant_ids=grant_ids, as_of=month.end):
            grant, entity = state.grant, entities[state.given.billing_account]
            _, booked_at = last[grant.grant_id]
            since = [(at, recorded_at) for at, recorded_at in moved.get(grant.grant_id, ())]
            since += [(e.valid_from, e.recorded_at) for e in estimates if e.legal_entity == entity and e.recorded_at]
            unsettled = any(at < month.end and recorded_at > booked_at for at, recorded_at in since)
            expected = None if unsettled else _expected(state, estimates, entity, month)
            found[grant.grant_id, grant.currency] = expected
    return found


def _expected(
    state: CreditState, estimates: Sequence[BreakageEstimate], legal_entity: str, month: BillingPeriod
) -> Decimal:
    """By the estimate in force when a month ends; `state` is as of then."""
    share = share_at(estimates, legal_entity, month.end - INSTANT)
    if share is None or not state.is_liability:
        return ZERO
    return expected_breakage(drawn=state.drawn, left=state.remaining, share=share)
