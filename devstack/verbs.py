"""What the command lines (__main__.py, commands.py) do."""

from __future__ import annotations

import shlex
from pathlib import Path

from devstack import status as statuses
from devstack import testrun
from devstack.errors import DevstackError
from devstack.progress import Progress
from devstack.stack import Stack


def up(home: str | Path | None = None) -> None:
    Stack(home).up(Progress())


def down(home: str | Path | None = None) -> None:
    stack = Stack(home)
    if not any(service.running() for service in stack.services):
        print(f"Nothing runs for {stack.places.home}.")
        return
    stack.down(Progress())


def clean(home: str | Path | None = None) -> None:
    """Remove the services of `home`, and what killed test runs left behind."""
    stack, progress = Stack(home), Progress()
    testrun.remove_left(progress)
    stack.clean(progress)
    print(f"Removed {stack.places.home}. What was fetched once stays in {stack.places.cache}.")


def status(home: str | Path | None = None, json: bool = False) -> str:
    rows = statuses.status(Stack(home))
    return statuses.as_json(rows) if json else statuses.as_table(rows)


def env(home: str | Path | None = None) -> str:
    """Lines of `export NAME=value`; raises DevstackError where the services were never started."""
    stack = Stack(home)
    found = stack.environment()
    if "TOLLBOOK_KAFKA" not in found or "TOLLBOOK_DATABASE_URL" not in found:
        raise DevstackError(f"no services were started yet for {stack.places.home}: make up")
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(found.items()))
