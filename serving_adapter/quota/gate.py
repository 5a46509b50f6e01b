"""What admission calls before and after each request.

`admit` decides out of a slice of the tenant's quotas where there is one (about a microsecond), else asks the service
(5 ms at most), else goes by the tier's fail mode; what it decides without the service is told the service afterwards.
Slices are asked for once a tenant is busy, and renewed in the background; `settle` is collected and sent together.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from serving_adapter.quota.breaker import Breaker
from serving_adapter.quota.connection import Answer, NoAnswer, QuotaConnection
from serving_adapter.quota.settings import OTHER_TIERS, GateSettings
from serving_adapter.quota.slices import Slice
from serving_adapter.quota.tiers import Mode

BUSY_FROM: Final = 8
"""So many requests of a tenant at the service in one turn of the background work: a slice is worth its while."""
TURN_S: Final = 0.1
SEND_AT_MOST: Final = 1000
"""Settlements in one call."""
KEPT_AT_MOST: Final = 100_000
"""Settlements and decisions that wait for the service, and requests that were never settled; the oldest go, counted."""
OF_THE_TENANT: Final = (200, 400, 403, 409, 429)
"""Answers about a request. Any other (a wrong key, another shard's tenant) is about this gate, and refuses nobody."""
UNAUTHORIZED: Final = 401
"""What waits then goes on waiting, for the right key."""
FOR_THE_TENANT: Final = ("retry-after", "ratelimit", "x-ratelimit", "x-should-retry", "content-type")
"""How the headers begin that a refusal's answer bears."""
BACKGROUND_S: Final = 2.0
UNLIMITED: Final = 1 << 30
"""Concurrent requests, where no quota limits them."""
TENANTS_REMEMBERED: Final = 10_000
_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Admission:
    """An answer. `source` says who gave it; `headers` belong into a refusal's answer to the tenant."""

    allowed: bool
    max_tokens: int
    priority: int
    source: Literal["slice", "service", "fail_mode"]
    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class QuotaGate:
    """One for each process that admits requests. Everything on one event loop."""

    def __init__(self, settings: GateSettings, clock: Any = time.monotonic) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """What happened: for metrics."""
        self._clock = clock
        self._connection = QuotaConnection(settings.host, settings.port, settings.secret)
        self._background = QuotaConnection(settings.host, settings.port, settings.secret)
        self._breaker = Breaker(settings.failures_to_open, settings.open_for)
        self._slices: dict[tuple[str, str, str], Slice] = {}
        self._busy: Counter[tuple[str, str, str]] = Counter()
        self._of_slice: dict[tuple[str, str, int], Slice] = {}
        self._modes: dict[str, Mode] = {}
        self._safe: Counter[str] = Counter()
        self._without_service: dict[tuple[str, str, int], None] = {}
        self._settlements: deque[dict[str, Any]] = deque()
        self._decisions: deque[dict[str, Any]] = deque()
        self._turning: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin the background work."""
        self._turning = asyncio.get_running_loop().create_task(self._turn_again_and_again())

    async def stop(self) -> None:
        """Send what waits, give slices back, end."""
        if self._turning is not None:
            self._turning.cancel()
            await asyncio.gather(self._turning, return_exceptions=True)
        with contextlib.suppress(NoAnswer):
            await self._send_waiting()
            for held in self._slices.values():
                await self._give_back(held)
        self._slices.clear()
        self._connection.close()
        self._background.close()

    def try_slice(
        self,
        tenant_id: str,
        request_id: str,
        model: str,
        input_tokens: int,
        max_tokens: int,
        *,
        attempt: int = 1,
        adapter: str = "",
        copies: int = 1,
    ) -> int | None:
        """The priority of a request that a slice holds; None if the service has to be asked. No waiting."""
        held = self._slices.get((tenant_id, model, adapter))
        if held is None or not held.admit(request_id, attempt, input_tokens, max_tokens * copies, self._clock()):
            return None
        if len(self._of_slice) >= KEPT_AT_MOST:
            del self._of_slice[next(iter(self._of_slice))]
            self.counts["never_settled"] += 1
        self._of_slice[tenant_id, request_id, attempt] = held
        return held.priority

    async def admit(
        self, tenant_id: str, request_id: str, model: str, input_tokens: int, max_tokens: int | None, *,
        attempt: int = 1, adapter: str = "", n: int = 1, prompts: int = 1, tier: str = "",
    ) -> Admission:  # fmt: skip
        """Decide about a request. Never raises, and never waits longer than the deadline."""
        if max_tokens is not None:
            priority = self.try_slice(
                tenant_id,
                request_id,
                model,
                input_tokens,
                max_tokens,
                attempt=attempt,
                adapter=adapter,
                copies=n * prompts,
            )
            if priority is not None:
                self.counts["slice"] += 1
                return Admission(True, max_tokens, priority, "slice")
        now = self._clock()
        if self._breaker.may_call(now):
            asked = {"tenant_id": tenant_id, "request_id": request_id, "model": model, "input_tokens": input_tokens,
                     "max_tokens": max_tokens, "attempt": attempt, "adapter": adapter, "n": n, "prompts": prompts,
                     "tier": tier}  # fmt: skip
            try:
                answer = await self._connection.call("POST", "/v1/reservations", _encode(asked), self.settings.deadline)
            except NoAnswer:
                self._breaker.failed(self._clock())
            except BaseException:
                self._breaker.gave_up()
                raise
            else:
                if answer.status >= 500:
                    self._breaker.failed(self._clock())
                else:
                    self._breaker.succeeded()
                if answer.status in OF_THE_TENANT:
                    self._busy[tenant_id, model, adapter] += 1
                    return self._told(tenant_id, answer)
                self.counts[f"not_served_{answer.status}"] += 1
        return self._by_fail_mode(tenant_id, request_id, attempt, max_tokens, tier)

    def settle(
        self, tenant_id: str, request_id: str, *, attempt: int = 1, final: bool = True, input_tokens: int,
        output_tokens: int, cache_hit_tokens: int = 0, gpu_us: int = 0, model: str = "", adapter: str = "",
        dispatched: bool = True,
    ) -> None:  # fmt: skip
        """Note what an attempt has used; it is sent with others, again and again until the service has it."""
        key = (tenant_id, request_id, attempt)
        held = self._of_slice.pop(key, None)
        lease_id = ""
        if held is not None and held.settle(request_id, attempt, input_tokens, output_tokens):
            lease_id = held.lease_id
        self._ends_without_service(key)
        if len(self._settlements) >= KEPT_AT_MOST:
            self._settlements.popleft()
            self.counts["settlements_dropped"] += 1
        self._settlements.append(
            {"tenant_id": tenant_id, "request_id": request_id, "attempt": attempt, "final": final, "model": model,
             "adapter": adapter, "input_tokens": input_tokens, "output_tokens": output_tokens, "gpu_us": gpu_us,
             "cache_hit_tokens": cache_hit_tokens, "dispatched": dispatched, "lease_id": lease_id}
        )  # fmt: skip

    def _told(self, tenant_id: str, answer: Answer) -> Admission:
        self.counts["service"] += 1
        if answer.status != 200:
            headers = tuple(header for header in answer.headers if header[0].startswith(FOR_THE_TENANT))
            return Admission(False, 0, 0, "service", answer.status, answer.body, headers)
        told = msgspec.json.decode(answer.body)
        if len(self._modes) >= TENANTS_REMEMBERED:
            self._modes.clear()
        self._modes[tenant_id] = told["on_unavailable"]
        return Admission(True, told["max_tokens"], told["priority"], "service", 200, answer.body)

    def _by_fail_mode(
        self, tenant_id: str, request_id: str, attempt: int, max_tokens: int | None, tier: str
    ) -> Admission:
        """Decide without the service. The service tells what its tier and its quotas say about a tenant; of
        tenants that it never told about, the mode of the tier that is given holds."""
        settings, key = self.settings, (tenant_id, request_id, attempt)
        mode = self._modes.get(tenant_id) or settings.tier_modes.get(tier, OTHER_TIERS)
        tokens = settings.safe_tokens if max_tokens is None else max_tokens
        allowed = mode == "allow"
        if mode == "safe_capacity":
            tokens = min(tokens, settings.safe_tokens)
            allowed = key in self._without_service or self._safe[tenant_id] < settings.safe_requests
        self.counts[f"fail_mode_{mode}_{'admitted' if allowed else 'refused'}"] += 1
        if allowed and key not in self._without_service:
            if len(self._without_service) >= KEPT_AT_MOST:
                self._ends_without_service(next(iter(self._without_service)))
                self.counts["never_settled"] += 1
            self._without_service[key] = None
            self._safe[tenant_id] += 1
        if len(self._decisions) >= KEPT_AT_MOST:
            self._decisions.popleft()
            self.counts["decisions_dropped"] += 1
        self._decisions.append(
            {"tenant_id": tenant_id, "request_id": request_id, "attempt": attempt, "mode": mode, "admitted": allowed}
        )
        return Admission(allowed, tokens if allowed else 0, 0, "fail_mode", 200 if allowed else 503)

    def _ends_without_service(self, key: tuple[str, str, int]) -> None:
        """A request that was let in by a fail mode is over; any other is none of its business."""
        if key in self._without_service:
            del self._without_service[key]
            self._safe[key[0]] -= 1
            if not self._safe[key[0]]:
                del self._safe[key[0]]

    async def _turn_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            try:
                await self._send_waiting()
                await self._renew_slices()
            except NoAnswer:
                self.counts["background_failures"] += 1

    async def _send_waiting(self) -> None:
        for waiting, path, name in (
            (self._decisions, "/v1/decisions", "decisions"),
            (self._settlements, "/v1/settlements", "settlements"),
        ):
            while waiting:
                part = [waiting.popleft() for _ in range(min(len(waiting), SEND_AT_MOST))]
                try:
                    while part:
                        del part[: await self._send_part(path, name, part)]
                except NoAnswer:
                    waiting.extendleft(reversed(part))
                    raise

    async def _send_part(self, path: str, name: str, part: list[dict[str, Any]]) -> int:
        """Send all of it, or less where one in it spoils the whole; how many from its beginning are done with."""
        status, _, _ = await self._background.call("POST", path, _encode({name: part}), BACKGROUND_S)
        if status < 400:
            return len(part)
        if status >= 500 or status == UNAUTHORIZED:
            raise NoAnswer(f"{path}: {status}")
        if len(part) > 1:
            return await self._send_part(path, name, part[: len(part) // 2])
        self.counts[f"refused_{status}"] += 1
        return 1

    async def _renew_slices(self) -> None:
        busy, self._busy = self._busy, Counter()
        now = self._clock()
        for key, held in list(self._slices.items()):
            if now >= held.until and not held.in_flight:
                del self._slices[key]
                await self._give_back(held)
            elif now > held.until - self.settings.slice_ttl / 2:
                await self._ask_for_slice(key, held)
        for key, asked in busy.items():
            if asked >= BUSY_FROM and key not in self._slices:
                await self._ask_for_slice(key, None)

    async def _ask_for_slice(self, key: tuple[str, str, str], held: Slice | None) -> None:
        tenant_id, model, adapter = key
        settings = self.settings
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
        path = "/v1/leases" if held is None else f"/v1/leases/{quote(held.lease_id, safe='')}/renew"
        told = await self._call("POST", path, body)
        got = told["granted"]
        until = began + told["ttl_ms"] / 1000
        if held is None:
            if not any(got.values()):
                return
            held = self._slices[key] = Slice(told["lease_id"], until, told["priority"])
        if any(got.values()):
            held.add(got["requests"], got["input_tokens"], got["output_tokens"], got["concurrency"], until)
            self.counts["slices_granted"] += 1
        self._modes[tenant_id] = told["on_unavailable"]

    async def _give_back(self, held: Slice) -> None:
        unused = {"requests": max(held.requests, 0), "input_tokens": max(held.input_tokens, 0),
                  "output_tokens": max(held.output_tokens, 0), "concurrency": held.slots}  # fmt: skip
        path = f"/v1/leases/{quote(held.lease_id, safe='')}"
        await self._call("DELETE", path, {"unused": unused, "in_flight": len(held.in_flight)})

    async def _call(self, method: str, path: str, body: dict[str, Any]) -> Any:
        status, _, answer = await self._background.call(method, path, _encode(body), BACKGROUND_S)
        if status >= 500:
            raise NoAnswer(f"{path}: {status}")
        if status >= 400:
            self.counts[f"refused_{status}"] += 1
            return {"granted": {}, "ttl_ms": 0, "on_unavailable": OTHER_TIERS, "lease_id": "", "priority": 0}
        return msgspec.json.decode(answer) if answer else None
