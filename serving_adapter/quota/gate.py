"""What admission calls before and after each request.

`admit` decides out of a slice of the tenant's quotas where there is one (about a microsecond), else asks the service
(5 ms at most), else goes by the tier's fail mode; what it decides without the service is told the service afterwards.
Slices are asked for once a tenant is busy, and renewed in the background; `settle` is collected and sent together.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal

import msgspec

from serving_adapter.quota.breaker import Breaker
from serving_adapter.quota.connection import Answer, NoAnswer, QuotaConnection
from serving_adapter.quota.kept_decisions import KeptDecisions
from serving_adapter.quota.lines import OTHER_SHARD, Connect, Lines
from serving_adapter.quota.outbox import KEPT_AT_MOST, Outbox
from serving_adapter.quota.settings import OTHER_TIERS, GateSettings
from serving_adapter.quota.slice_keeper import LeaseTold, SliceKeeper
from serving_adapter.quota.slices import Slice
from serving_adapter.quota.tiers import Mode

TURN_S: Final = 0.1
STOP_WITHIN_S: Final = 2.0
"""How long the end waits for the service to take what waits for it."""
OF_THE_TENANT: Final = (200, 400, 403, 409, 429)
"""Answers about a request. Any other (a wrong key, a shard that is none) is about this gate, and refuses nobody."""
FOR_THE_TENANT: Final = ("retry-after", "ratelimit", "x-ratelimit", "x-should-retry", "content-type")
"""How the headers begin that a refusal's answer bears."""
TENANTS_REMEMBERED: Final = 10_000
SAID_AT_MOST: Final = 20
"""Different errors of the background work."""
SLICED: Final = "slice"
"""In the place of a nonce, where the service was not asked."""
_encode: Final = msgspec.json.Encoder().encode


class Told(msgspec.Struct):
    """What of the service's answer to a request counts here."""

    max_tokens: int = 0
    priority: int = 0
    on_unavailable: Mode | None = None
    longest_request_s: float | None = None


_read: Final = msgspec.json.Decoder(Told).decode


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
    nonce: str = SLICED
    """The question that was answered: what `withdraw` takes back."""


