"""Say how much of what is paid in advance a legal entity expects never to be used, from when on."""

from __future__ import annotations

from sqlalchemy import Connection, Engine, func, select

from billing import tables
from billing.bills.breakage import BreakageEstimate
from billing.database import raw, retrying, transaction
from billing.errors import CreditRefused
from billing.money import plain
from billing.periods import parse_period, written
from billing.plans import account_store
from billing.posting import breakage_store
from streams import audit


@retrying
def set_breakage(engine: Engine, estimate: BreakageEstimate, *, actor: str, dry_run: bool = False) -> bool:
    """Record an estimate from a moment on; False if that is recorded already. Raises CreditRefused.

    Months whose book the legal entity has closed keep theirs.
    """
    share, entity = estimate.share, estimate.legal_entity
    if share is not None and not 0 < share < 1:
        raise CreditRefused(f"{plain(share)} is no share: write 0.10 for ten per cent")
    if not estimate.document.strip():
        raise CreditRefused("name the document that the estimate is from")
    with transaction(engine, dry_run=dry_run) as connection:
        if entity not in account_store.legal_entities(connection):
            raise CreditRefused(f"there is no legal entity {entity}: `tollbook account list` has them")
        breakage_store.lock(connection)
        _refuse_closed(connection, estimate)
        same = [
            each
            for each in breakage_store.recorded(connection)
            if (each.legal_entity, each.valid_from) == (entity, estimate.valid_from)
        ]
        if same and (same[-1].share, same[-1].document) == (share, estimate.document):
            return False
        breakage_store.add(connection, estimate, actor)
        detail = {
            "share": None if share is None else plain(share),
            "from": written(estimate.valid_from),
            "document": estimate.document,
        }
        audit.record(raw(connection), actor, "credit.breakage.set", entity, detail)
    return True


def breakage_estimates(engine: Engine) -> list[BreakageEstimate]:
    """Everything that was recorded, in that order."""
    with transaction(engine) as connection:
        return breakage_store.recorded(connection)


def _refuse_closed(connection: Connection, estimate: BreakageEstimate) -> None:
    table = tables.accounting_periods
    closed = (table.c.state == "closed", table.c.legal_entity == estimate.legal_entity)
    last = connection.execute(select(func.max(table.c.month)).where(*closed)).scalar()
    if last is not None and estimate.valid_from < (end := parse_period(last).end):
        raise CreditRefused(f"the book of {last} is closed: estimates can be set from {written(end)} on")
