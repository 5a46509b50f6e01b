"""The register of tenants: whose events are known. Tenants are never deleted; ids that begin with `_` are reserved."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import psycopg

from streams import audit
from streams.errors import TenantConflict, UnknownTenant

TENANT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,126}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A registered tenant."""

    tenant_id: str
    name: str
    state: str
    registered_at: datetime


def register(connection: psycopg.Connection, tenants: Iterable[tuple[str, str]], *, actor: str) -> int:
    """Register (tenant_id, name) pairs in one transaction and return how many are new.

    One that is registered already under the same name is passed over. Raises TenantConflict on another name,
    ValueError on an id that does not fit; then none is registered.
    """
    added = 0
    with connection.transaction():
        for tenant_id, name in tenants:
            if not TENANT_ID.fullmatch(tenant_id):
                raise ValueError(
                    f"{tenant_id!r} is no tenant id: letters, digits and . _ : -, at most 127, no leading _"
                )
            new = connection.execute(
                "insert into usage.tenants (tenant_id, name) values (%s, %s)"
                " on conflict do nothing returning tenant_id",
                (tenant_id, name),
            ).fetchone()
            if new:
                added += 1
                audit.record(connection, actor, "tenant.add", tenant_id, {"name": name})
            elif (found := get(connection, tenant_id).name) != name:
                raise TenantConflict(f"tenant {tenant_id} is registered as {found!r}, not {name!r}")
    return added


def get(connection: psycopg.Connection, tenant_id: str) -> Tenant:
    """One tenant. Raises UnknownTenant."""
    row = connection.execute(
        "select tenant_id, name, state, registered_at from usage.tenants where tenant_id = %s", (tenant_id,)
    ).fetchone()
    if row is None:
        raise UnknownTenant(f"tenant {tenant_id} is not registered: `tollbook tenant add {tenant_id}` registers it")
    return Tenant(*row)


def all_tenants(connection: psycopg.Connection) -> list[Tenant]:
    """Every tenant, by id."""
    rows = connection.execute("select tenant_id, name, state, registered_at from usage.tenants order by tenant_id")
    return [Tenant(*row) for row in rows]


def known_among(connection: psycopg.Connection, tenant_ids: Sequence[str]) -> set[str]:
    """Those of the given ids that are registered."""
    rows = connection.execute("select tenant_id from usage.tenants where tenant_id = any(%s)", (list(tenant_ids),))
    return {row[0] for row in rows}
