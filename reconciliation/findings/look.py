"""One look at everything that may not agree: find, size, price, write down, close what is healed.

What is judged by state that is kept (numbers, boots, counters, quarantine) is looked at whole each time; what is judged
by raw events (clocks, twins) or by a log within a span of completion times, which reaches back to where what is known
of them begins. A finding is healed by a look that covers its time and does not find it again, unless there was more of
its kind than a look takes in. A look that covers a part of its time says nothing of the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import psycopg

from reconciliation.findings import admissions, evidence, finding_store, numbers, signs, while_working
from reconciliation.findings.admissions import Read
from reconciliation.findings.finding import Finding, Interval, Kind, Money, Share
from reconciliation.findings.finding_store import StoredFinding, Written
from reconciliation.findings.hours import Admitted, ByHour
from reconciliation.findings.while_working import Stated
from reconciliation.replay.material import Material
from streams.completeness import completeness_store, engine_store
from streams.completeness.complete_to import Boot, BootKey
from streams.completeness.completeness_store import BootDifference
from streams.completeness.engine_witness import EngineReport, Standing, named_witnesses
from streams.completeness.witnesses import Comparable, comparable
from streams.ingest.apply import Checkpoint, no_checkpoint
from streams.rules import estimates
from streams.rules.estimates import EstimatePrice

ON_THE_WAY: Final = timedelta(minutes=10)
"""A request that ended so lately may have its event in a spool or in Kafka yet: by a log it is judged after that."""
FURTHEST: Final = timedelta(days=46)
"""As far back as a look goes by itself: a month and a half, as long as late usage may still come to a month."""
OF_RAW_EVENTS: Final = (Kind.DUPLICATE_EMITTER.value, Kind.CLOCK_SKEW.value)
"""Kinds that are judged by raw events: a look at another time says nothing about them."""
OF_BOOTS: Final = (Kind.WRONG_TENANT.value, Kind.OVERCOUNTED.value, Kind.UNMETERED_REQUESTS.value)
"""Kinds that are judged where two witnesses of a boot mean the same events: a look that finds it otherwise says nothing
about them."""


@dataclass(frozen=True, slots=True)
class AdmissionLog:
    """A gateway's log: its name, and what it has."""

    name: str
    material: Material


