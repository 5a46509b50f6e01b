"""Definitions, tiers and billing anchors in the database."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import dict_row

from streams import audit, tenants
from streams.quotas.amounts import DatedPrice, PriceList
from streams.quotas.calendar import CALENDAR_MONTHS, Anchor, microseconds
from streams.quotas.definitions import Quota, in_force, shown
from streams.quotas.errors import UnknownQuota
from streams.rules import estimates
from streams.rules.numbered_changes import write_in_order

_COLUMNS = (
    "coalesce(tenant_id, '') as tenant_id, coalesce(tier, '') as tier, model, adapter, period, metric,"
    " limit_units as limit, hard, thresholds, on_shrink, min_tokens, overshoot_allowance, on_unavailable, starts_at,"
    " ends, version"
)


class Marks(NamedTuple):
    """The newest of everything that definitions consist of: another one means that something was added."""

    version: int
    assignment_no: int
    anchor_no: int
    price_no: int


NOTHING = Marks(0, 0, 0, 0)


class Tier(NamedTuple):
    """A tenant's tier from a time on."""

    tier: str
    starts_at: datetime


class DatedAnchor(NamedTuple):
    """When a tenant's billing periods begin, from a time on."""

    anchor: Anchor
    starts_at: datetime


@dataclass(frozen=True, slots=True)
class Definitions:
    """All definitions, as of `marks`."""

    marks: Marks = NOTHING
    of_tenants: Mapping[str, list[Quota]] = field(default_factory=dict)
    of_tiers: Mapping[str, list[Quota]] = field(default_factory=dict)
    tiers: Mapping[str, list[Tier]] = field(default_factory=dict)
    anchors: Mapping[str, list[DatedAnchor]] = field(default_factory=dict)

    def tier_of(self, tenant_id: str, at: datetime, told: str = "") -> str:
        """A tenant's tier: as assigned, else as the caller told."""
        begun = [each.tier for each in self.tiers.get(tenant_id, ()) if each.starts_at <= at]
        return begun[-1] if begun else told

    def versions_of(self, tenant_id: str, tier: str) -> list[Quota]:
        """Every version of every quota that may hold for a tenant."""
        return [*self.of_tiers.get(tier, ()), *self.of_tenants.get(tenant_id, ())]

    def quotas_of(self, tenant_id: str, tier: str, at: datetime) -> list[Quota]:
        """The quotas that hold for a tenant."""
        return in_force(self.versions_of(tenant_id, tier), tenant_id, tier, at)

    def changes_after(self, tenant_id: str, tier: str, at: datetime) -> datetime | None:
        """When the next dated definition, tier or anchor of a tenant begins."""
        found = [quota.starts_at for quota in self.versions_of(tenant_id, tier)]
        found += [each.starts_at for each in self.tiers.get(tenant_id, ())]
        found += [each.starts_at for each in self.anchors.get(tenant_id, ())]
        return min((each for each in found if each > at), default=None)

    def began(self, tenant_id: str, told: str, quota_id: str, at: datetime, after: datetime) -> datetime | None:
        """When a quota that holds at a time began to, of whichever version; None if that was not `after` another."""
        found = [quota.starts_at for quota in self.versions_of(tenant_id, self.tier_of(tenant_id, at, told))]
        found += [each.starts_at for each in self.tiers.get(tenant_id, ())]
        for change in sorted({each for each in found if after < each <= at}, reverse=True):
            before = change - timedelta(microseconds=1)
            held = self.quotas_of(tenant_id, self.tier_of(tenant_id, before, told), before)
            if all(quota.quota_id != quota_id for quota in held):
                return change
        return None

    def anchor_of(self, tenant_id: str, at: datetime) -> Anchor:
        """When a tenant's billing periods begin."""
        begun = [each.anchor for each in self.anchors.get(tenant_id, ()) if each.starts_at <= at]
        return begun[-1] if begun else CALENDAR_MONTHS


def marks(connection: psycopg.Connection) -> Marks:
    """What is newest."""
    row = connection.execute(
        "select (select coalesce(max(version), 0) from usage.quotas),"
        " (select coalesce(max(assignment_no), 0) from usage.tenant_tiers),"
        " (select coalesce(max(anchor_no), 0) from usage.billing_anchors),"
        " (select coalesce(max(change_no), 0) from usage.estimate_price_changes)"
    ).fetchone()
    assert row is not None, "a select without from has a row"
    return Marks(*row)


def read(connection: psycopg.Connection) -> Definitions:
    """All definitions; in one snapshot if the caller's transaction has one."""
    at = marks(connection)
    of_tenants: dict[str, list[Quota]] = defaultdict(list)
    of_tiers: dict[str, list[Quota]] = defaultdict(list)
    for quota in _quotas(connection, "version <= %s", (at.version,)):
        (of_tenants[quota.tenant_id] if quota.tenant_id else of_tiers[quota.tier]).append(quota)
    tiers: dict[str, list[Tier]] = defaultdict(list)
    for tenant_id, *tier in connection.execute(
        "select tenant_id, tier, starts_at from usage.tenant_tiers order by starts_at, assignment_no"
    ):
        tiers[tenant_id].append(Tier(*tier))
    anchors: dict[str, list[DatedAnchor]] = defaultdict(list)
    for tenant_id, anchor_at, months, starts_at in connection.execute(
        "select tenant_id, anchor_at, months, starts_at from usage.billing_anchors order by starts_at, anchor_no"
    ):
        anchors[tenant_id].append(DatedAnchor(Anchor(anchor_at, months), starts_at))
    return Definitions(at, dict(of_tenants), dict(of_tiers), dict(tiers), dict(anchors))