class QuotaGate:
    """One for each process that admits requests. Everything on one event loop."""

    def __init__(
        self, settings: GateSettings, clock: Callable[[], float] = time.monotonic, connect: Connect = QuotaConnection
    ) -> None:
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """What happened: for metrics."""
        self.longest_request_s = float("inf")
        """How long a request may run until its reservation ends, as the service told it last."""
        self._clock = clock
        self._lines = Lines(settings, connect, clock)
        self._untold: Counter[str] = Counter()
        """By slice: requests out of it that are settled, and of which the service was not told yet."""
        self._keeper = SliceKeeper(settings, self._lines, clock, self.counts, self._heard, self._untold)
        self._slices = self._keeper.slices
        self._of_slice: dict[tuple[str, str, int], Slice] = {}
        self._modes: dict[str, Mode] = {}
        self._safe: Counter[str] = Counter()
        self._without_service: dict[tuple[str, str, int], None] = {}
        self._settlements = Outbox("/v1/settlements", "settlements", self._lines, self.counts, self._is_told)
        self._decisions = Outbox("/v1/decisions", "decisions", self._lines, self.counts)
        self._nonces = map((secrets.token_hex(6) + ".{:x}").format, itertools.count())
        self._kept: KeptDecisions | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._said: set[str] = set()

    async def start(self) -> None:
        """Begin the background work. Raises OSError if decisions cannot be kept where the settings say."""
        if self.settings.keep_in is not None:
            self._kept = KeptDecisions(self.settings.keep_in)
            for entry in self._kept.take_up():
                self._decisions.add(entry)
        loop = asyncio.get_running_loop()
        turning = (self._again_and_again(self._send_waiting), self._again_and_again(self._keeper.renew))
        self._tasks = [loop.create_task(each) for each in turning]

    async def stop(self) -> None:
        """Send what waits, give slices back, end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_WITHIN_S):
                while not await self._send_waiting():
                    await asyncio.sleep(TURN_S)
        with contextlib.suppress(TimeoutError):  # what was used out of slices is told before: they hold the rest alone
            async with asyncio.timeout(STOP_WITHIN_S):
                await self._keeper.give_all_back()
        self._lines.close()
        if self._kept is not None:
            self._kept.close()

    @property
    def breakers(self) -> list[Breaker]:
        """Of each shard that was asked."""
        return self._lines.breakers

    @property
    def waiting(self) -> int:
        """Settlements and decisions that the service was not told yet."""
        return len(self._settlements) + len(self._decisions)

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
        attempt: int = 1, adapter: str = "", n: int = 1, prompts: int = 1, tier: str = "", may_be_followed: bool = True,
    ) -> Admission:  # fmt: skip
        """Decide about a request. Never raises, and never waits longer than the deadline.

        `may_be_followed`: somebody may try another attempt of it, here or elsewhere, if this one is refused.
        """
        held = self._slices.get((tenant_id, model, adapter))
        tokens = max_tokens if max_tokens is not None or held is None else held.max_tokens
        if tokens is not None:
            priority = self.try_slice(
                tenant_id,
                request_id,
                model,
                input_tokens,
                tokens,
                attempt=attempt,
                adapter=adapter,
                copies=n * prompts,
            )
            if priority is not None:
                self.counts["slice"] += 1
                return Admission(True, tokens, priority, "slice")
        nonce = next(self._nonces)
        asked = {"tenant_id": tenant_id, "request_id": request_id, "model": model, "input_tokens": input_tokens,
                 "max_tokens": max_tokens, "attempt": attempt, "adapter": adapter, "n": n, "prompts": prompts,
                 "tier": tier, "nonce": nonce}  # fmt: skip
        try:
            answer, may_be_reserved, why = await self._ask(tenant_id, _encode(asked))
        except BaseException:
            self.withdraw(tenant_id, request_id, nonce, attempt=attempt, may_be_followed=may_be_followed)
            raise
        if answer is not None:
            self._keeper.busy[tenant_id, model, adapter] += 1
            return self._told(tenant_id, answer, nonce)
        about = {"model": model, "adapter": adapter, "tier": tier, "input_tokens": input_tokens}
        admission = self._by_fail_mode(tenant_id, request_id, attempt, max_tokens, tier, why | about)
        if may_be_reserved and not admission.allowed:
            self.withdraw(tenant_id, request_id, nonce, attempt=attempt, may_be_followed=may_be_followed)
        return replace(admission, nonce=nonce)

    def settle(
        self, tenant_id: str, request_id: str, *, attempt: int = 1, final: bool = True, input_tokens: int,
        output_tokens: int, cache_hit_tokens: int = 0, gpu_us: int = 0, model: str = "", adapter: str = "",
        dispatched: bool = True, nonce: str = "",
    ) -> None:  # fmt: skip
        """Note what an attempt has used; it is sent with others, again and again until the service has it."""
        key = (tenant_id, request_id, attempt)
        held = self._of_slice.pop(key, None)
        lease_id, lease_no = "", 0
        if held is not None and held.settle(request_id, attempt, input_tokens, output_tokens):
            held.settled_no += 1
            lease_id, lease_no = held.lease_id, held.settled_no
            self._untold[lease_id] += 1
        self._ends_without_service(key)
        self._settlements.add(
            {"tenant_id": tenant_id, "request_id": request_id, "attempt": attempt, "final": final, "model": model,
             "adapter": adapter, "input_tokens": input_tokens, "output_tokens": output_tokens, "gpu_us": gpu_us,
             "cache_hit_tokens": cache_hit_tokens, "dispatched": dispatched, "lease_id": lease_id,
             "lease_no": lease_no, "nonce": nonce}
        )  # fmt: skip

    def withdraw(
        self, tenant_id: str, request_id: str, nonce: str, *, attempt: int = 1, may_be_followed: bool = True
    ) -> None:
        """What was, or may have been, admitted will not run: the service is told, so that nothing stays reserved for
        it. `nonce`: of the admission; the same attempt that was asked for again since, here or elsewhere, stays."""
        self.settle(
            tenant_id, request_id, attempt=attempt, final=not may_be_followed, input_tokens=0, output_tokens=0,
            dispatched=False, nonce=nonce,
        )  # fmt: skip
        self.counts["withdrawn"] += 1

    async def _ask(self, tenant_id: str, body: bytes) -> tuple[Answer | None, bool, dict[str, Any]]:
        """The service's answer about a request, if it has one in time; and else whether it may have admitted it, and
        why there is none."""
        end = self._clock() + self.settings.deadline
        for _ in range(2):  # once more where the tenant is of another shard
            now = self._clock()
            line = self._lines.of(tenant_id)
            if not line.breaker.may_call(now):
                return None, False, {"cause": "breaker_open"}
            answer = await line.ask("/v1/reservations", body, max(end - now, 0.001))
            if answer is None:
                return None, True, {"cause": "no_answer"}
            if answer.status in OF_THE_TENANT:
                return answer, True, {}
            self.counts[f"not_served_{answer.status}"] += 1
            if answer.status != OTHER_SHARD or not self._lines.learn(answer):
                return None, answer.status >= 500, {"cause": "not_served", "status": answer.status}
        return None, False, {"cause": "not_served", "status": OTHER_SHARD}

    def _told(self, tenant_id: str, answer: Answer, nonce: str) -> Admission:
        self.counts["service"] += 1
        try:
            told = _read(answer.body)
        except msgspec.MsgspecError:
            told = Told()
        self._heard(tenant_id, told)
        if answer.status != 200:
            headers = tuple(header for header in answer.headers if header[0].startswith(FOR_THE_TENANT))
            return Admission(False, 0, 0, "service", answer.status, answer.body, headers, nonce)
        return Admission(True, told.max_tokens, told.priority, "service", 200, answer.body, nonce=nonce)

    def _heard(self, tenant_id: str, told: Told | LeaseTold) -> None:
        """What an answer says beside itself; one that does not say it leaves what was known."""
        if told.longest_request_s is not None:
            self.longest_request_s = told.longest_request_s
        if told.on_unavailable is not None:
            if len(self._modes) >= TENANTS_REMEMBERED and tenant_id not in self._modes:
                del self._modes[next(iter(self._modes))]
            self._modes[tenant_id] = told.on_unavailable

    def _by_fail_mode(
        self, tenant_id: str, request_id: str, attempt: int, max_tokens: int | None, tier: str, basis: dict[str, Any]
    ) -> Admission:
        """Decide without the service. The service tells what its tier and its quotas say about a tenant; of tenants
        that it never told about, the mode of the tier that is given holds. `basis`: what `quota why` is to show."""
        settings, key = self.settings, (tenant_id, request_id, attempt)
        mode = self._modes.get(tenant_id) or settings.tier_modes.get(tier, OTHER_TIERS)
        tokens = settings.safe_tokens if max_tokens is None else max_tokens
        allowed = mode == "allow"
        basis |= {"deadline_ms": settings.deadline * 1000, "decided_at": datetime.now(UTC), "max_tokens": max_tokens}
        if mode == "safe_capacity":
            basis |= {"safe_requests": settings.safe_requests, "in_flight": self._safe[tenant_id],
                      "safe_tokens": settings.safe_tokens}  # fmt: skip
            tokens = min(tokens, settings.safe_tokens)
            allowed = key in self._without_service or self._safe[tenant_id] < settings.safe_requests
        self.counts[f"fail_mode_{mode}_{'admitted' if allowed else 'refused'}"] += 1
        if allowed and key not in self._without_service:
            if len(self._without_service) >= KEPT_AT_MOST:
                self._ends_without_service(next(iter(self._without_service)))
                self.counts["never_settled"] += 1
            self._without_service[key] = None
            self._safe[tenant_id] += 1
        decided = {
            "tenant_id": tenant_id, "request_id": request_id, "attempt": attempt, "mode": mode, "admitted": allowed,
            "basis": basis | ({"granted": tokens} if allowed else {}),
        }  # fmt: skip
        self._decisions.add(decided)
        if self._kept is not None and not self._kept.add(decided):
            self.counts["decisions_not_kept"] += 1
        return Admission(allowed, tokens if allowed else 0, 0, "fail_mode", 200 if allowed else 503)

    def _ends_without_service(self, key: tuple[str, str, int]) -> None:
        """A request that was let in by a fail mode is over; any other is none of its business."""
        if key in self._without_service:
            del self._without_service[key]
            self._safe[key[0]] -= 1
            if not self._safe[key[0]]:
                del self._safe[key[0]]

    def _is_told(self, settlement: dict[str, Any]) -> None:
        if lease_id := settlement["lease_id"]:
            self._untold[lease_id] -= 1
            if not self._untold[lease_id]:
                del self._untold[lease_id]

    async def _again_and_again(self, work: Callable[[], Awaitable[object]]) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            try:
                await work()
            except Exception as error:  # whatever it is: without this work nothing is told, and nothing renewed
                self.counts["background_failures"] += 1
                if repr(error) not in self._said and len(self._said) < SAID_AT_MOST:
                    self._said.add(repr(error))
                    print(f"tollbook: the quota's background work: {error!r}", file=sys.stderr, flush=True)

    async def _send_waiting(self) -> bool:
        """Whether the service has all of it now."""
        for outbox in (self._decisions, self._settlements):
            try:
                await outbox.send()
            except NoAnswer:
                self.counts["background_failures"] += 1
        if self._kept is not None and not len(self._decisions) and not self._kept.clear():
            self.counts["background_failures"] += 1
        return not self.waiting
