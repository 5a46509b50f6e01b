"""The list of access keys outlives whatever its reading meets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from streams.http import key_ring
from streams.http.access_keys import AccessKey
from streams.http.key_ring import KeyRing
from streams.settings import DatabaseSettings

RIGHT_IS_MISSING = psycopg.errors.InsufficientPrivilege("permission denied for table access_keys")


def test_keys_are_read_again_after_a_reading_that_the_database_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    ring = KeyRing(DatabaseSettings("postgresql://nowhere"), "emitter", said.append)
    answers: Iterator[Exception | None] = iter([None, RIGHT_IS_MISSING, RIGHT_IS_MISSING, None])
    refused: list[bool] = []

    def read() -> dict[bytes, AccessKey]:
        refused.append(ring.refused_because is not None)
        answer = next(answers)
        if answer is not None:
            raise answer
        return {}

    async def read_four_times() -> None:
        task = asyncio.create_task(ring.keep_fresh())
        while len(refused) < 4 or ring.refused_because is not None:
            assert not task.done(), "the reading has ended for good"
            await asyncio.sleep(0.005)
        task.cancel()

    monkeypatch.setattr(ring, "_read", read)
    monkeypatch.setattr(key_ring, "FRESH_S", 0.01)
    monkeypatch.setattr(key_ring, "AGAIN_S", 0.0)
    asyncio.run(read_four_times())
    ring.close()
    assert refused == [False, False, True, True]
    assert said == ["the access keys cannot be read: permission denied for table access_keys"]
