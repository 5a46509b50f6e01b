"""Slices of busy tenants' quotas: asked for, renewed and given back in the background."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import msgspec

from serving_adapter.quota.connection import NoAnswer
from serving_adapter.quota.groups import LEASE_MARK
from serving_adapter.quota.lines import OTHER_SHARD, Lines
from serving_adapter.quota.outbox import BACKGROUND_S
from serving_adapter.quota.settings import GateSettings
from serving_adapter.quota.slices import Slice
from serving_adapter.quota.tiers import Mode

BUSY_FROM: Final = 8
"""So many requests of a tenant at the service in one turn of the background work: a slice is worth its while."""
CALLS_AT_ONCE: Final = 64
UNLIMITED: Final = 1 << 30
"""Concurrent requests, where no quota limits them."""
_encode: Final = msgspec.json.Encoder().encode

Key = tuple[str, str, str]
"""Tenant, model, adapter."""


class Granted(msgspec.Struct):
    """What a slice holds, or holds more."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    concurrency: int = 0


class LeaseTold(msgspec.Struct):
    """The service's answer about a slice."""

    lease_id: str
    granted: Granted
    ttl_ms: int
    priority: int = 0
    max_tokens: int | None = None
    """Of a request that does not say how long its answer may be."""
    on_unavailable: Mode | None = None
    longest_request_s: float | None = None


_read: Final = msgspec.json.Decoder(LeaseTold).decode


class SliceKeeper:
    """All slices of this process. `heard` is told each answer of the service, with its tenant; `untold`: by slice, how
    many requests out of it have ended of which the service does not know yet: what they used must stay held."""

    def __init__(
        self, settings: GateSettings, lines: Lines, clock: Callable[[], float], counts: Counter[str],
        heard: Callable[[str, LeaseTold], None], untold: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.slices: dict[Key, Slice] = {}
        self.busy: Counter[Key] = Counter()
        """Requests that the service was asked about, since the last turn."""
        self._names: dict[Key, str] = {}
        """Of slices that were asked for without an answer: asked for again, they are the same."""
        self._settings = settings
        self._lines = lines
        self._clock = clock
        self._counts = counts
        self._heard = heard
        self._untold = untold

    async def renew(self) -> None:
        """Give back what is over, renew what is in use, ask for those who are busy: together, so that one that gets no
        answer keeps no other waiting."""
        busy, self.busy = self.busy, Counter()
        now = self._clock()
        due: list[Callable[[], Awaitable[None]]] = []
        for key, held in list(self.slices.items()):
            if now >= held.until and not held.in_flight:
                if not self._untold.get(held.lease_id):
                    due.append(partial(self._end, key, held))
            elif now > held.until - self._settings.slice_ttl / 2:
                due.append(partial(self._ask, key, held))
        due += [partial(self._forget, key) for key in self._names if busy[key] < BUSY_FROM]
        due += [
            partial(self._ask, key, None)
            for key, asked in busy.items()
            if asked >= BUSY_FROM and key not in self.slices
        ]
        at_once = asyncio.Semaphore(CALLS_AT_ONCE)

        async def done(each: Callable[[], Awaitable[None]]) -> None:
            async with at_once:
                try:
                    await each()
                except NoAnswer:
                    self._counts["background_failures"] += 1

        for result in await asyncio.gather(*map(done, due), return_exceptions=True):
            if result is not None:
                raise result

    async def give_all_back(self) -> None:
        """The end: each by itself, so that one that fails keeps no other."""
        while self.slices:
            (tenant_id, _, _), held = self.slices.popitem()
            with contextlib.suppress(NoAnswer):
                await self._give_back(tenant_id, held)
        for key in list(self._names):
            with contextlib.suppress(NoAnswer):
                await self._forget(key)

    async def _ask(self, key: Key, held: Slice | None) -> None:
        tenant_id, model, adapter = key
        settings = self._settings
        if held is None:
            want = (settings.slice_requests, settings.slice_tokens, settings.slice_tokens, UNLIMITED)
        else:  # as much again as was used, twice over
            want = (
                max(2 * held.used_requests - held.requests, 0),
                max(settings.slice_tokens - held.input_tokens, 0),
                max(2 * held.used_output - held.output_tokens, 0),
                max(2 * len(held.in_flight) - held.slots, 0),
            )
            held.used_requests = held.used_output = 0
            if not any(want):
                return
        began = self._clock()
        body = {"tenant_id": tenant_id, "model": model, "adapter": adapter, "holder": settings.holder,
                "ttl_ms": int(settings.slice_ttl * 1000),
                "want": {"requests": want[0], "input_tokens": want[1], "output_tokens": want[2],
                         "concurrency": want[3]}}  # fmt: skip
        if held is None:
            body["name"] = self._names.setdefault(key, secrets.token_hex(8))
        path = "/v1/leases" if held is None else f"/v1/leases/{quote(held.lease_id, safe='')}/renew"
        answer = await self._call(tenant_id, "POST", path, body)
        try:
            told = None if answer is None else _read(answer)
        except msgspec.MsgspecError as error:
            raise NoAnswer(f"{path}: {error}") from None
        if held is None:
            del self._names[key]
        if told is None:
            return
        self._heard(tenant_id, told)
        got = told.granted
        if not any((got.requests, got.input_tokens, got.output_tokens, got.concurrency)):
            return
        until = began + told.ttl_ms / 1000
        if held is None:
            held = self.slices[key] = Slice(told.lease_id, until, told.priority)
        held.max_tokens = told.max_tokens
        held.add(got.requests, got.input_tokens, got.output_tokens, got.concurrency, until)
        self._counts["slices_granted"] += 1

    async def _end(self, key: Key, held: Slice) -> None:
        """A slice that is over stays until the service has it back: who does not know of that holds it for long."""
        await self._give_back(key[0], held)
        del self.slices[key]

    async def _give_back(self, tenant_id: str, held: Slice) -> None:
        unused = {"requests": max(held.requests, 0), "input_tokens": max(held.input_tokens, 0),
                  "output_tokens": max(held.output_tokens, 0), "concurrency": held.slots}  # fmt: skip
        path = f"/v1/leases/{quote(held.lease_id, safe='')}"
        in_flight = len(held.in_flight) + self._untold.get(held.lease_id, 0)
        await self._call(tenant_id, "DELETE", path, {"unused": unused, "in_flight": in_flight})

    async def _forget(self, key: Key) -> None:
        """A slice whose answer was lost is needed no more: nothing runs out of it."""
        path = f"/v1/leases/{quote(f'{key[0]}{LEASE_MARK}{self._names[key]}', safe='')}"
        await self._call(key[0], "DELETE", path, {"in_flight": 0})
        del self._names[key]

    async def _call(self, tenant_id: str, method: str, path: str, body: dict[str, Any]) -> bytes | None:
        """The answer's body; None where the service refuses. Raises NoAnswer."""
        line = self._lines.of(tenant_id)
        answer = await line.background.call(method, path, _encode(body), BACKGROUND_S)
        if answer.status == OTHER_SHARD and self._lines.learn(answer):
            answer = await self._lines.of(tenant_id).background.call(method, path, _encode(body), BACKGROUND_S)
        if answer.status >= 500:
            raise NoAnswer(f"{path}: {answer.status}")
        if answer.status >= 400:
            self._counts[f"refused_{answer.status}"] += 1
            return None
        return answer.body
