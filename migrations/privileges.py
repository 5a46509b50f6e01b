"""What the application may do with which table, as data; granted anew at the end of every upgrade.

Two roles: the owner of the tables, who migrates, and the application's role, as which every session of Tollbook works
(`streams/database.py`, docs/decisions/0011-two-roles.md). The triggers are the second line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

SCHEMAS: Final = ("usage", "ledger")
"""Of every table here the application reads rows and (but READ_ONLY and BY_FUNCTION) adds rows. More it may only as
listed below."""

STATE: Final[Mapping[str, str]] = {
    "usage.tenants": "update (name, state)",
    "usage.sources": "update",
    "usage.event_identities": "update (position)",  # locked by `for update`, which asks for the right; no trigger lets
    "usage.waiting_orphans": "delete",
    "usage.quarantine": "update (detail)",  # either of the two be updated
    "usage.event_identities_other": "delete",  # by age alone: a trigger says so, here and on the next two
    "usage.event_identities_rest": "delete",
    "usage.event_versions": "delete",
    "usage.identity_ages": "update, delete",  # a trigger lets them grow younger only
    "usage.identity_sweeps": "update",
    "usage.ingest_rules": "update",
    "usage.rating_bands": "update, delete",
    "usage.stale_bands": "update, delete",
    "usage.archived_days": "update",
    "usage.archived_counts": "delete",
    "usage.events": "update (rating_band)",
    "usage.recalled_events": "update (rating_band)",
    "usage.windows_1m": "update",
    "usage.windows_1h": "update",
    "usage.number_fills": "delete",
    "usage.replica_usage_fills": "delete",
    "usage.replica_usage": "update, delete",
    "usage.boot_numbers": "update, delete",
    "usage.received_numbers": "update, delete",
    "usage.boots": "update, delete",
    "usage.heartbeat_marks": "delete",
    "usage.replica_reported": "update, delete",
    "usage.engine_counters": "update, delete",
    "usage.gaps": "update (last_number, missing, alerted_at, closed_at, grown_at, told_at, told_missing)",
    "usage.alerts": "update (delivered_at)",
    "usage.completeness_watch": "update",
    "usage.estimate_prices": "update, delete",
    "usage.release_feeds": "update (ingest_no)",
    "usage.quota_shards": "update",
    "usage.quota_progress": "update, delete",
    "usage.quota_journal": "delete",
    "usage.quota_states": "update",
    "ledger.accounting_periods": "update (state)",
    "ledger.billed_coverables": "delete",
    "ledger.corrections": "update (state, told_because, stripe_id, entry_id, ended_at)",
    "ledger.invoice_carried": "delete",
    "ledger.invoice_credits": "delete",
    "ledger.invoice_lines": "delete",
    "ledger.invoice_taxes": "delete",
    "ledger.invoices": "update",
    "ledger.number_series": "update (last_number)",
    "ledger.passed_over_attempts": "delete",
    "ledger.stripe_by_hand": "update (amount, over, seen_at)",
    "ledger.stripe_cursors": "update (read_to)",
    "ledger.stripe_disputes": "update",
    "ledger.stripe_events": "update (handled_at, outcome)",
    "ledger.stripe_passes": "update, delete",
    "ledger.stripe_requests": "update (reply_id, replied_at, sent_at, answer)",
    "ledger.stripe_standings": "update",
    "ledger.stripe_unbooked": "delete",
    "ledger.subscriptions": "update (superseded_at)",
    "ledger.tenant_periods": "update",
    "ledger.usage_counts": "delete",
    "ledger.usage_digests": "delete",
}
"""Tables whose rows have a state. One that is added with a state gets a line here."""

READ_ONLY: Final = ("ledger.chart_of_accounts", "ledger.currencies")
"""What the books are made of: migrations and the owner add to it."""
BY_FUNCTION: Final = ("ledger.postings",)
"""Tables to which a function of the owner's adds rows, and the application only by calling it."""

_COLUMNS: Final = re.compile(r"\(([^)]*)\)")
_ROLE: Final = """
do $$ begin
    if not exists (select from pg_roles where rolname = '{role}') then
        create role {role} nologin;
    end if;
exception when duplicate_object or unique_violation then null;  -- another database's upgrade was faster
end $$
"""
_MAY_BECOME: Final = """
select case when current_setting('server_version_num')::integer >= 160000
    then pg_has_role(current_user, '{role}', 'SET') else pg_has_role(current_user, '{role}', 'MEMBER') end
"""
_MEMBER: Final = """
do $$ begin
    grant {role} to current_user;
exception when unique_violation then null;
end $$
"""


class RoleMissing(Exception):
    """The application's role is not there, and this login may not make it."""


def grant(connection: Connection, role: str) -> None:
    """Make the application's role where it is missing, and give it exactly what is listed here. Safe to repeat.

    Raises RoleMissing, with what an administrator has to run.
    """
    try:
        with connection.begin_nested():
            connection.exec_driver_sql(_ROLE.format(role=role))
            if not connection.exec_driver_sql(_MAY_BECOME.format(role=role)).scalar_one():
                connection.exec_driver_sql(_MEMBER.format(role=role))
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "42501":
            raise
        login = connection.exec_driver_sql("select current_user").scalar_one()
        raise RoleMissing(
            f"this login may not make the role {role}: have an administrator run"
            f' `create role {role} nologin; grant {role} to "{login}";` and upgrade again'
            " (TOLLBOOK_DATABASE_ROLE names another role, or none)"
        ) from None
    schemas = ", ".join(SCHEMAS)
    for statement in (
        f"grant usage on schema {schemas} to {role}",
        f"revoke all on all tables in schema {schemas} from {role}",
        f"grant select, insert on all tables in schema {schemas} to {role}",
        f"grant select on public.tollbook_schema_version to {role}",
        f"revoke execute on all functions in schema {schemas} from public",
        f"grant execute on all functions in schema {schemas} to {role}",
    ):
        connection.exec_driver_sql(statement)
    for table in (*READ_ONLY, *BY_FUNCTION):
        if connection.exec_driver_sql(f"select to_regclass('{table}')").scalar_one() is not None:
            connection.exec_driver_sql(f"revoke insert on {table} from {role}")
    for table, rights in STATE.items():
        columns = _columns(connection, table)
        there = _of_columns_there(rights, columns)
        if columns and "()" not in there:
            connection.exec_driver_sql(f"grant {there} on {table} to {role}")


def _columns(connection: Connection, table: str) -> frozenset[str]:
    """A table's columns at this step of the schema; none where there is no such table."""
    schema, name = table.split(".")
    rows = connection.exec_driver_sql(
        "select column_name from information_schema.columns where table_schema = %s and table_name = %s", (schema, name)
    )
    return frozenset(rows.scalars())


def _of_columns_there(rights: str, columns: frozenset[str]) -> str:
    def there(named: re.Match[str]) -> str:
        return "(" + ", ".join(name for name in named[1].split(", ") if name in columns) + ")"

    return _COLUMNS.sub(there, rights)
