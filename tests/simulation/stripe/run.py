"""The whole crash matrix of sending invoices, printed with its counts.

    .venv/bin/python -m tests.simulation.stripe.run --cells 0 --seed 7     # 0: every kill with every fault
    .venv/bin/python -m tests.simulation.stripe.run --corrections --webhooks --months 5

Every kill × every fault at every request, once while Stripe knows its keys and once a day later; and cells with two
faults at once; two senders race to mend what is left. Exit code 1 if an account has not exactly one right invoice.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from random import Random
from typing import Final

from billing.database import engine_for
from billing.settings import StripeSettings
from billing.stripe.stripe_gateway import StripeGateway
from devstack.stripe_twin.faults import FaultKind
from tests.benchmarks.databases import database
from tests.fixtures_stripe_twin import StripeTwin, TwinProcess
from tests.integration.billing.conftest import World
from tests.simulation.stripe import corrections, matrix, months, webhooks
from tests.simulation.stripe.cells import KILLS, Cell, every_cell, some_cells, two_faults
from tests.simulation.stripe.matrix import Result

PAIRS: Final = 200
"""Cells with two faults at once, beside the whole matrix."""


def crash_matrix(seed: int, cells: int) -> Result:
    """Run the matrix, or so many cells of it, twice: while keys live, and when they are forgotten. Prints it."""
    whole = [*every_cell(), *islice(two_faults(Random(seed)), PAIRS)]
    chosen = some_cells(seed, cells) if cells else whole
    total = Result()
    for old in (False, True):
        found = _one(chosen, old=old)
        total.right += found.right
        total.killed += found.killed
        total.met += found.met
        total.wrong += found.wrong
    _print(total)
    return total


def _one(cells: Sequence[Cell], *, old: bool) -> Result:
    with _world() as (world, twin):
        return matrix.run(world, twin, cells, old=old)


@contextmanager
def _world() -> Iterator[tuple[World, StripeTwin]]:
    """A database and a twin of their own."""
    with database() as url, tempfile.TemporaryDirectory() as folder:
        engine = engine_for(url)
        twin = TwinProcess(Path(folder) / "twin")
        try:
            yield World(engine), twin.start()
        finally:
            twin.kill()
            engine.dispose()


def _print(result: Result) -> None:
    """By kill and fault how many cells ended in exactly one right invoice."""
    counts: Counter[tuple[str, str]] = Counter()
    for (kill, faults), count in result.right.items():
        counts[kill, "two faults" if " + " in faults else faults.partition(" at ")[0]] += count
    columns = [*(kind.value for kind in FaultKind), "two faults"]
    print("\nOne right invoice each, by kill (rows) and fault (columns):")
    print(f"{'':<24}" + "".join(f"{name.replace('error_', ''):>18}" for name in columns))
    for kill in KILLS:
        print(f"{kill:<24}" + "".join(f"{counts[kill, name]:>18}" for name in columns))
    print(f"{result.right.total():,} cells right, {result.killed:,} killed, {result.met:,} requests met a fault")
    for text in result.wrong[:20]:
        print(f"WRONG {text}")


def corrections_matrix(seed: int, cells: int) -> list[str]:
    """The crash matrix of corrections, while keys live and when they are forgotten. Prints it; what is wrong."""
    chosen = corrections.some_cells(seed, cells) if cells else list(corrections.every_cell())
    wrong: list[str] = []
    for old in (False, True):
        with _world() as (world, twin):
            found = corrections.run(world, twin, chosen, old=old)
        wrong += found.wrong
        print(f"\ncorrections, keys {'forgotten' if old else 'alive'}: {found.killed} killed, {found.met} met a fault")
        for (story, what), count in sorted(found.right.items()):
            print(f"{story:<20}{what:<44}{count:>5} right")
    return wrong


def webhook_matrix(seed: int) -> list[str]:
    """The matrix of webhooks. Prints it; what is wrong."""
    with _world() as (world, twin):
        found = webhooks.run(world, StripeGateway(StripeSettings(twin.key, twin.url)), twin, seed)
    ways = webhooks.WAYS
    print("\nAccounts that stand the same, by what happened (rows) and what became of its webhooks (columns):")
    print(f"{'':<18}" + "".join(f"{name:>20}" for name in ways))
    for story in webhooks.STORIES:
        print(f"{story:<18}" + "".join(f"{found.right[name, story]:>20}" for name in ways))
    print(
        f"{found.right.total()} cells right; {len(found.kinds)} types of events came, {found.received} over HTTP;"
        f" {found.killed.total()} kills at {len(found.killed)} kinds of points"
    )
    return found.wrong


def random_months(seed: int, count: int, *, by_hand: bool | None = None) -> list[str]:
    """So many random months with faults, of which each can be run alone by its seed; what does not agree. In every
    second one people also do things in Stripe by hand (`by_hand`: in all, or in none)."""
    wrong: list[str] = []
    for number in range(seed, seed + count):
        with _world() as (world, twin):
            gateway = StripeGateway(StripeSettings(twin.key, twin.url))
            try:
                people = bool(number % 2) if by_hand is None else by_hand
                found = months.run(world, gateway, twin, seed=number, steps=200, by_hand=people)
            except AssertionError as error:
                found = [f"it does not agree: {error}"]
            wrong += [f"month {number}: {text}" for text in found]
    print(f"\n{count} random months, {len(wrong)} differences")
    return wrong


def main() -> int:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=0, help="so many cells; 0: all")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--corrections", action="store_true", help="the matrix of corrections instead")
    parser.add_argument("--months", type=int, default=0, help="so many random months instead")
    parser.add_argument("--by-hand", action="store_true", help="in each month, also what people do in Stripe by hand")
    parser.add_argument("--webhooks", action="store_true", help="the matrix of webhooks instead")
    options = parser.parse_args()
    if options.corrections or options.months or options.webhooks:
        wrong = corrections_matrix(options.seed, options.cells) if options.corrections else []
        wrong += webhook_matrix(options.seed) if options.webhooks else []
        wrong += random_months(options.seed, options.months, by_hand=options.by_hand or None)
        for text in wrong[:20]:
            print(f"WRONG {text}")
        return 1 if wrong else 0
    return 1 if crash_matrix(options.seed, options.cells).wrong else 0


if __name__ == "__main__":
    sys.exit(main())
