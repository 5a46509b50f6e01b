"""The register of usage that came later than its contract bills: list it, and approve that it stays unbilled."""

from __future__ import annotations

from sqlalchemy import Engine

from billing.database import raw, transaction
from billing.errors import ProposalRefused
from billing.periods import BillingPeriod
from billing.usage import unbillable_store
from billing.usage.unbillable_store import UnbillableEvent
from streams import audit


def unbillable_usage(engine: Engine, period: BillingPeriod) -> dict[str, list[UnbillableEvent]]:
    """What of a period is too old to bill, by tenant in order of completion."""
    with transaction(engine) as connection:
        return unbillable_store.of_period(connection, period)


def approve_unbillable(engine: Engine, period: BillingPeriod, *, reason: str, actor: str, dry_run: bool = False) -> int:
    """Approve that all of it that nobody has approved stays unbilled; how many events that were. Safe to repeat.

    Raises ProposalRefused without a reason.
    """
    if not reason.strip():
        raise ProposalRefused("say why it stays unbilled: --reason")
    with transaction(engine, dry_run=dry_run) as connection:
        found = unbillable_store.of_period(connection, period)
        waiting = [each.unbillable_no for listed in found.values() for each in listed if each.approved_by is None]
        count = unbillable_store.approve(connection, waiting, reason, actor)
        if count:
            audit.record(raw(connection), actor, "unbillable.approve", period.name, {"events": count, "reason": reason})
        return count
