"""Booking what exchange rates did to a month's balances: Dr 5300 / Cr 1190 a loss, the other way round a gain."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, func, select, text

from billing.ledger import balance_store, ledger_store, remeasuring
from billing.ledger.balance_store import AsOf
from billing.ledger.exchange_rates import ExchangeRates
from billing.ledger.journal import AccountCode, JournalEntry, Posting
from billing.ledger.remeasuring import MONETARY, Moved
from billing.money import ZERO, exactly, total
from billing.periods import INSTANT, BillingPeriod
from billing.plans import account_store
from billing.posting import exchange_rate_store
from billing.posting.booking import booking

REMEASUREMENT: Final = "remeasurement"

# Sums by currency while one rate holds: part 0 is before the first of the bounds.
_MOVED: Final = text(
    """
    select width_bucket(e.effective_at, cast(:bounds as timestamptz[])) as part, a.currency,
        coalesce(sum(p.amount) filter (where a.code <> :clearing), 0) as monetary,
        coalesce(sum(p.amount) filter (where a.code = :clearing), 0) as cleared
    from ledger.journal_entries e join ledger.postings p using (entry_id) join ledger.accounts a using (account_id)
    where e.legal_entity = :entity and e.effective_at >= :since and e.effective_at < :until and e.kind <> :own
      and (a.code = :clearing or (a.code = any(cast(:codes as smallint[])) and a.currency <> :functional))
    group by 1, 2 order by 1, 2
    """
)
_BOOKED: Final = text(
    """
    select count(distinct e.entry_id), coalesce(sum(p.amount), 0)
    from ledger.journal_entries e join ledger.postings p using (entry_id) join ledger.accounts a using (account_id)
    where e.legal_entity = :entity and e.kind = :own and e.source ->> 'period' = :month and a.code = :code
    """
)


def remeasure(connection: Connection, legal_entity: str, month: BillingPeriod, now: datetime) -> Decimal:
    """Book what is not booked yet of a month's loss (negative: gain) on balances in other currencies; returns that.

    Doing it again books nothing. A book of one currency needs no rate. Raises RateMissing.
    """
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{REMEASUREMENT}/{legal_entity}", 0))))
    functional = account_store.functional_currency(connection, legal_entity)
    rates = ExchangeRates(exchange_rate_store.recorded(connection))
    moved = _moved(connection, legal_entity, month, functional, rates)
    opening = _opening(connection, legal_entity, month, functional)
    wanted = remeasuring.loss(
        opening,
        moved,
        rate_before=lambda code: rates.at(code, functional, month.start - INSTANT),
        rate_after=lambda code: rates.at(code, functional, month.end - INSTANT),
    )
    count, booked = connection.execute(
        _BOOKED,
        {
            "entity": legal_entity, "own": REMEASUREMENT, "month": month.name, "code": AccountCode.FX_GAIN_LOSS.code,
        },
    ).one()  # fmt: skip
    with exactly():
        missing: Decimal = wanted - booked
    if missing:
        key = f"{REMEASUREMENT}:{legal_entity}:{month.name}:{count + 1}"
        where = booking(connection, key, legal_entity=legal_entity, at=month.end - INSTANT, now=now)
        ledger_store.post(
            connection,
            [
                JournalEntry(
                    idempotency_key=key,
                    kind=REMEASUREMENT,
                    legal_entity=legal_entity,
                    accounting_period=where.accounting_period,
                    effective_at=where.effective_at,
                    postings=(
                        Posting(AccountCode.FX_GAIN_LOSS, functional, missing),
                        Posting(AccountCode.FX_CLEARING, functional, -missing),
                    ),
                    original_period=where.original_period,
                    source={"period": month.name},
                )
            ],
        )
    return missing


def _moved(
    connection: Connection, legal_entity: str, month: BillingPeriod, functional: str, rates: ExchangeRates
) -> list[Moved]:
    bounds = rates.changes_in(month.start, month.end)
    rows = connection.execute(
        _MOVED,
        {
            "entity": legal_entity, "since": month.start, "until": month.end, "own": REMEASUREMENT, "bounds": bounds,
            "clearing": AccountCode.FX_CLEARING.code, "codes": [each.code for each in MONETARY],
            "functional": functional,
        },
    )  # fmt: skip
    starts = [month.start, *bounds]
    return [
        Moved(code, rates.at(code, functional, starts[part]), monetary, cleared)
        for part, code, monetary, cleared in rows
        if monetary or cleared
    ]


def _opening(connection: Connection, legal_entity: str, month: BillingPeriod, functional: str) -> dict[str, Decimal]:
    found = balance_store.account_balances(connection, legal_entity=legal_entity, as_of=AsOf(month.start))
    held = [each for each in found if each.account in MONETARY and each.currency != functional]
    return {
        code: amount
        for code in sorted({each.currency for each in held})
        if (amount := total(each.amount for each in held if each.currency == code)) != ZERO
    }
