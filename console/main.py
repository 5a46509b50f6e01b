"""`tollbook`: one command line, grouped by who needs what."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import psycopg
import typer
from typer.core import TyperGroup

from billing.errors import BillingError, PeriodInvalid
from console import session
from console.output import err, visible
from devstack.errors import DevstackError
from reconciliation.errors import MappingInvalid, PeriodNotReconcilable, ReconciliationError
from serving_adapter.errors import AdapterError
from streams.database import unavailable
from streams.errors import StreamsError

WRONG_USE: Final = (PeriodInvalid, PeriodNotReconcilable, MappingInvalid)
"""Arguments that only the folder that reads them can judge: exit code 2."""
EXPECTED: Final = (AdapterError, StreamsError, BillingError, ReconciliationError, DevstackError)
"""Errors whose text tells a person what to do: shown without a traceback."""

OPERATORS, SUPPORT, FINANCE, DEVELOPERS = "For operators", "For support", "For finance", "For developers"
NOUNS: Final = {
    "db": OPERATORS,
    "tenant": OPERATORS,
    "key": OPERATORS,
    "adapter": OPERATORS,
    "streams": OPERATORS,
    "quota": OPERATORS,
    "events": SUPPORT,
    "usage": SUPPORT,
    "replay": SUPPORT,
    "audit": SUPPORT,
    "account": FINANCE,
    "plan": FINANCE,
    "subscription": FINANCE,
    "credit": FINANCE,
    "tax": FINANCE,
    "exchange": FINANCE,
    "ledger": FINANCE,
    "report": FINANCE,
    "invoice": FINANCE,
    "stripe": FINANCE,
    "dispute": FINANCE,
    "close": FINANCE,
    "approval": FINANCE,
    "reconcile": FINANCE,
    "cost": FINANCE,
    "dev": DEVELOPERS,
}
"""Each noun is a module of `console/commands`, imported only when it is used."""


class Nouns(TyperGroup):
    """Finds a noun's verbs in its module."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All nouns, in the order of the help."""
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The noun's command group, or None."""
        if cmd_name not in NOUNS:
            return None
        command: Any = typer.main.get_command(import_module(f"console.commands.{cmd_name}").app)
        command.name = cmd_name
        command.rich_help_panel = NOUNS[cmd_name]
        return command


app = typer.Typer(cls=Nouns, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.callback()
def tollbook() -> None:
    """Meters and bills multi-tenant LLM serving: counts every token once, bills it to the cent, and proves it."""


def main() -> None:
    """Run one command. Exit code 0 done or equal, 1 difference found or refused, 2 wrong use."""
    run_with_messages(_command)


def _command() -> None:
    session.fill_environment()
    app()


def run_with_messages(command: Callable[[], None]) -> None:
    """Run something that people started: expected errors end it with a message instead of a traceback."""
    try:
        command()
    except WRONG_USE as error:
        fail(str(error), 2)
    except EXPECTED as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped; what was committed stays, and the command can be run again", 130)
    except Exception as error:
        lost = getattr(error, "orig", error)  # SQLAlchemy wraps the driver's error
        if not isinstance(lost, psycopg.OperationalError):
            raise
        if isinstance(lost, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
            fail("other transactions were in the way each time, and nothing of the last one was done: run it again")
        fail(str(unavailable(lost)))


def fail(text: str, code: int = 1) -> None:
    """End with a message of a line or two."""
    err.print(f"tollbook: {visible(text)}", soft_wrap=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
