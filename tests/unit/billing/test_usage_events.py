"""Which single events bill, and what they count with their corrections."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from itertools import permutations

import pytest

from billing.rating.usage_events import UsageEvent, corrected

AT = datetime(2026, 10, 5, tzinfo=UTC)


def told(event_id: str, source: str, tokens: int, corrects: str | None = None) -> UsageEvent:
    return UsageEvent(event_id, AT, {"output": Decimal(tokens)}, source=source, corrects=corrects)


@pytest.mark.parametrize("order", list(permutations(range(5))))
def test_corrections_of_weaker_sources_than_the_event_are_left_out_in_any_order(order: tuple[int, ...]) -> None:
    events = [
        told("e", "gateway", 10),
        told("c1", "gateway", 5, "e"),
        told("e", "engine", 15),
        told("c2", "engine", -2, "e"),
        told("c1", "stream", -1, "e"),
    ]
    (counted,) = corrected(events[i] for i in order)
    assert (counted.source, counted.quantities) == ("engine", {"output": Decimal(13)})
