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
from billing.periods import BillingPeriod
from billing.plans.subscriptions import Piece
from billing.rating import LineKind, RatedLine
from billing.usage.billed_events import Billed, charges_of
from billing.usage.usage_digest import BilledEvent

NO_METRICS: Final[Mapping[str, Collection[str]]] = {}
COUNTED_KINDS: Final = (LineKind.USAGE, LineKind.OVERAGE)


class Counter(NamedTuple):
    """What counts together: a charge of a tenant's plan in one segment and price version of a period."""

    tenant_id: str
    charge: str
    segment: int
    version: str
    period: str


@dataclass(slots=True)
class CountedHour:
    """An hour's share in a counter: its events, and their units."""

    hour: datetime
    events: int = 0
    quantity: Decimal = ZERO


@dataclass(slots=True)
class Explained:
    """A counter: the lines that it fills, the units they stand for, and what the events come to by hour.

    Of a period that was billed before: what all documents that change it stand for, and what `waits` for one.
    """

    counter: Counter
    metric: str
    lines: tuple[str, ...]
    counted: Decimal
    waits: Decimal = ZERO
    hours: dict[datetime, CountedHour] = field(default_factory=dict)

    @property
    def found(self) -> Decimal:
        """The units of all its events."""
        return total(hour.quantity for hour in self.hours.values())

    @property
    def agrees(self) -> bool:
        """Whether the events make what the lines stand for."""
        with exactly():
            return self.found == self.counted + self.waits


@dataclass(frozen=True, slots=True)
class Share:
    """What one event counts towards a counter, in units of its metric."""

    counter: Counter
    metric: str
    event: BilledEvent
    quantity: Decimal


class Explanation:
    """A document's lines of a period, filled up with the events that they bill as they pass. Keeps hours, no events.

    `priced_by` says which piece prices an event, `metrics` what each plan declares.
    """

    def __init__(
        self,
        period: BillingPeriod,
        lines: Iterable[InvoiceLine],
        priced_by: Callable[[Billed], Piece] = lambda billed: billed.piece,
        metrics: Mapping[str, Collection[str]] = NO_METRICS,
    ) -> None:
        self._period = period.name
        self._priced_by = priced_by
        self._metrics = metrics
        self.counters: dict[Counter, Explained] = {}
        for line in lines:
            if (held := self._of(line.rated)) is not None:
                held.lines = (*held.lines, line.line_key)
                with exactly():
                    held.counted += line.rated.counted

    def of_earlier(self, own: Iterable[RatedLine], billed: Iterable[RatedLine], rated: Iterable[RatedLine]) -> None:
        """The period was billed before: its lines are on its own invoice, on all its documents, and as it is rated."""
        for held in self.counters.values():
            held.counted = ZERO
        for counts, waits, listed in ((-1, 0, own), (1, -1, billed), (0, 1, rated)):
            for line in listed:
                if (held_by := self._of(line)) is not None:
                    with exactly():
                        held_by.counted += counts * line.counted
                        held_by.waits += waits * line.counted

    def add(self, billed: Billed, sign: int = 1) -> Iterator[Share]:
        """Count an event (−1: one that does not bill any more); its share in each counter."""
        event, piece = billed.event, self._priced_by(billed)
        for charge, quantity in charges_of(billed, piece, self._metrics.get(piece.version.plan, ())):
            counter = Counter(event.tenant_id, charge.key, piece.segment_no, piece.version.version, self._period)
            at = event.completed_at.replace(minute=0, second=0, microsecond=0)
            hours = self._held(counter, str(charge.metric)).hours
            hour = hours.setdefault(at, CountedHour(at))
            hour.events += 1
            with exactly():
                signed = sign * quantity
                hour.quantity += signed
            yield Share(counter, str(charge.metric), event, signed)

    def _of(self, line: RatedLine) -> Explained | None:
        """The counter of a line, None for one that counts no events."""
        of = line.identity
        if of.kind not in COUNTED_KINDS or not of.segment_no:
            return None
        counter = Counter(of.tenant_id, of.charge_key, of.segment_no, of.version, self._period)
        return self._held(counter, str(line.metric))

    def _held(self, counter: Counter, metric: str) -> Explained:
        if counter not in self.counters:
            self.counters[counter] = Explained(counter, metric, (), ZERO)
        return self.counters[counter]
