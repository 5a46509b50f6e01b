"""One tenant's quotas and reservations: what is admitted, and what becomes of it. Pure.

`decide` judges a request and changes nothing that lasts; `apply` takes an entry of the journal, live or when
the service rebuilds itself; `confirm` takes confirmed usage. Whoever calls keeps the entries durable before anything is
answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import structs

from streams.quotas import meter_set
from streams.quotas.amounts import Counts, PriceList
from streams.quotas.calendar import CALENDAR_MONTHS, Anchor
from streams.quotas.deciding import judge
from streams.quotas.decisions import Ask, Limits, Progress, Refused, Row, Tended
from streams.quotas.definitions import Quota
from streams.quotas.entries import Charged, Leased, Reserved, Returned, Settled, Unreserved
from streams.quotas.errors import OtherContent
from streams.quotas.lead import Lead
from streams.quotas.lease_book import LeaseBook
from streams.quotas.meter_set import NONE_BEGAN, MeterSet
from streams.quotas.outputs import RecentOutputs
from streams.quotas.parts import Part, Request, State, Step, after
from streams.quotas.volume import Volume

DEFAULT_LIMITS = Limits()
TAKEN_BACK_AT_MOST = 1000
_KNOWN = Progress(True)


class TenantBook:
    """The state of one tenant."""

    def __init__(self, tenant_id: str, limits: Limits = DEFAULT_LIMITS, lead: Lead | None = None) -> None:
        self.tenant_id = tenant_id
        self.limits = limits
        self.tier = ""
        self.priority = 0
        self.meters = MeterSet(lead or Lead(), limits.held_us)
        self.requests: dict[str, Request] = {}
        self.leases = LeaseBook()
        self.outputs = RecentOutputs()
        self.volume = Volume()
        self.new_requests: list[str] = []
        """Since somebody looked, and those that were told late: each has to be looked at again (`tend`)."""
        self.state_no = 0
        """How often its state was written down."""
        self._taken_back: set[tuple[str, int]] = set()
        """Attempts whose usage was taken back, and comes again from a stronger source, in the same chunk."""
        self._settled: dict[int, Part] = {}
        """Parts that are settled and not confirmed, by their address: few beside all requests."""

    def define(
        self, quotas: Iterable[Quota], now: int, *, tier: str = "", priority: int = 0, prices: PriceList | None = None,
        anchor: Anchor = CALENDAR_MONTHS, began: Mapping[str, int] = NONE_BEGAN,
    ) -> None:  # fmt: skip
        """Take definitions, prices, the billing periods' anchor, and when rates began (`MeterSet.define`); new budgets
        have to be loaded then."""
        self.tier, self.priority = tier, priority
        self.meters.define(quotas, now, prices or PriceList(), anchor, began)
        self._settled.clear()
        for request in self.requests.values():
            for part in request.parts.values():
                self.meters.hold(part, +1)
                if part.state is State.SETTLED:
                    self._settled[id(part)] = part
            if request.in_slot:
                self.meters.take_slot(request, +1)
        for meter, units in self.leases.held(self.meters):
            meter_set.lease(meter, units, now)

    @property
    def needs_loading(self) -> bool:
        """Whether a budget does not know yet what is confirmed."""
        return any(not meter.loaded for meter in self.meters.budgets)

    def decide(self, ask: Ask, now: int, share: int = 100) -> Reserved | Refused | None:
        """The entry that admits a request, or why it is refused; None if it was admitted before (`admitted`).

        `share` = percent of what remains that may be promised. Raises OtherContent.
        """
        if now >= self.meters.next_roll:
            self.roll(now)
        request = self.requests.get(ask.request_id)
        if request is not None and self.admitted(ask) is not None:
            return None
        answer = judge(
            ask, self.meters, self.outputs, self.limits, now, priority=self.priority, share=share,
            in_flight=request is not None and request.in_slot,
        )  # fmt: skip
        if isinstance(answer, Reserved) and answer.tier != self.tier:
            # While the quotas of another tier are being read: a rebuild goes by those that decided
            answer = structs.replace(answer, tier=self.tier)
        return answer

    def admitted(self, ask: Ask) -> Reserved | None:
        """What was answered when the same was asked before, unless it has ended unused since. Raises OtherContent."""
        part = self._part(ask.request_id, ask.attempt)
        if part is not None and part.bars(ask.nonce):
            raise OtherContent(f"{ask.request_id}, attempt {ask.attempt}, was withdrawn before: ask for the next one")
        if part is None or part.reserved is None:
            return None
        was = part.reserved
        same = (was.model, was.adapter, was.input_tokens, was.asked, was.copies)
        if same != (ask.model, ask.adapter, ask.input_tokens, ask.asked, ask.copies):
            raise OtherContent(f"{ask.request_id}, attempt {ask.attempt}, was asked for with other content")
        return None if part.state is State.RELEASED else was

    def is_uncharged(self, request_id: str, attempt: int) -> bool:
        """Whether rates wait for whether an attempt's event was counted before it was told."""
        part = self._part(request_id, attempt)
        return part is not None and part.is_uncharged

    def apply(self, entry: Reserved | Settled | Charged | Leased | Returned | Unreserved) -> Progress:
        """Take an entry of the journal. Twice, or in another order, it leaves the same."""
        if entry.at >= self.meters.next_roll:
            self.roll(entry.at)
        if isinstance(entry, Reserved):
            return self._reserve(entry)
        if isinstance(entry, Settled):
            return self._settle(entry)
        if isinstance(entry, Charged):
            return self._charge(entry)
        if isinstance(entry, Unreserved):
            self.meters.note_unreserved(entry.quota_id, entry.start, entry.units)
            return _KNOWN
        for change in self.leases.apply(entry, self.meters):
            meter_set.lease(*change)
        return _KNOWN

    def confirm(self, row: Row) -> Progress:
        """Take a row of confirmed usage: it counts in its period, and whatever was promised for it ends."""
        part = self._part(row.request_id, row.attempt)
        known = part is not None and (part.reserved is not None or bool(part.lease_id))
        if part is None:
            known = self._replaces_another(row)
        # A correction belongs to what it corrects, which may be forgotten
        unreserved = self.meters.confirm(row, reserved=known or not row.counts.requests)
        if not row.first:
            return Progress(known, unreserved=unreserved)
        if part is None and self.leases.any_open:
            part = self._new_part(row.request_id, row.attempt, row.model, row.adapter, row.completed_at)
        over = 0
        if part is not None:
            over = _over(part, row.counts)
            if part.may_be_told_late:
                self.new_requests.append(row.request_id)
            self._correct_rates(part, row.counts)
            self._move(part, Step.CONFIRM)
            part.settled, part.settled_at, part.bills = row.counts, row.completed_at, row.bills
            self._end_if_done(row.request_id, row.completed_at)
        return Progress(known, over, unreserved)

    def resolve(self, request_id: str, attempt: int) -> None:
        """An attempt's usage is among what was loaded: what was promised for it ends, and nothing is counted. Rates
        that wait for that had it before, or leave it be; unless its event has come here since it was told."""
        part = self._part(request_id, attempt)
        if part is not None:
            part.is_uncharged &= part.state is State.CONFIRMED
            self._move(part, Step.CONFIRM)
            self._end_if_done(request_id, part.settled_at or (part.reserved.at if part.reserved else 0))

    def tend(self, request_id: str, now: int) -> Tended:
        """End a request whose deadline has passed, forget one that ended a while ago and is confirmed."""
        request = self.requests.get(request_id)
        if request is None:
            return Tended(None)
        expired = 0
        if request.ended_at is None and request.deadline <= now:
            self.roll(now)
            for part in request.parts.values():
                if part.state is State.RESERVED:
                    self._move(part, Step.RELEASE)
                    expired += 1
            self._end(request, now)
        if request.ended_at is None:
            return Tended(min(now + self.limits.keep_ended_us, request.deadline), expired)
        keep_us = self.limits.keep_expired_us if request.may_be_told_late else self.limits.keep_ended_us
        if now < request.ended_at + keep_us or self._may_be_confirmed(request, now):
            return Tended(now + keep_us, expired)
        del self.requests[request_id]
        never = [part for part in request.parts.values() if part.state is State.SETTLED]
        for part in never:
            del self._settled[id(part)]
        return Tended(None, expired, len(never))

    def expire_leases(self, now: int) -> None:
        """Take back slices that nobody gave back in time."""
        for change in self.leases.expire(now, self.meters):
            meter_set.lease(*change)

    def shift(self, by_us: int) -> None:
        """The clock has stepped forward: deadlines lie as far ahead as before."""
        for request in self.requests.values():
            if request.ended_at is None:
                request.deadline += by_us
        self.leases.shift(by_us)

    def roll(self, now: int) -> None:
        """Go to the periods that hold `now`, with all that is in flight."""
        for meter in self.meters.rolled_to(now):
            meter.unconfirmed = sum(self.meters.settled(meter, part) for part in self._settled.values())

    def overdue(self, request_id: str, now: int) -> Sequence[int]:
        """Attempts of a request that were settled longer ago than metering may lag, and are not confirmed."""
        request = self.requests.get(request_id)
        parts = request.parts if request else {}
        return [number for number, part in parts.items() if self._is_overdue(part, now)]

    def finds(self, request_id: str, attempt: int) -> bool:
        """Note that an attempt is overdue; False if that was noted before."""
        part = self.requests[request_id].parts[attempt]
        is_new, part.is_finding = not part.is_finding, True
        return is_new

    def live(self) -> Iterator[tuple[str, int]]:
        """Every attempt whose usage is not confirmed, and may yet be, or that rates wait for."""
        for request_id, request in self.requests.items():
            for attempt, part in request.parts.items():
                if part.state is not State.CONFIRMED or part.is_uncharged:
                    yield request_id, attempt

    def _replaces_another(self, row: Row) -> bool:
        """Whether it takes back, or takes the place of, usage that a weaker source had told, of an attempt that is
        forgotten: whether that was reserved was judged then."""
        name = (row.request_id, row.attempt)
        if row.counts.requests < 0:
            if len(self._taken_back) >= TAKEN_BACK_AT_MOST:
                self._taken_back.clear()
            self._taken_back.add(name)
            return True
        if row.first and name in self._taken_back:
            self._taken_back.remove(name)
            return True
        return False

    def _is_overdue(self, part: Part, now: int) -> bool:
        return part.state is State.SETTLED and part.settled_at < now - self.limits.lag_us

    def _may_be_confirmed(self, request: Request, now: int) -> bool:
        """Whether usage of it that is settled and not confirmed still counts, or its event is not late yet."""
        self.roll(now)
        return any(
            not self._is_overdue(part, now) or any(m.counts_settled(part.settled_at) for m in self.meters.budgets)
            for part in request.parts.values()
            if part.state is State.SETTLED
        )

    def _reserve(self, entry: Reserved) -> Progress:
        part = self._new_part(entry.request_id, entry.attempt, entry.model, entry.adapter, entry.at)
        was = part.reserved
        if was is not None and entry.at == was.at and part.state is State.RESERVED:
            part.reserved = entry  # asked for again: only that question can be withdrawn now
            return _KNOWN
        told_twice = was is not None and entry.at <= was.at
        if told_twice or part.state not in (State.UNKNOWN, State.RELEASED, State.WITHDRAWN):
            return _KNOWN
        part.reserved, part.is_charged_whole, part.settled_at = entry, True, 0
        part.state = after(part.state, Step.RESERVE)
        self.meters.admit(entry)
        request = self.requests[entry.request_id]
        if entry.deadline > request.deadline:
            request.deadline = entry.deadline
        request.ended_at = None
        if not request.in_slot:
            request.in_slot = True
            self.meters.take_slot(request, +1)
        return _KNOWN

    def _settle(self, entry: Settled) -> Progress:
        lease = self.leases.get(entry.lease_id)
        about = lease if lease is not None and lease.model else entry
        part = self._new_part(entry.request_id, entry.attempt, about.model, about.adapter, entry.at)
        request = self.requests[entry.request_id]
        known, over, doubtful = part.reserved is not None or bool(entry.lease_id), 0, False
        is_late = part.may_be_told_late
        unreserved: list[tuple[str, int, int]] = []
        used = Counts(1, entry.input_tokens, entry.cached_tokens, entry.output_tokens, entry.gpu_us)
        if entry.lease_id and not part.lease_id:
            if part.state is State.CONFIRMED and part.reserved is None:
                unreserved = self.meters.was_reserved(part)
            part.lease_id = entry.lease_id
            for change in self.leases.use(entry.lease_id, entry.lease_no, used, self.meters):
                meter_set.lease(*change)
        if not entry.dispatched:
            part.withdrawn = entry.nonce
            if entry.nonce and part.reserved is not None and part.reserved.nonce != entry.nonce:
                return Progress(known)  # asked for again since: that may be running
            self._release(part)
            part.state = after(part.state, Step.RELEASE)
            part.settled_at = part.settled_at or entry.at
        else:
            self._correct_rates(part, used)  # also where its event was counted while nobody saw how much it used
            if part.state not in (State.SETTLED, State.CONFIRMED):
                over, doubtful, part.is_uncharged = _over(part, used), part.reserved is None, not known
                self._move(part, Step.SETTLE, used, entry.at)
                self.outputs.add(entry.output_tokens)
        if is_late:
            self.new_requests.append(entry.request_id)
        if entry.final:
            for other in request.parts.values():
                self._release(other)
            self._end(request, entry.at)
        elif not request.is_running:
            self._leave_slot(request)
        return Progress(known, over, unreserved, doubtful)

    def _charge(self, entry: Charged) -> Progress:
        part = self._part(entry.request_id, entry.attempt)
        if part is not None and part.is_uncharged:
            part.is_uncharged = False
            self.meters.charge(part.model, part.adapter, part.settled, entry.at)
        return _KNOWN

    def _release(self, part: Part) -> None:
        """An attempt that is reserved, or was until its deadline, will use nothing."""
        if part.state in (State.RESERVED, State.RELEASED):
            self._correct_rates(part, Counts())
            self._move(part, Step.RELEASE)

    def _correct_rates(self, part: Part, used: Counts) -> None:
        """Rates are charged what an attempt has used in the place of what it might have; once, whoever tells it first,
        and however long after its deadline. One that was said to use nothing may turn out to have used something."""
        if part.reserved is None:
            return
        if part.is_charged_whole:
            part.is_charged_whole = False
            self.meters.correct(part.reserved, used)
        elif part.state is State.RELEASED:
            self.meters.correct(part.reserved, used, Counts())

    def _move(self, part: Part, step: Step, used: Counts | None = None, at: int = 0) -> None:
        """Take a step; what the budgets hold for the attempt follows from its state alone."""
        following = after(part.state, step)
        if part.state is following:
            return
        if part.state is not State.UNKNOWN:
            self.meters.hold(part, -1)
            self._settled.pop(id(part), None)
        part.state = following
        if used is not None:
            part.settled, part.settled_at = used, at
        self.meters.hold(part, +1)
        if following is State.SETTLED:
            self._settled[id(part)] = part

    def _end_if_done(self, request_id: str, at: int) -> None:
        request = self.requests[request_id]
        if not request.is_running:
            self._end(request, at)

    def _end(self, request: Request, at: int) -> None:
        if request.ended_at is None:
            request.ended_at = at
        self._leave_slot(request)

    def _leave_slot(self, request: Request) -> None:
        if request.in_slot:
            request.in_slot = False
            self.meters.take_slot(request, -1)

    def _part(self, request_id: str, attempt: int) -> Part | None:
        request = self.requests.get(request_id)
        return request.parts.get(attempt) if request else None

    def _new_part(self, request_id: str, attempt: int, model: str, adapter: str, at: int) -> Part:
        request = self.requests.get(request_id)
        if request is None:
            request = self.requests[request_id] = Request()
            request.deadline = at + self.limits.held_us
            request.state_no = self.state_no
            self.new_requests.append(request_id)
        part = request.parts.get(attempt)
        if part is None:
            part = request.parts[attempt] = Part(model, adapter)
        return part


def _over(part: Part, used: Counts) -> int:
    """Tokens beyond what was reserved."""
    was = part.reserved
    if was is None:
        return 0
    return max(used.output_tokens - was.output_cap, 0) + max(used.input_tokens - was.input_tokens, 0)
