"""What the database refuses, whatever program writes.

The application for want of a right (migrations/privileges.py), the owner by trigger (0007_guards.py).
"""

from __future__ import annotations

import re
from importlib import import_module

import psycopg
import pytest
from sqlalchemy.exc import DBAPIError

from billing.invoicing.invoice_states import _NEXT, InvoiceState
from tests.integration.billing.conftest import World
from tests.integration.billing.test_retries import apply, event

NO_RIGHT = "42501"


def refuses(world: World, state: str, statement: str) -> None:
    """Refused to the application, by one or the other; by the trigger also to the owner."""
    with pytest.raises(DBAPIError) as caught:
        world.execute(statement)
    assert getattr(caught.value.orig, "sqlstate", None) in (state, NO_RIGHT), statement
    with pytest.raises(psycopg.Error) as second:
        world.as_owner(statement)
    assert second.value.sqlstate == state, statement


def test_stored_events_stay_but_whole_chunks_can_be_dropped_by_age(world: World, own_database_url: str) -> None:
    world.customers("acme")
    apply(own_database_url, event(1, "ok", "2026-10-30T10:00:00Z", 5))
    refuses(world, "TB001", "update usage.events set output_tokens = 0")
    refuses(world, "TB001", "delete from usage.events")
    world.as_owner("select drop_chunks('usage.events', timestamptz '2026-11-30')")
    assert world.count("usage.events") == 0


def test_a_tenant_is_never_removed_and_only_its_name_and_state_change(world: World) -> None:
    world.tenant("acme")
    for statement in (
        "delete from usage.tenants",
        "truncate usage.tenants cascade",
        "update usage.tenants set tenant_id = 'other'",
        "update usage.tenants set registered_at = now() - interval '1 year'",
    ):
        refuses(world, "TB001", statement)
    world.execute("update usage.tenants set name = 'Acme', state = 'suspended'")


def test_the_customer_of_an_account_in_stripe_stays(world: World) -> None:
    world.customers("acme")
    world.execute("insert into ledger.stripe_customers values ('acme', 'cus_1')")
    refuses(world, "TB001", "delete from ledger.stripe_customers")
    refuses(world, "TB001", "update ledger.stripe_customers set stripe_customer_id = 'cus_2'")
    refuses(world, "TB001", "truncate ledger.stripe_customers")
    refuses(world, "TB001", "truncate ledger.number_series cascade")


def test_an_invoice_moves_only_along_its_life(world: World) -> None:
    world.customers("acme")
    world.use("acme", output_tokens=1)
    world.rate()
    world.draft()
    for wrong in ("paid", "void", "finalized", "uncollectible"):
        refuses(world, "TB010", f"update ledger.invoices set state = '{wrong}', frozen_at = now()")
    world.execute("update ledger.invoices set state = 'zero', frozen_at = now()")
    refuses(world, "TB010", "update ledger.invoices set state = 'draft'")
    refuses(world, "TB008", "update ledger.invoices set issue_date = '2026-01-01'")
    refuses(world, "TB008", "update ledger.invoices set due_date = '2026-01-01'")
    refuses(world, "TB008", "update ledger.invoices set frozen_at = null")


def test_the_databases_moves_are_those_of_the_code() -> None:
    text = import_module("migrations.versions.0050_corrections").life()
    allowed = text.split("not in (", 1)[1].split("\n    then", 1)[0]
    moves = {(InvoiceState(a), InvoiceState(b)) for a, b in re.findall(r"\('(\w+)', '(\w+)'\)", allowed)}
    assert moves == {(before, after) for (before, _), after in _NEXT.items()}
