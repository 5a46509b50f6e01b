"""Booking what of paid credits is expected never to be used, month by month (docs/decisions/0034)."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection

from billing.bills.breakage import expected_breakage, share_at
from billing.bills.credits import GrantKind
from billing.invoicing import credit_store
from billing.ledger import ledger_store
from billing.ledger.journal import AccountCode, JournalEntry
from billing.money import ZERO, exactly
from billing.periods import INSTANT, BillingPeriod
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
        share = share_at(estimates, entity, month.end - INSTANT)
        expected = ZERO
        if share is not None and state.is_liability:
            expected = expected_breakage(drawn=state.drawn, left=state.remaining, share=share)
        with exactly():
            more = expected - held.get((AccountCode.EXPECTED_BREAKAGE.code, grant.grant_id, grant.currency), ZERO)
        if more:
            key = f"breakage:{grant.grant_id}:{month.name}:{booked[grant.grant_id, month.name]}"
            where = booking(connection, key, legal_entity=entity, at=month.end - INSTANT, now=now)
            entries.append(breakage_expected(grant, more, month.name, booking=where))
    return len(ledger_store.post(connection, entries))
