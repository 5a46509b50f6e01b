"""`tollbook dev up|down|status|env`, as a Typer app that the console mounts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from devstack import verbs
from devstack.errors import DevstackError
from devstack.twin_commands import twin_app

devstack_app = typer.Typer(no_args_is_help=True, help="Kafka, TimescaleDB and the Stripe twin on this machine.")
devstack_app.add_typer(twin_app, name="twin")
Home = Annotated[
    Path | None, typer.Option("--home", help="Folder of the services (default: TOLLBOOK_HOME or .tollbook).")
]


@devstack_app.command()
def up(home: Home = None) -> None:
    """Start what does not run, and wait until it works."""
    _or_exit(lambda: verbs.up(home))


@devstack_app.command()
def down(home: Home = None) -> None:
    """Stop the services; their data stays."""
    _or_exit(lambda: verbs.down(home))


@devstack_app.command()
def status(home: Home = None, json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False) -> None:
    """What runs, where, and how much it keeps."""
    _or_exit(lambda: typer.echo(verbs.status(home, json)))


@devstack_app.command()
def env(home: Home = None) -> None:
    """The variables by which programs find the services: eval "$(tollbook dev env)"."""
    _or_exit(lambda: typer.echo(verbs.env(home)))


def _or_exit(action: Callable[[], None]) -> None:
    try:
        action()
    except DevstackError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
