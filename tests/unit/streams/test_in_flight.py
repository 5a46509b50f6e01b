"""Room for requests: what is taken is given back, and nobody takes more than a share."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from streams.http.event_server import MAX_BODY_BYTES, MAX_IN_FLIGHT, MAX_OF_ONE_KEY, Refusal, read_body
from streams.http.in_flight import InFlight, Load, NoRoom

WHOLE, SHARE = Load(8, 800, 80), Load(2, 200, 20)


def test_one_key_leaves_room_for_the_others() -> None:
    room = InFlight(WHOLE, SHARE)
    with ExitStack() as held:
        for _ in range(SHARE.requests):
            held.enter_context(room.request("slow"))
        with pytest.raises(NoRoom, match="this key's"):
            held.enter_context(room.request("slow"))
        other = held.enter_context(room.request("other"))
        other.take(size=SHARE.size)
        with pytest.raises(NoRoom, match="this key's"):
            other.take(size=1)
        other.take(events=SHARE.events)
        assert room.load == Load(3, SHARE.size, SHARE.events)
    assert room.load == Load()


def test_all_together_are_bounded_as_well() -> None:
    room = InFlight(WHOLE, SHARE)
    with ExitStack() as held:
        for number in range(WHOLE.requests):
            held.enter_context(room.request(f"key_{number // SHARE.requests}"))
        with pytest.raises(NoRoom, match="too much is in flight"):
            held.enter_context(room.request("one more"))


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 300), st.integers(0, 30)), max_size=30))
def test_whatever_is_taken_stays_within_the_bounds_and_is_given_back(wanted: list[tuple[str, int, int]]) -> None:
    room = InFlight(WHOLE, SHARE)
    with ExitStack() as held:
        for key, size, events in wanted:
            try:
                place = held.enter_context(room.request(key))
                place.take(size=size)
                place.take(events=events)
            except NoRoom:
                pass
            assert all(now <= most for now, most in zip(room.load, WHOLE, strict=True))
    assert room.load == Load()
    assert not room._by_key


def test_a_body_takes_the_room_of_what_has_come_of_it() -> None:
    """As many bodies without a length as there may be requests, each begun and not ended: they take what they sent."""

    async def slow_bodies() -> Load:
        room = InFlight(MAX_IN_FLIGHT, MAX_OF_ONE_KEY)

        async def one(key: str) -> None:
            begun = iter([{"type": "http.request", "body": b"[" * 100, "more_body": True}])

            async def receive() -> Message:
                return next(begun, None) or await asyncio.Future()

            with room.request(key) as place:
                await read_body(receive, place)

        reading = [asyncio.create_task(one(f"key_{number % 4}")) for number in range(MAX_IN_FLIGHT.requests)]
        await asyncio.sleep(0)
        load = room.load
        for task in reading:
            task.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
        assert room.load == Load()
        return load

    assert asyncio.run(slow_bodies()) == Load(MAX_IN_FLIGHT.requests, 100 * MAX_IN_FLIGHT.requests, 0)


def test_one_keys_bodies_do_not_use_up_the_memory_of_all() -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b" " * MAX_BODY_BYTES, "more_body": False}

    room = InFlight(MAX_IN_FLIGHT, MAX_OF_ONE_KEY)
    with ExitStack() as held:
        places = [held.enter_context(room.request("greedy")) for _ in range(5)]
        for place in places[:4]:
            asyncio.run(read_body(receive, place))
        with pytest.raises(NoRoom, match="this key's"):
            asyncio.run(read_body(receive, places[4]))
        asyncio.run(read_body(receive, held.enter_context(room.request("modest"))))


def test_a_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    async def never() -> Message:
        return await asyncio.Future()

    with InFlight(WHOLE, SHARE).request("slow") as place, pytest.raises(Refusal) as caught:
        asyncio.run(read_body(never, place, within_s=0.01))
    assert caught.value.status == 408
