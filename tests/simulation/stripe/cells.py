"""The crash matrix of sending: where the sender is killed, and what goes wrong at Stripe on the way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from devstack.stripe_twin.faults import FaultKind

REQUESTS: Final = {
    "customer": "/v1/customers",
    "draft": "/v1/invoices",
    "lines": "/v1/invoices/*/add_lines",
    "number": "/v1/invoices/in_" + "?" * 24,
    "finalize": "/v1/invoices/*/finalize",
}
"""Every request that changes something, as the path of its address at the twin."""
STORED: Final = ("frozen", "customer_known", "draft_created", "compared", "released", "numbered", "finalized")
KILLS: Final = (
    "never",
    *(f"stored {step}" for step in STORED),
    *(f"{when} {request} 0" for request in REQUESTS for when in ("sending", "unrecorded")),
)
"""The names of the checkpoints; `sending` is before a request goes out, `unrecorded` after its reply came."""
SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class Cell:
    """One invoice's fate: `faults` are (request, kind); it is killed the `nth` time that `kill` is passed."""

    kill: str
    nth: int
    faults: tuple[tuple[str, FaultKind], ...]


def every_cell() -> Iterator[Cell]:
    """Each kill with each fault at each request; killed between the repeats of that request, too."""
    for kill, request, kind in itertools.product(KILLS, REQUESTS, FaultKind):
        yield Cell(kill, 1, ((request, kind),))
        if kill == f"sending {request} 0":
            yield Cell(kill, 2, ((request, kind),))


def some_cells(seed: int, count: int) -> list[Cell]:
    """So many cells, among them each kill and each fault at each request, the rest with two faults at once."""
    chance = random.Random(seed)
    cells = list(every_cell())
    chance.shuffle(cells)
    kills, faults = set(KILLS), set(itertools.product(REQUESTS, FaultKind))
    found = []
    for cell in cells:
        if cell.kill in kills or cell.faults[0] in faults:
            kills.discard(cell.kill)
            faults.discard(cell.faults[0])
            found.append(cell)
    found = found[:count]
    return found + list(itertools.islice(two_faults(chance), max(0, count - len(found))))


def two_faults(chance: random.Random) -> Iterator[Cell]:
    """Cells with two faults: at one request, one after the other, or at two."""
    while True:
        faults = tuple((chance.choice(list(REQUESTS)), chance.choice(list(FaultKind))) for _ in range(2))
        yield Cell(chance.choice(KILLS), chance.choice((1, 2)), faults)
