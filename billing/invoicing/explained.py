"""From an invoice's lines to the requests that make their quantities. Values in, values out.

The tiers of a charge share one counter, so what counts together is a charge in a segment and price version: its lines'
units, billed or free, are the sum over its requests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Final, NamedTuple

from billing.invoicing.invoices import InvoiceLine
from billing.money import ZERO, exactly, total
from billing.plans.subscriptions import Piece
from billing.rating import LineKind
from billing.usage.billed_events import Billed, charges_of
from billing.usage.usage_digest import BilledEvent

NO_METRICS: Final[Mapping[str, Collection[str]]] = {}
COUNTED_KINDS: Final = (LineKind.USAGE, LineKind.OVERAGE)


class Counter(NamedTuple):
    """What counts together: a charge of a tenant's plan in one segment and price version."""

    tenant_id: str
    charge: str
    segment: int
    version: str


@dataclass(slots=True)
class CountedHour:
    """An hour's share in a counter: its events, and their units."""

    hour: datetime
    events: int = 0
    quantity: Decimal = ZERO


@dataclass(slots=True)
class Explained:
    """A counter: the lines that it fills, the units they stand for, and what the events come to by hour."""

    counter: Counter
    metric: str
    lines: tuple[str, ...]
    counted: Decimal
    hours: dict[datetime, CountedHour] = field(default_factory=dict)

    @property
    def found(self) -> Decimal:
        """The units of all its events."""
        return total(hour.quantity for hour in self.hours.values())

    @property
    def agrees(self) -> bool:
        """Whether the events make what the lines stand for."""
        return self.found == self.counted


@dataclass(frozen=True, slots=True)
class Share:
    """What one event counts towards a counter, in units of its metric."""

    counter: Counter
    metric: str
    event: BilledEvent
    quantity: Decimal


class Explanation:
    """An invoice's own lines, filled up with the events that it bills as they pass. Keeps hours, no events.

    `priced_by` says which piece prices an event, `metrics` what each plan declares.
    """

    def __init__(
        self,
        lines: Iterable[InvoiceLine],
        priced_by: Callable[[Billed], Piece] = lambda billed: billed.piece,
        metrics: Mapping[str, Collection[str]] = NO_METRICS,
    ) -> None:
        self._priced_by = priced_by
        self._metrics = metrics
        self.counters: dict[Counter, Explained] = {}
        for line in lines:
            of = line.rated.identity
            if of.kind in COUNTED_KINDS and of.segment_no and line.original_period is None:
                counter = Counter(of.tenant_id, of.charge_key, of.segment_no, of.version)
                held = self._held(counter, str(line.rated.metric))
                held.lines = (*held.lines, line.line_key)
                with exactly():
                    held.counted += line.rated.counted

    def add(self, billed: Billed) -> Iterator[Share]:
        """Count an event; its share in each counter. Raises NotAnAmount."""
        event, piece = billed.event, self._priced_by(billed)
        for charge, quantity in charges_of(billed, piece, self._metrics.get(piece.version.plan, ())):
            counter = Counter(event.tenant_id, charge.key, piece.segment_no, piece.version.version)
            at = event.completed_at.replace(minute=0, second=0, microsecond=0)
            hours = self._held(counter, str(charge.metric)).hours
            hour = hours.setdefault(at, CountedHour(at))
            hour.events += 1
            with exactly():
                hour.quantity += quantity
            yield Share(counter, str(charge.metric), event, quantity)

    def _held(self, counter: Counter, metric: str) -> Explained:
        if counter not in self.counters:
            self.counters[counter] = Explained(counter, metric, (), ZERO)
        return self.counters[counter]
