"""What is answered before it is written passes no limit, whenever the process is killed, and keeps nobody out."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from typing import Final

from hypothesis import example, given
from hypothesis import strategies as st

from streams.quotas.amounts import Counts, DatedPrice, PriceList
from streams.quotas.calendar import microseconds
from streams.quotas.decisions import Ask, Limits, Row
from streams.quotas.definition_store import NOTHING, Definitions
from streams.quotas.definitions import quota_from
from streams.quotas.entries import Reserved
from tests.simulation.played_service import PlayedService

SECOND: Final = 1_000_000
START: Final = microseconds(datetime(2026, 11, 21, 12, tzinfo=UTC))
LIMIT: Final = {
    ("day", "requests"): 60, ("day", "input_tokens"): 1000, ("day", "output_tokens"): 6000,
    ("day", "total_tokens"): 9000, ("day", "spend"): 12, ("none", "concurrency"): 60, ("hour", "requests"): 60,
}  # fmt: skip
"""Of each so much that some sixty requests come near it."""
PRICE: Final = "0.002"
CHEAPER: Final = "0.0005"
FALLS: Final = START + 30 * SECOND

phases = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 20), st.sampled_from(["kill", "away", "later", "over", ""])),
    max_size=4,
)
"""So many requests of which each is written at once, so many of which none is, and what happens then."""


def service(kind: tuple[str, str], part: int) -> PlayedService:
    """One tenant with one hard quota."""
    document = {"tenant_id": "t", "period": kind[0], "metric": kind[1], "limit": str(LIMIT[kind])}
    quota = quota_from(document, now=datetime(2026, 11, 20, tzinfo=UTC))
    prices = PriceList(DatedPrice("", "output", Decimal(price), at) for price, at in ((PRICE, 0), (CHEAPER, FALLS)))
    limits = Limits(escrow_part=part)
    return PlayedService(limits, Definitions(NOTHING, {"t": [quota]}, {}), ["t"], START, {"t": prices})


def units(metric: str, entry: Reserved) -> int | float:
    """What a request may come to."""
    return {
        "requests": 1, "concurrency": 1, "input_tokens": entry.input_tokens, "output_tokens": entry.output_cap,
        "total_tokens": entry.input_tokens + entry.output_cap,
        "spend": entry.output_cap * float(PRICE if entry.at < FALLS else CHEAPER),
    }[metric]  # fmt: skip


def used(entry: Reserved) -> Row:
    """The usage event of a request that came to all that at once."""
    counts = Counts(1, entry.input_tokens, 0, entry.output_cap)
    return Row("t", entry.request_id, 1, entry.at, entry.model, "", bills=True, first=True, counts=counts)


@example(("hour", "requests"), 1, [(10, 50, "kill"), (0, 0, "over")], 0)
@example(("day", "spend"), 1, [(5, 30, "away"), (80, 0, "")], 0)
@given(st.sampled_from(sorted(LIMIT)), st.sampled_from([1, 2, 8]), phases, st.integers(0, 2**32))
def test_no_limit_is_passed_by_what_was_answered(
    kind: tuple[str, str], part: int, phases: list[tuple[int, int, str]], seed: int
) -> None:
    rng, played, now, answered, number = Random(seed), service(kind, part), START, 0.0, 0
    in_flight: list[Reserved] = []
    for written, unwritten, then in [*phases, (80, 0, "")]:
        for each in range(written + unwritten):
            now, number = now + 1000, number + 1
            model, tokens, output = rng.choice(("m-1", "m-2")), rng.choice((0, 60)), rng.choice((1, 190))
            answer = played.ask(Ask("t", f"r{number}", model, tokens, max_tokens=output), now)
            if isinstance(answer, Reserved):
                answered += units(kind[1], answer)
                in_flight.append(answer)
            if each < written:
                played.write()
            drained = LIMIT[kind] * (now - START) / (3600 * SECOND) if kind[0] == "hour" else 0
            assert answered <= LIMIT[kind] + drained + 1e-9
        if then in ("kill", "away"):
            played.crash()
            now += 31 * SECOND if then == "away" else 1
            played.restart(now)
        elif then == "later":
            now += 31 * SECOND  # escrows are renewed, or end
            played.tick(now)
        elif then == "over":
            now += 1021 * SECOND  # and what is held for answers that nobody knows
            played.ingest([used(each) for each in in_flight])
            played.tick(now)
            in_flight.clear()
            answered *= kind[1] != "concurrency"


@given(st.sampled_from(["day", "hour"]), st.sampled_from([1, 2, 8]), st.lists(st.booleans(), min_size=70, max_size=100))
def test_it_keeps_nobody_out(period: str, part: int, writes: list[bool]) -> None:
    """As many are admitted as the limit says, before anything is settled."""
    played, admitted = service((period, "requests"), part), 0
    for number, is_written in enumerate(writes):
        answer = played.ask(Ask("t", f"r{number}", "m-1", 1, max_tokens=10), START + number * 1000)
        admitted += isinstance(answer, Reserved)
        if is_written:
            played.write()
    assert admitted == LIMIT[period, "requests"]
    assert played.answered_at_once > 0
