"""Webhooks: signed, not in order, repeated until they are taken; and as lossy as one wants.

Source: docs.stripe.com/webhooks (``Stripe-Signature``, at least once, no order, in a sandbox three tries over hours:
the twin's come within seconds). What was not delivered when the twin stops is lost, but for ``/v1/events``.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from devstack.stripe_twin.clock import Clock
from devstack.stripe_twin.session import Session, State
from devstack.stripe_twin.store import Store

TRIES = 3
FIRST_PAUSE_S = 0.5
TIMEOUT_S = 10
ALL = "*"


@dataclass
class Mishaps:
    """What goes wrong with deliveries: chances from 0 to 1, ``delay_s`` at most, by a generator of its own."""

    lose: float = 0.0
    repeat: float = 0.0
    delay_s: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)

    def pauses(self) -> list[float]:
        """How long each delivery of an event waits: none if it is lost, two if it is repeated."""
        if self._chance.random() < self.lose:
            return []
        times = 2 if self._chance.random() < self.repeat else 1
        return [self._chance.uniform(0, self.delay_s) for _ in range(times)]


class Webhooks:
    """Delivers events to the endpoints that their account has."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.mishaps = Mishaps()
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, account: str, events: Sequence[State]) -> None:
        """Deliver events that are committed, beside whatever else is done."""
        if not events:
            return
        with self._store.transaction() as connection:
            endpoints = Session(connection, account).all("webhook_endpoint")
        for endpoint in endpoints:
            for event in events:
                if endpoint["status"] == "enabled" and {ALL, event["type"]} & set(endpoint["enabled_events"]):
                    for pause_s in self.mishaps.pauses():
                        self._begin(self._deliver(endpoint, event, pause_s))

    @property
    def under_way(self) -> int:
        """How many deliveries are on their way, or will be tried again."""
        return len(self._tasks)

    def _begin(self, delivery: Any) -> None:
        task = asyncio.get_running_loop().create_task(delivery)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, endpoint: State, event: State, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        payload = json.dumps(event, ensure_ascii=False).encode()
        for attempt in range(TRIES):
            headers = {"Content-Type": "application/json", "Stripe-Signature": self._signature(endpoint, payload)}
            if await asyncio.to_thread(_post, endpoint["url"], payload, headers):
                return
            await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)

    def _signature(self, endpoint: State, payload: bytes) -> str:
        return sign(payload, endpoint["_secret"], self._clock.now())


def sign(payload: bytes, secret: str, at: int) -> str:
    """The header of docs.stripe.com/webhooks#verify-manually."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + payload, hashlib.sha256).hexdigest()
    return f"t={at},v1={mac}"


def _post(url: str, payload: bytes, headers: dict[str, str]) -> bool:
    """Whether an endpoint took it."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, data=payload, headers=headers), timeout=TIMEOUT_S) as reply:
            return bool(200 <= reply.status < 300)
    except (urllib.error.URLError, OSError, ValueError):
        return False
