"""All meters of a tenant, and what reservations, usage and slices do to them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

from streams.quotas.amounts import FREE, Counts, Price, PriceList, amount, bound
from streams.quotas.calendar import CALENDAR_MONTHS, Anchor
from streams.quotas.decisions import Row, Standing
from streams.quotas.definitions import Quota
from streams.quotas.entries import Reserved
from streams.quotas.lead import Lead
from streams.quotas.meters import BudgetMeter, Meter, RateMeter, SlotMeter
from streams.quotas.parts import Part, Request, State
from streams.quotas.standings import StandingsText, standing

NEVER: int = 2**62
MODELS_AT_MOST = 256
"""Of how many models and adapters the quotas that cover them are remembered."""
NONE_BEGAN: Final[Mapping[str, int]] = MappingProxyType({})


class Bounds(NamedTuple):
    """Meters, and what a request may come to in each: by itself, for each input token, for each output token."""

    budgets: list[tuple[BudgetMeter, int, int, int]]
    rates: list[tuple[RateMeter, int, int, int]]


class Covering:
    """The meters of the quotas that cover a model and an adapter."""

    __slots__ = ("_bounds", "_price", "all", "budgets", "rates", "slots", "text")

    def __init__(self, meters: list[Meter]) -> None:
        self.all = meters
        self.budgets = [meter for meter in meters if isinstance(meter, BudgetMeter)]
        self.rates = [meter for meter in meters if isinstance(meter, RateMeter)]
        self.slots = [meter for meter in meters if isinstance(meter, SlotMeter)]
        self.text: StandingsText | None = None
        self._price: Price | None = None
        self._bounds = Bounds([], [])

    def bounds(self, price: Price) -> Bounds:
        """What requests may come to at a price; worked out once, as prices seldom change."""
        if price is not self._price:
            self._price = price
            self._bounds = Bounds(
                [(meter, *bound(meter.quota.metric, price)) for meter in self.budgets],
                [(meter, *bound(meter.quota.metric, price)) for meter in self.rates],
            )
        return self._bounds


class MeterSet:
    """A tenant's meters, with the prices and billing periods that they go by."""

    def __init__(self, lead: Lead, held_us: int) -> None:
        """`held_us`: how long what is admitted may go on."""
        self._lead = lead
        self._held_us = held_us
        self.all: list[Meter] = []
        self.budgets: list[BudgetMeter] = []
        """Those whose truth is the windows."""
        self.prices = PriceList()
        self.anchor: Anchor = CALENDAR_MONTHS
        self.rate_states: dict[str, list[int]] = {}
        """Of rates that do not hold now: from before a restart, or of a tier that was told before, and may be again."""
        self.unreserved: dict[str, dict[int, int]] = {}
        """The same of what nobody had reserved, by its period's start."""
        self._covering: dict[tuple[str, str], Covering] = {}
        self.next_roll = NEVER
        """When the first of the budgets' periods ends."""
        self._is_priced = False
        self.is_defined = False
        """Whether anything was: what a rate that comes later did not charge is not given back by it."""

    def define(
        self, quotas: Iterable[Quota], now: int, prices: PriceList, anchor: Anchor,
        began: Mapping[str, int] = NONE_BEGAN,
    ) -> None:  # fmt: skip
        """Take definitions. What is known of a rate or a budget stays where its id does, and of a rate also until its
        id comes back; new budgets are empty until they are loaded. `began`: of the first definitions the rates that did
        not hold always, by id: entries of before may follow."""
        quotas = list(quotas)
        rates, unreserved = self.rate_state(), self.unreserved_state()
        self.all = self._made(quotas, now, prices, anchor, began)
        held = {meter.quota.quota_id for meter in self.all}
        self.rate_states = {quota_id: state for quota_id, state in rates.items() if quota_id not in held}
        self.unreserved = {quota_id: state for quota_id, state in unreserved.items() if quota_id not in held}
        self.prices, self.anchor = prices, anchor
        self.is_defined = True
        self._is_priced = any(quota.metric == "spend" for quota in quotas)
        self._covering.clear()
        self.budgets = [meter for meter in self.all if isinstance(meter, BudgetMeter)]
        self.next_roll = min((meter.end for meter in self.budgets), default=NEVER)

    def empty_under(self, quotas: Iterable[Quota], now: int, prices: PriceList, anchor: Anchor) -> list[BudgetMeter]:
        """The budgets that would have to be loaded under other definitions."""
        made = self._made(quotas, now, prices, anchor)
        return [meter for meter in made if isinstance(meter, BudgetMeter) and not meter.loaded]

    def _made(
        self, quotas: Iterable[Quota], now: int, prices: PriceList, anchor: Anchor,
        began: Mapping[str, int] = NONE_BEGAN,
    ) -> list[Meter]:  # fmt: skip
        rates, unreserved = self.rate_state(), self.unreserved_state()
        before = {meter.quota.quota_id: meter for meter in self.budgets if meter.loaded}
        away = self.rate_states.keys() if self.is_defined else ()
        if prices != self.prices:
            before = {quota_id: meter for quota_id, meter in before.items() if meter.quota.metric != "spend"}
        made: list[Meter] = []
        for quota in quotas:
            if quota.is_rate:
                rate = RateMeter(quota, now if self.is_defined else began.get(quota.quota_id, 0))
                if quota.quota_id in rates:
                    rate.go_on_from(rates[quota.quota_id])
                if quota.quota_id in away:
                    rate.rate.resume(now)
                made.append(rate)
            elif quota.is_budget:
                meter = BudgetMeter(quota, anchor, now - self._lead.us)
                for start, units in unreserved.get(quota.quota_id, {}).items():
                    meter.note_unreserved(start, units)
                if quota.quota_id in before:
                    meter.go_on_from(before[quota.quota_id])
                made.append(meter)
            else:
                made.append(SlotMeter(quota))
        return made

    def stand_for(self, quotas: Sequence[Quota], prices: PriceList, anchor: Anchor) -> bool:
        """Whether these are the definitions that were taken last."""
        return [m.quota for m in self.all] == quotas and self.prices == prices and self.anchor == anchor

    def rate_state(self) -> dict[str, list[int]]:
        """The state of every rate by its quota's id."""
        return self.rate_states | {
            meter.quota.quota_id: meter.rate.state() for meter in self.all if isinstance(meter, RateMeter)
        }

    def unreserved_state(self) -> dict[str, dict[int, int]]:
        """Of every budget what was used that nobody had reserved, by its period's start."""
        return self.unreserved | {meter.quota.quota_id: meter.unreserved_in for meter in self.budgets}

    def of(self, model: str, adapter: str) -> list[Meter]:
        """The meters of the quotas that cover a model and an adapter; all, where the model is not known ('')."""
        return self.covering(model, adapter).all

    def covering(self, model: str, adapter: str) -> Covering:
        """The same by their kinds."""
        found = self._covering.get((model, adapter))
        if found is None:
            if len(self._covering) >= MODELS_AT_MOST:
                self._covering.clear()
            found = Covering([meter for meter in self.all if not model or meter.quota.covers(model, adapter)])
            self._covering[model, adapter] = found
        return found

    def price(self, model: str, at: int) -> Price:
        """The highest prices of a model at a time, where anything is counted in money."""
        return self.prices.at(model, at) if self._is_priced else FREE

    def highest_price(self, model: str, at: int) -> Price:
        """The highest prices that may apply to what is admitted at a time, however long it goes on."""
        return self.prices.highest(model, at, at + self._held_us) if self._is_priced else FREE

    def highest_price_of_slice(self, model: str, at: int) -> Price:
        """The same of a slice that was granted, renewed or found then. What was admitted out of it before may be over,
        and not told yet; what is admitted later goes on later."""
        if not self._is_priced:
            return FREE
        return self.prices.highest(model, at - self._held_us, at + 2 * self._held_us)

    def bounds(self, model: str, adapter: str, at: int) -> Bounds:
        """The budgets and rates that cover a model, and what a request of that time may come to in each."""
        return self.covering(model, adapter).bounds(self.highest_price(model, at))

    def named(self, quota_id: str) -> Meter:
        """The meter of a quota. Raises KeyError."""
        return {meter.quota.quota_id: meter for meter in self.all}[quota_id]

    def rolled_to(self, now: int) -> list[BudgetMeter]:
        """Go to the periods that hold `now` by the database's clock; the meters that went to another one."""
        now -= self._lead.us
        if now < self.next_roll:
            return []
        rolled = [meter for meter in self.budgets if meter.rolled_to(now)]
        self._covering.clear()
        self.next_roll = min((meter.end for meter in self.budgets), default=NEVER)
        return rolled

    def standings(self, model: str, adapter: str, now: int) -> Iterator[Standing]:
        """Where the quotas that cover a model stand."""
        for meter in self.of(model, adapter):
            yield standing(meter, now)

    def standings_text(self, model: str, adapter: str, now: int) -> bytes:
        """The same as JSON."""
        covering = self.covering(model, adapter)
        if covering.text is None:
            covering.text = StandingsText(covering.budgets, covering.rates, covering.slots, now)
        return covering.text.at(now)

    def admit(self, entry: Reserved) -> None:
        """Charge the rates for an admitted attempt, and hold its bound in the budgets."""
        budgets, rates = self.bounds(entry.model, entry.adapter, entry.at)
        at, tokens, cap = entry.at, entry.input_tokens, entry.output_cap
        for meter, each, per_input, per_output in budgets:
            by_input = each + per_input * tokens
            usual = by_input + per_output * entry.expected_output
            meter.reserved += usual if meter.reserves_the_usual else by_input + per_output * cap
            meter.expected += usual
        for rate, each, per_input, per_output in rates:
            rate.rate.charge(at, each + per_input * tokens + per_output * cap)

    def correct(self, entry: Reserved, used: Counts, told: Counts | None = None) -> None:
        """What the rates were charged at admission, or what they were `told` of it before, becomes what was used."""
        for meter, each, per_input, per_output in self.bounds(entry.model, entry.adapter, entry.at).rates:
            if told is None:
                charged = each + per_input * entry.input_tokens + per_output * entry.output_cap
            else:
                charged = amount(meter.quota.metric, told, FREE)
            meter.rate.correct(entry.at, amount(meter.quota.metric, used, FREE) - charged)

    def charge(self, model: str, adapter: str, used: Counts, at: int) -> None:
        """Charge the rates for usage that was never admitted, until they are full: an outage's is told when it is over,
        all at once, and would keep its tenant waiting for as long as that took."""
        for meter in self.covering(model, adapter).rates:
            units = amount(meter.quota.metric, used, FREE)
            meter.rate.charge(at, min(units, meter.rate.room(at, units)))

    def hold(self, part: Part, sign: int) -> None:
        """Add (+1) or take away (-1) what budgets hold for an attempt: its bound while reserved, its usage once
        settled, else nothing."""
        if part.state is State.RESERVED and part.reserved is not None:
            was = part.reserved
            for meter, each, per_input, per_output in self.bounds(was.model, was.adapter, was.at).budgets:
                by_input = each + per_input * was.input_tokens
                usual = by_input + per_output * was.expected_output
                meter.reserved += sign * (usual if meter.reserves_the_usual else by_input + per_output * was.output_cap)
                meter.expected += sign * usual
        elif part.state is State.SETTLED:
            for meter in self.covering(part.model, part.adapter).budgets:
                meter.unconfirmed += sign * self.settled(meter, part)

    def settled(self, meter: BudgetMeter, part: Part) -> int:
        """What a settled attempt counts in a budget's period: in money at the highest prices since it was admitted, as
        nobody has told yet when it was completed."""
        is_covered = not part.model or meter.quota.covers(part.model, part.adapter)
        if not is_covered or not meter.counts_settled(part.settled_at):
            return 0
        if meter.quota.metric != "spend":
            return amount(meter.quota.metric, part.settled, FREE)
        since = part.settled_at - self._held_us if part.reserved is None else part.reserved.at
        return amount(
            "spend", part.settled, self.prices.highest(part.model, min(since, part.settled_at), part.settled_at)
        )

    def confirm(self, row: Row, *, reserved: bool) -> list[tuple[str, int, int]]:
        """Count confirmed usage in its periods; what of it nobody had reserved: quota, its period's start, units."""
        price = self.price(row.model, row.completed_at)
        unreserved = []
        for meter in self.covering(row.model, row.adapter).budgets:
            if row.bills or meter.quota.metric != "spend":
                units = amount(meter.quota.metric, row.counts, price)
                start = meter.confirm(row.completed_at, units)
                if start is not None and not reserved:
                    unreserved.append((meter.quota.quota_id, start, units))
        return unreserved

    def note_unreserved(self, quota_id: str, start: int, units: int) -> None:
        """Count confirmed usage of a period as reserved by nobody."""
        for meter in self.budgets:
            if meter.quota.quota_id == quota_id:
                meter.note_unreserved(start, units)

    def was_reserved(self, part: Part) -> list[tuple[str, int, int]]:
        """Usage that was confirmed as nobody's turns out to be of a slice: what is unreserved no more, below 0."""
        price = self.price(part.model, part.settled_at)
        return [
            (meter.quota.quota_id, start, -amount(meter.quota.metric, part.settled, price))
            for meter in self.covering(part.model, part.adapter).budgets
            if (start := meter.period_of(part.settled_at)) is not None and (part.bills or meter.quota.metric != "spend")
        ]

    def fill_rates(self, percent: int, since_us: int, now: int) -> None:
        """As if so much of every rate had been charged so long ago."""
        for meter in self.all:
            if isinstance(meter, RateMeter):
                limit = meter.quota.limit
                left = limit * percent // 100 - limit * since_us // meter.rate.period_us
                if left > 0:
                    meter.rate.charge(now, left)

    def take_slot(self, request: Request, sign: int) -> None:
        """One more (+1) or one fewer (-1) request in flight; its first attempt says of which model."""
        first = next(iter(request.parts.values()))
        for slot in self.covering(first.model, first.adapter).slots:
            slot.in_use += sign


def lease(meter: Meter, units: int, at: int) -> None:
    """A slice holds so much more of a meter, or, below 0, less. A rate is charged when it is granted; `at` is that time
    also for what comes back of it."""
    if not isinstance(meter, RateMeter):
        meter.leased += units
    elif units > 0:
        meter.rate.charge(at, units)
    elif units < 0:
        meter.rate.correct(at, units)
