"""The way to each shard of the quota service: shard n listens on the first one's port + n.

How many shards there are is learnt from the first answer that says that a tenant is of another one (421).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from serving_adapter.quota.breaker import Breaker
from serving_adapter.quota.connection import Answer, NoAnswer, QuotaConnection
from serving_adapter.quota.groups import SHARDS_AT_MOST, shard_of
from serving_adapter.quota.settings import GateSettings

OTHER_SHARD: Final = 421
SHARDS_HEADER: Final = "x-tollbook-shards"

Connect = Callable[[str, int, str], QuotaConnection]
"""Makes a connection to a host and a port, with a key."""


class Line:
    """One shard: a connection for those who wait, one for what is done in the background, and a breaker."""

    def __init__(self, settings: GateSettings, shard: int, connect: Connect, clock: Callable[[], float]) -> None:
        address = settings.host, settings.port + shard, settings.secret
        self._waited_for = connect(*address)
        self.background = connect(*address)
        self.breaker = Breaker(settings.failures_to_open, settings.longest_pause)
        self._clock = clock

    async def ask(self, path: str, body: bytes, within_s: float) -> Answer | None:
        """The answer to one who waits; None if there is none in time."""
        try:
            answer = await self._waited_for.call("POST", path, body, within_s)
        except NoAnswer:
            self.breaker.failed(self._clock())
            return None
        except BaseException:
            self.breaker.gave_up()
            raise
        if answer.status >= 500:
            self.breaker.failed(self._clock())
        else:
            self.breaker.succeeded()
        return answer

    def close(self) -> None:
        """End both connections."""
        self._waited_for.close()
        self.background.close()


class Lines:
    """The lines to all shards, made as they are needed."""

    def __init__(self, settings: GateSettings, connect: Connect, clock: Callable[[], float]) -> None:
        self.shards = 1
        """How many shards there are, as far as is known."""
        self._settings = settings
        self._connect = connect
        self._clock = clock
        self._lines: dict[int, Line] = {}

    def shard_of(self, tenant_id: str) -> int:
        """The shard that answers for a tenant."""
        return 0 if self.shards == 1 else shard_of(tenant_id, self.shards)

    def of(self, tenant_id: str) -> Line:
        """The line to a tenant's shard."""
        return self.to(self.shard_of(tenant_id))

    def to(self, shard: int) -> Line:
        """The line to a shard."""
        line = self._lines.get(shard)
        if line is None:
            line = self._lines[shard] = Line(self._settings, shard, self._connect, self._clock)
        return line

    @property
    def breakers(self) -> list[Breaker]:
        """Of the lines that were needed."""
        return [line.breaker for line in self._lines.values()]

    def learn(self, answer: Answer) -> bool:
        """Take from an answer how many shards there are; whether they are more or fewer than was known."""
        told = dict(answer.headers).get(SHARDS_HEADER, "")
        if not told.isdigit() or not 1 <= int(told) <= SHARDS_AT_MOST or int(told) == self.shards:
            return False
        self.shards = int(told)
        return True

    def close(self) -> None:
        """End all of them."""
        for line in self._lines.values():
            line.close()
