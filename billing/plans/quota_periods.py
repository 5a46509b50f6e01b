"""When each tenant's billing periods begin, for quotas that are counted by them.

Billing writes the anchors into streams' table whenever a subscription begins or changes; the quota service reads them.
The prices that quotas in money are counted at come the same way (`estimates.py`).
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection

from billing.database import raw
from billing.plans.schedules import schedule_of
from billing.plans.subscriptions import Subscription
from streams.quotas import definition_store
from streams.quotas.calendar import Anchor
from streams.quotas.definition_store import DatedAnchor


def write_anchors(connection: Connection, subscriptions: Iterable[Subscription]) -> None:
    """Write when the periods of these subscriptions begin, from each one's start on, in the caller's transaction."""
    definition_store.set_anchors(
        raw(connection), [(each.tenant_id, DatedAnchor(_anchor(each), each.starts_at)) for each in subscriptions]
    )


def _anchor(subscription: Subscription) -> Anchor:
    schedule = schedule_of(subscription)
    return Anchor(schedule.anchor, schedule.months)
