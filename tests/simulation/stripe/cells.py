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
READS: Final = {"read": "/v1/invoices/in_" + "?" * 24}
"""What is read where a reply of before is repeated: the draft, to compare it."""
BURSTS: Final = (
    FaultKind.RATE_LIMIT, FaultKind.LOCK_TIMEOUT, FaultKind.CONFLICT, FaultKind.ERROR, FaultKind.LOSE_REPLY,
    FaultKind.COMMIT_LATE,
)  # fmt: skip
STORED: Final = (
    "frozen", "customer_known", "draft_created", "lines_added", "compared", "released", "numbered", "finalized",
)  # fmt: skip
KILLS: Final = (
    "never",
    *(f"stored {step}" for step in STORED),
    *(f"{when} {request} 0" for request in REQUESTS for when in ("sending", "unrecorded")),
)
"""The names of the checkpoints; `sending` is before a request goes out, `unrecorded` after its reply came."""
SECONDS: Final = 0.02
LATE_S: Final = 0.3
"""So long after the client gave up Stripe commits: the sender's tries of one run are over by then, and all get 409."""


def seconds_of(kind: FaultKind) -> float:
    """How long a fault takes."""
    return LATE_S if kind is FaultKind.COMMIT_LATE else SECONDS


@dataclass(frozen=True, slots=True)
class Cell:
    """One invoice's fate: `faults` are (request, kind), each met so many `times`; it is killed the `nth` time that
    `kill` is passed. `raced`: two senders begin with it at once."""

    kill: str
    nth: int
    faults: tuple[tuple[str, FaultKind], ...]
    times: int = 1
    raced: bool = False


def every_cell() -> Iterator[Cell]:
    """Each kill with each fault at each request; killed between the repeats of that request, too. What is read back
    after a lost reply fails; bursts of a fault, fewer and more than one run bears; two senders at once."""
    for kill, request, kind in itertools.product(KILLS, REQUESTS, FaultKind):
        yield Cell(kill, 1, ((request, kind),))
        if kill == f"sending {request} 0":
            yield Cell(kill, 2, ((request, kind),))
    for kill, kind in itertools.product(("never", "stored lines_added", "stored compared"), FaultKind):
        yield Cell(kill, 1, (("lines", FaultKind.LOSE_REPLY), ("read", kind)))
    for request, kind, times in itertools.product(REQUESTS, BURSTS, (3, 7)):
        yield Cell("never", 1, ((request, kind),), times)
    for request, kind in itertools.product(REQUESTS, FaultKind):
        yield Cell("never", 1, ((request, kind),), raced=True)


def some_cells(seed: int, count: int) -> list[Cell]:
    """So many cells, among them each kill and each fault at each request, the rest with two faults at once."""
    chance = random.Random(seed)
    cells = list(every_cell())
    chance.shuffle(cells)
    wanted: set[object] = {*KILLS, *itertools.product(REQUESTS, FaultKind), *itertools.product(READS, FaultKind)}
    wanted |= {3, 7, "raced"}
    found = []
    for cell in cells:
        shows = {cell.kill, *cell.faults, cell.times, "raced" if cell.raced else cell.kill}
        if shows & wanted:
            wanted -= shows
            found.append(cell)
    found = found[:count]
    return found + list(itertools.islice(two_faults(chance), max(0, count - len(found))))


def two_faults(chance: random.Random) -> Iterator[Cell]:
    """Cells with two faults: at one request, one after the other, or at two."""
    while True:
        faults = tuple((chance.choice(list(REQUESTS)), chance.choice(list(FaultKind))) for _ in range(2))
        yield Cell(chance.choice(KILLS), chance.choice((1, 2)), faults)
