"""An open breaker lets one call through: whatever becomes of it, the service is asked again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from serving_adapter.quota.connection import Answer, NoAnswer
from serving_adapter.quota.gate import QuotaGate
from tests.unit.serving_adapter.quota.test_gate_answers import Played, made, says


def opened(now: list[float]) -> tuple[QuotaGate, Played]:
    """A gate whose breaker is open, at a clock that stands still then."""

    def silent(path: str, body: Any) -> Answer:
        raise NoAnswer("silent")

    gate, played = made(silent, clock=lambda: now[0])

    async def fail() -> None:
        for number in range(5):
            now[0] = 0.03 * min(number, 2)
            await gate.admit("t1", f"fails-{number}", "m", 10, 100, tier="paid")

    asyncio.run(fail())
    assert len(played.asked) == 3
    return gate, played


@pytest.mark.parametrize("status", [401, 404, 421, 429])
def test_any_answer_of_the_service_closes_the_breaker(status: int) -> None:
    now = [0.0]
    gate, played = opened(now)
    played.say = says(status)
    now[0] = 10.0
    asyncio.run(gate.admit("t1", "probe", "m", 10, 100))
    asyncio.run(gate.admit("t1", "next", "m", 10, 100))
    assert [body["request_id"] for path, body in played.asked[3:] if path == "/v1/reservations"] == ["probe", "next"]


def test_a_probe_that_is_cancelled_makes_room_for_another() -> None:
    now = [0.0]
    gate, played = opened(now)

    async def hang(method: str, path: str, body: bytes, within_s: float) -> Answer:
        await asyncio.sleep(60)
        raise AssertionError

    async def run() -> None:
        now[0] = 10.0
        answering, played.call = played.call, hang  # type: ignore[method-assign]
        probe = asyncio.ensure_future(gate.admit("t1", "probe", "m", 10, 100))
        await asyncio.sleep(0)
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        played.call, played.say = answering, says(429)  # type: ignore[method-assign]
        assert (await gate.admit("t1", "next", "m", 10, 100)).source == "service"

    asyncio.run(run())