@dataclass(frozen=True, slots=True)
class Look:
    """What a look found, and what it changed of what was known. `by_hour`: where there was a log."""

    found: tuple[Finding, ...]
    written: Written
    witnesses: str
    by_hour: ByHour | None = None


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was looked at: raw events of [begin, end), a log of the part that it reaches; of which kinds (or of which
    log, by its name) not all; of which boots neither heartbeats, nor (with the model) engines, can be compared now."""

    begin: datetime
    end: datetime
    log: str = ""
    reach: tuple[datetime, datetime] | None = None
    partly: Collection[str] = ()
    not_now: Collection[tuple[str, ...]] = ()

    def _span_of(self, stored: StoredFinding) -> tuple[datetime, datetime] | None:
        """The time of which the look can say whether such a finding is there; None: of any."""
        if (log := stored.subject.get("log")) is not None:
            return self.reach if log == self.log and self.reach is not None else (self.begin, self.begin)
        return (self.begin, self.end) if _is_of_raw_events(stored) else None

    def covers(self, stored: StoredFinding) -> bool:
        """Whether the look would have found all of it again."""
        if stored.kind in self.partly or stored.subject.get("log") in self.partly:
            return False
        if stored.kind in OF_BOOTS and "log" not in stored.subject:
            by_engine = stored.kind == Kind.UNMETERED_REQUESTS or bool(stored.size["estimated_from"])
            about = ("replica_id", "boot_id", "model") if by_engine else ("replica_id", "boot_id")
            return tuple(stored.subject[name] for name in about) not in self.not_now
        if (span := self._span_of(stored)) is None:
            return True
        begins, ends = stored.begins, stored.ends
        return begins is not None and ends is not None and span[0] <= begins and ends < span[1]

    def is_known(self, found: Finding, stored: StoredFinding) -> bool:
        """Whether what was found is a part of what is known, of whose time the look covers no more."""
        if self.covers(stored) or self._span_of(stored) is None:
            return False
        goes_on = found.ends is not None and stored.ends is not None and found.ends > stored.ends
        size = found.size()
        return not goes_on and all(size[of][1] <= stored.size[of][1] for of in ("events", "tokens"))


def look(
    connection: psycopg.Connection,
    begin: datetime,
    end: datetime,
    now: datetime,
    *,
    admitted: AdmissionLog | None = None,
    checkpoint: Checkpoint = no_checkpoint,
) -> Look:
    """Look at everything; at raw events that completed in [begin, end). One look at a time, of one moment.

    At a gateway's log up to ON_THE_WAY before `now` alone. What is known and lies across `begin` is looked at from
    where it begins, up to FURTHEST before `end`.

    A look that is killed has changed nothing. `checkpoint` is told "looked" and "written". `admitted` is the log of a
    witness that is not in the database: what was found by it is judged by it alone.
    """
    with _alone(connection):
        stated = while_working.stated(connection)
        return _look(connection, begin, end, now, admitted, checkpoint, stated)


def _look(
    connection: psycopg.Connection,
    begin: datetime,
    end: datetime,
    now: datetime,
    admitted: AdmissionLog | None,
    checkpoint: Checkpoint,
    stated: Collection[Stated],
) -> Look:
    with connection.transaction():
        # What was reported, counted and numbered is compared as it stood at one moment
        connection.execute("set transaction isolation level repeatable read")
        known = finding_store.not_healed(connection)
        begin = _reaching_back(known, begin, end, admitted)
        settled = min(end, now - ON_THE_WAY)
        found, witnesses, looked, by_hour = _find(connection, begin, end, settled, admitted, stated)
        checkpoint("looked")
        prices = estimates.prices_of(connection, {share.tenant_id for f in found for share in f.shares})
        priced = {f.key: replace(f, money=worth(f, prices, now)) for f in _once(found)}
        of_known = {stored.key for stored in known if (f := priced.get(stored.key)) and looked.is_known(f, stored)}
        told = [finding for key, finding in priced.items() if key not in of_known]
        gone = [s for s in known if s.is_open and s.key not in priced and looked.covers(s)]
        written = finding_store.write(connection, told, gone, now)
        checkpoint("written")
    return Look(tuple(priced.values()), written, witnesses, by_hour)


def _is_of_raw_events(stored: StoredFinding) -> bool:
    return stored.kind in OF_RAW_EVENTS and "held" not in stored.subject


def _reaching_back(
    known: Iterable[StoredFinding], begin: datetime, end: datetime, admitted: AdmissionLog | None
) -> datetime:
    """Where to begin, so that what is known and lies across `begin` is looked at whole."""
    logs = [admitted.name] if admitted is not None else []
    across = [
        max(stored.begins, end - FURTHEST)
        for stored in known
        if stored.begins is not None and stored.ends is not None and stored.begins < begin <= stored.ends
        and (stored.subject["log"] in logs if "log" in stored.subject else _is_of_raw_events(stored))
    ]  # fmt: skip
    return min([begin, *across])


@contextmanager
def _alone(connection: psycopg.Connection) -> Iterator[None]:
    """Hold the lock of looks; from before the transaction, which so sees what the look before it has written."""
    connection.execute("select pg_advisory_lock(%s)", (finding_store.LOCK,))
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("select pg_advisory_unlock(%s)", (finding_store.LOCK,))


def _find(
    connection: psycopg.Connection,
    begin: datetime,
    end: datetime,
    settled: datetime,
    admitted: AdmissionLog | None,
    stated: Collection[Stated],
) -> tuple[list[Finding], str, _Looked, ByHour | None]:
    """What there is, the witnesses, what was looked at, and the log by hour: by it there is what ended before
    `settled`."""
    passed = evidence.passed_over(connection)
    found = [numbers.judge(boot, passed) for boot in evidence.missing_numbers(connection)]
    reports = engine_store.report(connection)
    boots = {boot.key: boot for boot in completeness_store.all_boots(connection)}
    differing, not_now = _differing(connection, boots.values(), stated, reports)
    compared = (signs.unmetered(each, (each.replica_id, each.boot_id) in boots) for each in reports.comparisons)
    clocks, all_clocks = evidence.clocks(connection, begin, end)
    twins, all_twins = evidence.twins(connection, begin, end)
    near_twins, all_near = evidence.near_twins(connection, begin, end)
    attempts, copies, all_attempts = evidence.same_attempts(connection)
    wholly = {
        Kind.CLOCK_SKEW: all_clocks,
        Kind.DUPLICATE_EMITTER: all_twins and all_near and all_attempts,
        Kind.DOUBLE_ATTEMPT: all_attempts,
    }
    partly: set[str] = {kind for kind, is_all in wholly.items() if not is_all}
    judged: list[Finding | None] = [
        *map(signs.clock_skew, clocks),
        *map(signs.duplicate_emitter, [*twins, *near_twins]),
        *compared,
    ]
    found += [finding for finding in judged if finding is not None]
    found += signs.wrong_tenant(differing)
    too_much = [*signs.overcounted(differing), *filter(None, map(signs.overmetered, reports.comparisons))]
    taken = evidence.taken_back(connection, map(signs.boot_of, too_much))
    found += filter(None, (signs.less(finding, taken[signs.boot_of(finding)]) for finding in too_much))
    found += [*map(signs.double_attempt, attempts), *map(signs.copied, copies)]
    found += [
        signs.unreported_boot(*key, seen, since) for key, seen, since in evidence.unreported_boots(connection)
    ]  # fmt: skip
    if admitted is None:
        return found, reports.witnesses, _Looked(begin, end, partly=partly, not_now=not_now), None
    sums = Admitted()
    read = admissions.read(connection, admitted.material, begin, settled, sums)
    if not read.is_all:
        partly.add(admitted.name)
    found += _by_the_log(connection, admitted.name, read, [each for each in found if _within(each, begin, settled)])
    witnesses = named_witnesses(any(each.scraped_at for each in reports.comparisons), admission_log=True)
    looked = _Looked(begin, end, admitted.name, read.reach(begin, settled), partly, not_now)
    return found, witnesses, looked, sums.compare(connection, begin, settled)


def _differing(
    connection: psycopg.Connection, boots: Iterable[Boot], stated: Collection[Stated], reports: EngineReport
) -> tuple[list[BootDifference], set[tuple[str, ...]]]:
    """What heartbeats and counts of boots differ by, exactly; and of which boots, or of whose engines, nobody can say
    now. One that was written off, or that nobody knows any more, is not waited for."""
    at_heartbeats = while_working.compared(connection, stated)
    found, not_now = [], set[tuple[str, ...]]()
    differing: dict[BootKey, list[BootDifference]] = defaultdict(list)
    for each in completeness_store.boot_differences(connection):
        differing[each.replica_id, each.boot_id].append(each)
    for boot in boots:
        how = comparable(boot.last_seq, boot.received_through, boot.highest)
        if how is Comparable.EXACT:
            found += differing[boot.key]
        elif boot.key in at_heartbeats:
            found += at_heartbeats[boot.key]
        elif not boot.written_off:
            not_now.add(boot.key)
    not_now |= {(e.replica_id, e.boot_id, e.model) for e in reports.standing(Standing.NOT_YET)}
    return found, not_now


def _by_the_log(connection: psycopg.Connection, log: str, read: Read, found: Iterable[Finding]) -> list[Finding]:
    """What a log's missing requests mean, beside what was found of the same time."""
    lost: dict[str, list[Share]] = defaultdict(list)
    for each in found:
        if each.kind is Kind.LOST_EVENTS:
            lost[each.subject["replica_id"]] += each.shares
    absent = admissions.not_held(connection, read.missing)
    others = admissions.counted_as(connection, absent)
    return admissions.judge(log, absent, others, admissions.known_replicas(connection), lost)


