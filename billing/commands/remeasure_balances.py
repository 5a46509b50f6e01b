"""Remeasure what legal entities hold in other currencies at a month's end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Engine

from billing.database import retrying, transaction
from billing.errors import PeriodNotEnded, RateMissing
from billing.money import ZERO
from billing.periods import BillingPeriod
from billing.plans import account_store
from billing.posting.remeasurement import remeasure


@dataclass(frozen=True, slots=True)
class Remeasured:
    """What was booked for a legal entity now, in its functional currency (a gain is negative), or why nothing was."""

    legal_entity: str
    loss: Decimal
    problem: str | None = None


@retrying
def remeasure_balances(
    engine: Engine, month: BillingPeriod, *, now: datetime, dry_run: bool = False
) -> list[Remeasured]:
    """Book for each legal entity what rates did to its balances of a month. Doing it again books nothing.

    One without a rate is left out, by name. Raises PeriodNotEnded.
    """
    if now < month.end:
        raise PeriodNotEnded(f"{month.name} ends {month.end:%Y-%m-%d %H:%M} UTC: it is remeasured after that")
    found = []
    with transaction(engine) as connection:
        entities = sorted(account_store.legal_entities(connection))
    for entity in entities:
        try:
            with transaction(engine, dry_run=dry_run) as connection:
                found.append(Remeasured(entity, remeasure(connection, entity, month, now)))
        except RateMissing as error:
            found.append(Remeasured(entity, ZERO, f"the books of {entity} are not remeasured: {error}"))
    return found
