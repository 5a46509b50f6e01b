"""What waits to be told the quota service: it is sent in parts, again and again until its shard has it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from serving_adapter.quota.connection import NoAnswer
from serving_adapter.quota.lines import OTHER_SHARD, Lines

SEND_AT_MOST: Final = 1000
"""Entries in one call."""
KEPT_AT_MOST: Final = 100_000
"""Entries that wait; the oldest go, counted."""
BACKGROUND_S: Final = 2.0
UNAUTHORIZED: Final = 401
"""What waits then goes on waiting, for the right key."""
_encode: Final = msgspec.json.Encoder().encode


class _Moved(Exception):
    """Tenants are divided otherwise than was known."""


class Outbox:
    """Entries of one kind, each with its `tenant_id`, in the order of their coming for each shard. `told` hears of each
    that the service has, or will never take."""

    def __init__(
        self, path: str, name: str, lines: Lines, counts: Counter[str],
        told: Callable[[dict[str, Any]], None] = lambda entry: None,
    ) -> None:  # fmt: skip
        self._path = path
        self._name = name
        self._lines = lines
        self._counts = counts
        self._told = told
        self._waiting: dict[int, deque[dict[str, Any]]] = {}
        self._size = 0
        self._shards = lines.shards
        """How many shards there were when the entries were divided among them."""

    def __len__(self) -> int:
        return self._size

    def add(self, entry: dict[str, Any]) -> None:
        """Have it sent with the next ones."""
        waiting = self._waiting.setdefault(self._lines.shard_of(entry["tenant_id"]), deque())
        longest = max(self._waiting.values(), key=len)
        if self._size >= KEPT_AT_MOST and longest:
            self._told(longest.popleft())
            self._size -= 1
            self._counts[f"{self._name}_dropped"] += 1
        waiting.append(entry)
        self._size += 1

    def entries(self) -> list[dict[str, Any]]:
        """All that waits."""
        return [entry for waiting in self._waiting.values() for entry in waiting]

    async def send(self) -> None:
        """Send all of it. Raises NoAnswer if a shard does not answer; what the others are told is told."""
        silent: NoAnswer | None = None
        if self._shards != self._lines.shards:
            self._regroup()
        for shard in list(self._waiting):
            try:
                await self._send_to(shard)
            except NoAnswer as error:
                silent = error
        if silent is not None:
            raise silent

    async def _send_to(self, shard: int) -> None:
        waiting = self._waiting.get(shard)
        while waiting:
            part = [waiting.popleft() for _ in range(min(len(waiting), SEND_AT_MOST))]
            try:
                while part:
                    done = await self._send_part(shard, part)
                    for entry in part[:done]:
                        self._told(entry)
                    del part[:done]
                    self._size -= done
            except _Moved:
                waiting.extendleft(reversed(part))
                part = []
                self._regroup()
                return  # the next turn sends it where it belongs
            finally:  # whatever happens, also to a task that is cancelled
                waiting.extendleft(reversed(part))

    async def _send_part(self, shard: int, part: list[dict[str, Any]]) -> int:
        """Send all of it, or less where one in it spoils the whole; how many from its beginning are done with."""
        answer = await self._lines.to(shard).background.call(
            "POST", self._path, _encode({self._name: part}), BACKGROUND_S
        )
        status = answer.status
        if status < 400:
            return len(part)
        if status >= 500 or status == UNAUTHORIZED:
            raise NoAnswer(f"{self._path}: {status}")
        if status == OTHER_SHARD:
            self._lines.learn(answer)
            if self._shards != self._lines.shards:
                raise _Moved
        if len(part) > 1:
            return await self._send_part(shard, part[: len(part) // 2])
        self._counts[f"refused_{status}"] += 1
        return 1

    def _regroup(self) -> None:
        entries, self._waiting, self._size = self.entries(), {}, 0
        self._shards = self._lines.shards
        for entry in entries:
            self.add(entry)