def define(connection: psycopg.Connection, quota: Quota, *, actor: str) -> Quota:
    """Store a definition. Raises UnknownTenant. The same as what holds already is stored as a version of its own."""
    with connection.transaction():
        if quota.tenant_id:
            tenants.get(connection, quota.tenant_id)
        write_in_order(connection)
        row = connection.execute(
            "insert into usage.quotas (tenant_id, tier, model, adapter, period, metric, limit_units, hard, thresholds,"
            " on_shrink, min_tokens, overshoot_allowance, on_unavailable, starts_at, ends, defined_by)"
            " values (nullif(%(tenant_id)s, ''), nullif(%(tier)s, ''), %(model)s, %(adapter)s, %(period)s, %(metric)s,"
            " %(limit)s, %(hard)s, %(thresholds)s, %(on_shrink)s, %(min_tokens)s, %(overshoot_allowance)s,"
            " %(on_unavailable)s, %(starts_at)s, %(ends)s, %(actor)s) returning version",
            {name: getattr(quota, name) for name in quota.__slots__}
            | {"thresholds": list(quota.thresholds), "actor": actor},
        ).fetchone()
        assert row is not None, "an insert returns its row"
        subject = quota.tenant_id or f"tier {quota.tier}"
        detail: dict[str, Any] = {"version": row[0], "limit": shown(quota.limit, quota.metric), "hard": quota.hard}
        detail |= {"from": quota.starts_at.isoformat(), "ends": quota.ends}
        audit.record(connection, actor, "quota.set", f"{subject} {quota.quota_id}", detail)
    return dataclasses.replace(quota, version=row[0])


def end(
    connection: psycopg.Connection, *, tenant_id: str, tier: str, quota_id: str, at: datetime, actor: str
) -> Quota:  # fmt: skip
    """Take a quota away from a time on. Raises UnknownQuota if it does not hold then."""
    definitions = read(connection)
    held = definitions.of_tenants.get(tenant_id, []) if tenant_id else definitions.of_tiers.get(tier, [])
    found = [quota for quota in in_force(held, tenant_id, tier, at) if quota.quota_id == quota_id]
    if not found:
        raise UnknownQuota(f"{tenant_id or tier} has no quota {quota_id}: `tollbook quota list` shows them")
    return define(connection, dataclasses.replace(found[0], starts_at=at, ends=True), actor=actor)


def assign(connection: psycopg.Connection, tenant_id: str, tier: str, at: datetime, *, actor: str) -> None:
    """Put a tenant into a tier from a time on; '' into none. Raises UnknownTenant."""
    with connection.transaction():
        tenants.get(connection, tenant_id)
        write_in_order(connection)
        connection.execute(
            "insert into usage.tenant_tiers (tenant_id, tier, starts_at, assigned_by) values (%s, %s, %s, %s)",
            (tenant_id, tier, at, actor),
        )
        audit.record(connection, actor, "quota.tier", tenant_id, {"tier": tier, "from": at.isoformat()})


def set_anchors(connection: psycopg.Connection, anchors: Iterable[tuple[str, DatedAnchor]]) -> None:
    """Note when tenants' billing periods begin, from a time on, where that is new. For billing, in its transaction."""
    query = (
        "insert into usage.billing_anchors (tenant_id, anchor_at, months, starts_at)"
        " select %(tenant)s, %(at)s, %(months)s, %(starts)s"
        " where (%(at)s::timestamptz, %(months)s::integer) is distinct from (select (anchor_at, months)"
        " from usage.billing_anchors where tenant_id = %(tenant)s and starts_at <= %(starts)s"
        " order by starts_at desc, anchor_no desc limit 1)"
    )
    write_in_order(connection)
    with connection.cursor() as cursor:
        cursor.executemany(
            query,
            [
                {"tenant": tenant_id, "at": anchor.at, "months": anchor.months, "starts": starts_at}
                for tenant_id, (anchor, starts_at) in anchors
            ],
        )


def price_lists(connection: psycopg.Connection, tenant_ids: Iterable[str]) -> dict[str, PriceList]:
    """The highest prices that may apply to each of these tenants' usage, and what of it bills."""
    prices = estimates.prices_of(connection, tenant_ids)
    statuses = estimates.bill_statuses_of(connection, prices)
    return {
        tenant_id: PriceList(
            (DatedPrice(each.model, each.metric, each.unit_price, microseconds(each.valid_from)) for each in found),
            statuses.get(tenant_id, ()),
        )
        for tenant_id, found in prices.items()
    }


def _quotas(connection: psycopg.Connection, where: str, given: tuple[object, ...]) -> list[Quota]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"select {_COLUMNS} from usage.quotas where {where} order by version", given)
        return [_quota(columns) for columns in cursor]


def _quota(columns: dict[str, Any]) -> Quota:
    numbers = {name: int(columns[name]) for name in ("limit", "overshoot_allowance")}
    return Quota(**columns | numbers | {"thresholds": tuple(columns["thresholds"])})
