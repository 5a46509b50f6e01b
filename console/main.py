"""`tollbook`: one command line, grouped by who needs what."""

from __future__ import annotations

import sys
from typing import Final

import psycopg
import typer
from sqlalchemy.exc import OperationalError

from billing.errors import BillingError
from console import session
from console.commands import audit, close, db, events, invoice, ledger, plan, reconcile, streams, subscription, tenant, usage
from console.commands import dev as devstack_commands
from console.output import err
from devstack.errors import DevstackError
from reconciliation.errors import ReconciliationError
from serving_adapter.errors import AdapterError
from streams.database import unavailable
from streams.errors import StreamsError

EXPECTED: Final = (AdapterError, StreamsError, BillingError, ReconciliationError, DevstackError)
"""Errors whose text tells a person what to do: shown without a traceback."""

OPERATORS, SUPPORT, FINANCE, DEVELOPERS = "For operators", "For support", "For finance", "For developers"

app = typer.Typer(
    help="Meters and bills multi-tenant LLM serving: counts every token once, bills it to the cent, and proves it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command, name, panel in (
    (db.app, "db", OPERATORS),
    (tenant.app, "tenant", OPERATORS),
    (streams.app, "streams", OPERATORS),
    (events.app, "events", SUPPORT),
    (usage.app, "usage", SUPPORT),
    (audit.app, "audit", SUPPORT),
    (plan.app, "plan", FINANCE),
    (subscription.app, "subscription", FINANCE),
    (ledger.app, "ledger", FINANCE),
    (invoice.app, "invoice", FINANCE),
    (close.app, "close", FINANCE),
    (reconcile.app, "reconcile", FINANCE),
    (devstack_commands.app, "dev", DEVELOPERS),
):
    app.add_typer(command, name=name, rich_help_panel=panel)


def main() -> None:
    """Run one command. Exit code 0 done or equal, 1 difference found or refused, 2 wrong use."""
    try:
        session.fill_environment()
        app()
    except EXPECTED as error:
        fail(str(error))
    except (psycopg.OperationalError, OperationalError) as error:
        fail(str(unavailable(getattr(error, "orig", None) or error)))
    except KeyboardInterrupt:
        fail("stopped; what was committed stays, and the command can be run again", 130)


def fail(text: str, code: int = 1) -> None:
    """End with a message of a line or two."""
    err.print(f"tollbook: {text}", markup=False, soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
