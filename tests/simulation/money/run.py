"""Rates random bills twice and compares them.

    .venv/bin/python -m tests.simulation.money.run --invoices 300000 --processes 2
    .venv/bin/python -m tests.simulation.money.run --self      # the second rating alone, and its invariants
    .venv/bin/python -m tests.simulation.money.run --seed 7 --case 123

Prints the seed, progress, what the cases covered, and for the first difference of each kind the case, shrunk. Exit code
1 if anything differs.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import yaml

from reconciliation import oracle
from tests.simulation.money import generator, invariants, shrink
from tests.simulation.money.compare import Difference, Rating, difference
from tests.simulation.money.features import features
from tests.simulation.money.generator import Simulated
from tests.simulation.money.usages import Met

BATCH = 100
"""Cases per task: some tenths of a second, so that progress and the end come soon."""
EXAMPLES = 5
"""Kinds of difference of which a case is shrunk and shown."""


@dataclass
class Tally:
    """What was rated, met and found, of one batch or of all."""

    cases: int = 0
    invoices: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    met: Counter[Met] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.invoices += other.invoices
        self.documents += other.documents
        self.met += other.met
        self.features += other.features
        self.kinds += other.kinds
        for kind, number in other.first.items():
            self.first[kind] = min(number, self.first.get(kind, number))

    def count(self, simulated: Simulated, documents: list[dict[str, Any]]) -> None:
        self.cases += 1
        self.invoices += len(documents)
        self.documents.update(f"{one['doc']} {one['state']}" for one in documents)
        self.met.update(simulated.met)
        self.features.update(features(simulated.case, documents))

    def found(self, kind: str, number: int) -> None:
        self.kinds[kind] += 1
        self.first.setdefault(kind, number)


def product_rating() -> Rating:
    """The product's own rating, imported here alone: `--self` works without it."""
    from tests.money import product  # type: ignore[attr-defined,unused-ignore]

    rating: Rating = product.documents_of
    return rating


def batch(seed: int, first: int, alone: bool) -> Tally:
    """Rates `BATCH` cases; runs in a process of its own."""
    rating = None if alone else product_rating()
    result = Tally()
    for number, simulated in enumerate(generator.cases(seed, first, BATCH), first):
        documents = oracle.documents_of(simulated.case)
        result.count(simulated, documents)
        if rating is None:
            for what in invariants.broken(simulated.case, oracle.documents_of, number):
                result.found(what.split(":")[0], number)
        else:
            found = difference(simulated.case, lambda _, known=documents: known, rating)
            if found:
                result.found(found.kind, number)
    return result


