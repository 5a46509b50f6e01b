"""Progress of long work: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from console.output import err

if TYPE_CHECKING:
    from billing.commands.close_month import StageProgress  # SQLAlchemy takes half a second to import

LINE_EVERY_S: Final = 5.0
"""Elsewhere than on a terminal: a line per stage at most this often, and one at its end."""


@contextmanager
def bars() -> Iterator[StageProgress]:
    """Gives a function to tell (stage, done, total)."""
    if not err.is_terminal:
        yield _lines()
        return
    columns = (TextColumn("  {task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("left"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=err, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage, total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield tell


def _lines() -> StageProgress:
    told: dict[str, float] = {}
    ended: set[str] = set()

    def tell(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        due = done == total or now - told.setdefault(stage, now) >= LINE_EVERY_S
        if due and stage not in ended:
            told[stage] = now
            err.print(f"  {stage}: {done:,} of {total:,}")
        if done == total:
            ended.add(stage)

    return tell
