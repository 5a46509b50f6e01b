"""Say what a unit of one currency is worth in another, from when on."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, Engine, func, select

from billing import tables
from billing.database import raw, transaction
from billing.errors import RateRefused
from billing.ledger.exchange_rates import ExchangeRate
from billing.money import currency, plain
from billing.periods import parse_period, written
from billing.posting import exchange_rate_store
from streams import audit


def set_exchange_rate(engine: Engine, rate: ExchangeRate, *, actor: str, dry_run: bool = False) -> bool:
    """Record a rate from a moment on; False if it is what is recorded already. Raises RateRefused, UnknownCurrency.

    Months whose book some legal entity has closed keep theirs; the first rate of a pair may hold from any time on.
    """
    for code in (rate.base, rate.quote):
        currency(code, rate.valid_from.date())
    if rate.base == rate.quote:
        raise RateRefused(f"{rate.base} in {rate.quote}: a rate is of two currencies")
    if rate.rate <= 0:
        raise RateRefused(f"a rate of {plain(rate.rate)}: it is more than nothing")
    if not rate.document.strip():
        raise RateRefused("name the document that the rate is from")
    with transaction(engine, dry_run=dry_run) as connection:
        exchange_rate_store.lock(connection)
        known = exchange_rate_store.recorded(connection)
        if any((each.base, each.quote) == (rate.quote, rate.base) for each in known):
            raise RateRefused(f"rates of this pair are kept as {rate.quote} in {rate.base}: say it that way round")
        same = [each for each in known if _moment(each) == _moment(rate)]
        if same and (same[-1].rate, same[-1].document) == (rate.rate, rate.document):
            return False
        if any((each.base, each.quote) == (rate.base, rate.quote) for each in known):
            _refuse_closed(connection, rate.valid_from)
        exchange_rate_store.add(connection, rate, actor)
        detail = {"rate": plain(rate.rate), "from": written(rate.valid_from), "document": rate.document}
        audit.record(raw(connection), actor, "exchange.set", f"{rate.base}/{rate.quote}", detail)
    return True


def exchange_rates(engine: Engine, *, as_of: datetime | None = None) -> list[ExchangeRate]:
    """Everything that was recorded, or was by a moment."""
    with transaction(engine) as connection:
        return exchange_rate_store.recorded(connection, as_of=as_of)


def _moment(rate: ExchangeRate) -> tuple[str, str, datetime]:
    return rate.base, rate.quote, rate.valid_from


def _refuse_closed(connection: Connection, valid_from: datetime) -> None:
    table = tables.accounting_periods
    last = connection.execute(select(func.max(table.c.month)).where(table.c.state == "closed")).scalar()
    if last is not None and valid_from < (end := parse_period(last).end):
        raise RateRefused(f"the book of {last} is closed: rates can be set from {written(end)} on")