def rated(seed: int, invoices: int, processes: int, *, alone: bool) -> Tally:
    """Batches until there are enough invoices; prints where it stands every few seconds."""
    total, began, told = Tally(), time.monotonic(), time.monotonic()
    with ProcessPoolExecutor(processes) as pool:
        firsts = _numbers()
        running: set[Future[Tally]] = {pool.submit(batch, seed, next(firsts), alone) for _ in range(2 * processes)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for one in done:
                total.add(one.result())
                if total.invoices + len(running) * BATCH < invoices:
                    running.add(pool.submit(batch, seed, next(firsts), alone))
            if time.monotonic() - told > 5:
                told = time.monotonic()
                _tell(total, told - began)
    _tell(total, time.monotonic() - began)
    return total


def _numbers() -> Iterator[int]:
    first = 0
    while True:
        yield first
        first += BATCH


def _tell(total: Tally, seconds: float) -> None:
    different = sum(total.kinds.values())
    speed = total.invoices / seconds if seconds else 0
    print(
        f"{total.invoices:>8,} invoices of {total.cases:,} cases, {different:,} different, "
        f"{seconds:.0f} s, {speed:,.0f} invoices/s",
        flush=True,
    )


def print_coverage(total: Tally) -> None:
    """model × kind of event × boundary: how many combinations, and how often each model met each boundary."""
    models = sorted({model for model, _, _ in total.met})
    kinds = sorted({kind for _, kind, _ in total.met})
    boundaries = sorted({boundary for _, _, boundary in total.met})
    print(f"\ndocuments: {', '.join(f'{name} {count:,}' for name, count in total.documents.most_common())}")
    print(
        f"coverage: {len(total.met):,} combinations of {len(models)} models × {len(kinds)} kinds of event × "
        f"{len(boundaries)} boundaries; cases' events by model and boundary:"
    )
    by_boundary: Counter[tuple[str, str]] = Counter()
    by_kind: Counter[tuple[str, str]] = Counter()
    for (model, kind, boundary), count in total.met.items():
        by_boundary[model, boundary] += count
        by_kind[model, kind] += count
    for title, names, table in (("boundary", boundaries, by_boundary), ("kind of event", kinds, by_kind)):
        print(f"\n{title:<26}" + "".join(f"{model:>12}" for model in models))
        for name in names:
            print(f"{name:<26}" + "".join(f"{table[model, name]:>12,}" for model in models))


def print_features(total: Tally) -> None:
    """How many cases have each feature that the rules name, by group."""
    print("\ncases by what they have:")
    names = sorted(total.features, key=lambda name: (name.split(": ")[0], -total.features[name], name))
    for group, of_group in groupby(names, key=lambda name: name.split(": ")[0]):
        told = ", ".join(f"{name.split(': ', 1)[1]} {total.features[name]:,}" for name in of_group)
        print(f"- {group}: {told}")


def print_differences(total: Tally, seed: int, *, alone: bool, shrinking: bool) -> None:
    """Kinds of difference, most frequent first, and of some of them the first case, shrunk."""
    print("\ndifferences:")
    for kind, count in total.kinds.most_common():
        print(f"{count:>8,}  {kind}   (first: --case {total.first[kind]})")
    for kind, _ in total.kinds.most_common(EXAMPLES):
        case = generator.simulated(seed, total.first[kind]).case
        _show(case, kind, total.first[kind], alone, shrinking)


def _show(case: dict[str, Any], kind: str, number: int, alone: bool, shrinking: bool) -> None:
    if alone:

        def still(one: dict[str, Any]) -> bool:
            try:
                return any(what.split(":")[0] == kind for what in invariants.broken(one, oracle.documents_of, number))
            except Exception:
                return False  # a part is missing that another part names: not a case

        case = shrink.shrunk(case, still) if shrinking else case
        print(f"\n--- {kind}\n" + "\n".join(invariants.broken(case, oracle.documents_of, number)))
    else:
        rating = product_rating()

        def same(one: dict[str, Any]) -> bool:
            found = difference(one, oracle.documents_of, rating)
            return found is not None and found.kind == kind

        case = shrink.shrunk(case, same) if shrinking else case
        print(f"\n--- {kind}\n{_both(difference(case, oracle.documents_of, rating))}")
    print(_yaml(case))


def _both(found: Difference | None) -> str:
    return f"{found.where}\n  second rating: {found.left}\n  product:       {found.right}" if found else "equal"


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, sort_keys=False, default_flow_style=None, width=160, allow_unicode=True)


def _one(seed: int, number: int, alone: bool) -> int:
    """A single case, and what the second rating makes of it."""
    case = generator.simulated(seed, number).case
    print(_yaml(case), _yaml(oracle.rate(case)), sep="\n")
    if alone:
        found = list(invariants.broken(case, oracle.documents_of, number))
        print("\n".join(found) or "all invariants hold")
        return 1 if found else 0
    differs = difference(case, oracle.documents_of, product_rating())
    print(_both(differs))
    return 1 if differs else 0


def main() -> int:
    arguments = argparse.ArgumentParser(description="Rates random bills twice and compares them.")
    arguments.add_argument("--invoices", type=int, default=20_000, help="about how many documents to rate")
    arguments.add_argument("--processes", type=int, default=2)
    arguments.add_argument("--seed", type=int, default=None, help="default: another one each time")
    arguments.add_argument("--self", dest="alone", action="store_true", help="the second rating alone, with invariants")
    arguments.add_argument("--no-shrink", dest="shrinking", action="store_false")
    arguments.add_argument("--case", type=int, default=None, help="show this case of the seed alone")
    given = arguments.parse_args()
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    if given.case is not None:
        return _one(seed, given.case, given.alone)
    total = rated(seed, given.invoices, given.processes, alone=given.alone)
    print_coverage(total)
    print_features(total)
    if total.kinds:
        print_differences(total, seed, alone=given.alone, shrinking=given.shrinking)
        return 1
    print(f"\nno difference in {total.invoices:,} invoices; seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
