"""Which billed periods a close need not rate again: their usage can change no more, and their terms have not.

Usage: what completed before the identities that are forgotten is refused by whoever ingests it (docs/retention.md), and
an attempt or correction needs the identity of what it belongs to. What a replay brings in from behind the horizon
counts as a change of terms. Terms: the subscriptions that hold in the period, as
far as they do, and the price versions of until its end.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from typing import Final

from sqlalchemy import Connection, select, text
from sqlalchemy.dialects.postgresql import insert

from billing import tables
from billing.periods import BillingPeriod

MARGIN: Final = timedelta(days=1)
"""A request that is identified after a moment may have completed before it, by clocks that differ; not by a day."""

_TERMS: Final = text(
    """
    select since, until, md5(coalesce((
        select string_agg((to_jsonb(s) - array['subscription_row', 'recorded_at', 'recorded_by', 'superseded_at',
            'ends_at'])::text || least(s.ends_at, until), ',' order by s.subscription_id, s.starts_at)
        from ledger.subscriptions as s
        where s.superseded_at is null and s.starts_at < until and (s.ends_at is null or s.ends_at > since)
    ), '') || coalesce((
        select string_agg(plan || ' ' || version || ' ' || valid_from, ',' order by plan, valid_from, plan_version_no)
        from ledger.plan_versions where valid_from < until
    ), '') || coalesce((
        select ' replayed ' || count(*) from usage.replayed_identities
        where completed_at >= since and completed_at < until having count(*) > 0
    ), ''))
    from unnest(cast(:starts as timestamptz[]), cast(:ends as timestamptz[])) as p (since, until)
    """
)


def unsettled(connection: Connection, periods: Collection[BillingPeriod]) -> dict[BillingPeriod, str]:
    """Those of some periods that have to be rated again, in order, with a digest of their terms as they are now."""
    given = {"starts": [period.start for period in periods], "ends": [period.end for period in periods]}
    table = tables.settled_periods
    settled = {
        tuple(row) for row in connection.execute(select(table.c.period_start, table.c.period_end, table.c.terms))
    }
    found = [tuple(row) for row in connection.execute(_TERMS, given)]
    return {BillingPeriod(since, until): terms for since, until, terms in sorted(set(found) - settled)}


def settle(connection: Connection, period: BillingPeriod, terms: str) -> None:
    """Note that a period was rated, by these terms or later ones, if its usage can change no more.

    Terms that changed meanwhile differ from these, so that it is rated once more.
    """
    forgotten = connection.execute(text("select forgotten_before from usage.ingest_rules")).scalar()
    if forgotten is not None and period.end + MARGIN <= forgotten:
        row = {"period_start": period.start, "period_end": period.end, "terms": terms}
        connection.execute(insert(tables.settled_periods).values(row).on_conflict_do_nothing())