def _within(finding: Finding, begin: datetime, end: datetime) -> bool:
    """Whether any of it may be of [begin, end)."""
    after_it = finding.ends is not None and finding.ends < begin - admissions.NEAR
    return not after_it and (finding.begins is None or finding.begins < end + admissions.NEAR)


def _once(found: Iterable[Finding]) -> list[Finding]:
    """Of two findings about the same thing the first."""
    by_key: dict[str, Finding] = {}
    for finding in found:
        by_key.setdefault(finding.key, finding)
    return list(by_key.values())


def worth(finding: Finding, prices: dict[str, list[EstimatePrice]], now: datetime) -> tuple[Money, ...]:
    """What a finding may come to at the highest prices that may apply, by currency; in major units."""
    sums: dict[str, tuple[Decimal, Decimal]] = {}
    for share in finding.shares:
        listed = prices.get(share.tenant_id, [])
        at = finding.ends or finding.begins or now
        low, code = estimates.worth(listed, share.model, at, _units(share, 0))
        high, _ = estimates.worth(listed, share.model, at, _units(share, 1))
        if low is not None and high is not None and code is not None:
            before = sums.get(code, (Decimal(0), Decimal(0)))
            sums[code] = (before[0] + low, before[1] + high)
    return tuple(Money(code, *sums[code]) for code in sorted(sums))


def _units(share: Share, end: int) -> dict[str, Decimal]:
    """Units by metric, least (0) or most (1). What is uncached is least where most is cached."""
    cached: Interval = share.cache_hit_tokens
    known = share.input_tokens.low == share.input_tokens.high and cached.low == cached.high
    beyond = cached[end] if known else cached[1 - end]
    return {
        "input": Decimal(max(share.input_tokens[end] - beyond, 0)),
        "cached_input": Decimal(cached[end]),
        "output": Decimal(share.output_tokens[end]),
        "request": Decimal(share.events[end]),
    }
