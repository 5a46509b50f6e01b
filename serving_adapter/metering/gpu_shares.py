"""Time of an engine's steps, split among the requests that were in them: whole microseconds, of which none is lost.

A step is charged by what it did for each request: tokens read (prefill) and tokens made (decode), weighed by what such
tokens were measured to cost in this engine, and an equal part of what a step costs by itself. Steps that overlap are
counted once, so that all intervals together are the time the engine was busy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

LEARN_FROM: Final = 200
"""Steps before costs are believed; until then every token weighs the same."""
FORGET: Final = 0.999
"""Each step counts so much less than the next: half after 700."""
OUTLIER: Final = 8.0
"""A step that takes so many times what was expected (compiling, a stall) teaches nothing."""
_RIDGE: Final = 1e-6


class Work(NamedTuple):
    """What a step did for one request, in tokens."""

    prefill: int
    decode: int


class StepCost:
    """What a step, a token read and a token made cost, in microseconds: least squares over the latest steps."""

    def __init__(self) -> None:
        self.steps = 0
        self._products = [[0.0] * 3 for _ in range(3)]
        self._times = [0.0] * 3
        self._costs = (0.0, 1.0, 1.0)

    @property
    def costs(self) -> tuple[float, float, float]:
        """Per step, per token read, per token made; none is negative."""
        return self._costs

    def learn(self, prefill: int, decode: int, took_us: int) -> None:
        """A step has taken so long."""
        step, read, made = self._costs
        known = self.steps >= LEARN_FROM
        if known and took_us > OUTLIER * (step + read * prefill + made * decode):
            return
        self.steps += 1
        row = (1.0, float(prefill), float(decode))
        for i in range(3):
            self._times[i] = FORGET * self._times[i] + row[i] * took_us
            for j in range(3):
                self._products[i][j] = FORGET * self._products[i][j] + row[i] * row[j]
        if self.steps >= LEARN_FROM and self.steps % 50 == 0:
            self._solve()

    def _solve(self) -> None:
        """Gauss, with a little on the diagonal. Where no step has read a prompt, reading costs what making does."""
        rows = [[*self._products[i], self._times[i]] for i in range(3)]
        for i in range(3):
            rows[i][i] += _RIDGE * (1.0 + rows[i][i])
        for i in range(3):
            pivot = rows[i][i]
            for j in range(i + 1, 3):
                factor = rows[j][i] / pivot
                rows[j] = [a - factor * b for a, b in zip(rows[j], rows[i], strict=True)]
        found = [0.0] * 3
        for i in reversed(range(3)):
            found[i] = (rows[i][3] - sum(rows[i][j] * found[j] for j in range(i + 1, 3))) / rows[i][i]
        step, read, made = (max(value, 0.0) for value in found)
        if not self._products[1][1]:
            read = made
        if step + read + made > 0:
            self._costs = (step, read, made)


def split(interval_us: int, work: Mapping[str, Work], costs: tuple[float, float, float]) -> dict[str, int]:
    """An interval's shares. They are whole, and add up to it exactly: what is left over goes to the largest rests."""
    step, read, made = costs
    each = step / len(work)
    weights = {name: each + read * done.prefill + made * done.decode for name, done in work.items()}
    whole = sum(weights.values())
    if whole <= 0:
        weights = {name: float(sum(done)) or 1.0 for name, done in work.items()}
        whole = sum(weights.values())
    exact = {name: interval_us * weight / whole for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    left = interval_us - sum(shares.values())
    order = sorted(exact, key=lambda name: exact[name] - shares[name], reverse=left > 0)
    for number in range(abs(left)):  # fewer than there are requests, but for rounding of floats
        shares[order[number % len(order)]] += 1 if left > 0 else -1
    return shares


class StepLedger:
    """One engine's steps: what it was busy for, and for whom. `gpus`: how many work on each step."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.busy_us = 0
        """GPU time of all steps."""
        self.cost = StepCost()
        self._pending: dict[int, tuple[int, dict[str, Work]]] = {}
        self._last_end_us = 0
        self._shares: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._ended: set[str] = set()
        self._final: list[tuple[str, int]] = []

    def begun(self, step: int, now_us: int, work: dict[str, Work]) -> None:
        """A step was handed to the engine."""
        if work:
            self._pending[step] = (now_us, work)
            for name in work:
                self._in_flight[name] = self._in_flight.get(name, 0) + 1

    def done(self, step: int, now_us: int) -> None:
        """It has come back: its time since it began, or since the step before it came back."""
        began_us, work = self._pending.pop(step, (0, {}))
        if not work:
            return
        took_us = max(0, now_us - max(began_us, self._last_end_us))
        self._last_end_us = max(now_us, self._last_end_us)
        self.busy_us += took_us * self.gpus
        for name, share in split(took_us * self.gpus, work, self.cost.costs).items():
            self._shares[name] = self._shares.get(name, 0) + share
        self.cost.learn(sum(w.prefill for w in work.values()), sum(w.decode for w in work.values()), took_us)
        for name in work:
            self._in_flight[name] -= 1
            self._close(name)

    def ended(self, name: str) -> None:
        """The engine has let go of a request; a step of it may still be under way."""
        self._ended.add(name)
        self._close(name)

    def take_final(self) -> list[tuple[str, int]]:
        """Requests whose time is final since the last call, with it."""
        final, self._final = self._final, []
        return final

    def running(self) -> list[tuple[str, int]]:
        """The others, with their time so far."""
        return list(self._shares.items())

    def _close(self, name: str) -> None:
        if name in self._ended and not self._in_flight.get(name):
            self._ended.discard(name)
            self._in_flight.pop(name, None)
            self._final.append((name, self._shares.pop(name, 0)))
