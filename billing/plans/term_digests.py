"""What a tenant's period is rated by, as a digest: its subscriptions as far as they hold in it, and their prices."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, text

from billing.periods import BillingPeriod

_DIGESTS = text(
    """
    with dated as (
        select plan, string_agg(version || ' ' || valid_from, ',' order by valid_from, plan_version_no) as versions
        from ledger.plan_versions where valid_from < :until group by plan
    )
    select s.tenant_id, md5(string_agg(
        (to_jsonb(s) - array['subscription_row', 'recorded_at', 'recorded_by', 'superseded_at', 'ends_at'])::text
        || least(s.ends_at, :until) || coalesce(dated.versions, ''), ',' order by s.starts_at))
    from ledger.subscriptions as s left join dated using (plan)
    where s.superseded_at is null and s.starts_at < :until and (s.ends_at is null or s.ends_at > :since)
        and (cast(:tenants as text[]) is null or s.tenant_id = any(cast(:tenants as text[])))
    group by s.tenant_id
    """
)


def term_digests(
    connection: Connection, period: BillingPeriod, tenants: Collection[str] | None = None
) -> dict[str, str]:
    """By tenant, as it is known now; all tenants unless some are named. Equal digests are equal terms."""
    given = {
        "since": period.start,
        "until": period.end,
        "tenants": None if tenants is None else list(tenants),
    }
    return {row[0]: row[1] for row in connection.execute(_DIGESTS, given)}
