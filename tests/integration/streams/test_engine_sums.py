"""Σ engine counts of a boot's events, and engines' counters beside them, on a real database."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest

from serving_adapter.events import UsageEvent, decode
from serving_adapter.identity import Identity, event_id_of
from streams.completeness import engine_store, number_store
from streams.completeness.engine_witness import EngineReport, EngineTokens, Standing
from streams.ingest.apply import ChunkApplier
from streams.ingest.replica_apply import ReplicaChunkApplier
from streams.rules.chunks import Record
from tests.builders import RECEIVED, REPLICA_SOURCE, make_chunk, make_record, make_report, numbered

Sums = dict[tuple[str, str, str], EngineTokens]


def after(seconds: float) -> datetime:
    return RECEIVED + timedelta(seconds=seconds)


def report(connection: psycopg.Connection) -> EngineReport:
    with connection.transaction():
        number_store.fold(connection, RECEIVED)
    return engine_store.report(connection)


def kept(connection: psycopg.Connection) -> Sums:
    """By replica, boot and model, tenants' and itemised rows together; zeros left out."""
    sums = {(f.replica_id, f.boot_id, f.model): f.events.plus(f.itemised) for f in report(connection).comparisons}
    return {key: tokens for key, tokens in sums.items() if any(tokens)}


def engine(e: UsageEvent) -> EngineTokens:
    stated = (e.engine_input_tokens, e.engine_output_tokens, e.engine_cached_tokens)
    billed = (e.input_tokens, e.output_tokens, e.cache_hit_tokens)
    return EngineTokens(*(b if s is None else s for s, b in zip(stated, billed, strict=True)))


def recomputed(connection: psycopg.Connection) -> Sums:
    """The same from the raw events that count, one by one; a correction under what it corrects."""
    events = [decode(row[0]) for row in connection.execute("select raw from usage.counting_events")]
    originals = {(e.tenant_id, e.request_id, e.attempt): e for e in events if e.kind == "usage"}
    sums: Sums = defaultdict(EngineTokens)
    for e in events:
        of = originals[e.tenant_id, e.request_id, e.attempt]
        if of.replica_id and of.boot_id and of.seq:
            key = (of.replica_id, of.boot_id, of.model)
            sums[key] = sums[key].plus(engine(e))
    return {key: tokens for key, tokens in sums.items() if any(tokens)}


def arrivals(request: str, replica: str) -> dict[str, dict[str, Any]]:
    """What may arrive about one request: the engine's own event, an estimate, two corrections, a gateway's event."""
    corrects = str(event_id_of(Identity("tenant_1", request, 1, "usage", 0)))
    correction = {"request_id": request, "kind": "correction", "corrects": corrects}
    by = {"request_id": request, "replica_id": replica, "boot_id": "b1"}
    return {
        "engine": by | {"seq": 1, "engine_input_tokens": 30, "engine_output_tokens": 15},
        "estimate": by | {"seq": 2, "boot_id": "b0", "usage_source": "estimate", "status": "lost",
                          "output_tokens": 3, "engine_output_tokens": 9},
        "gateway": {"request_id": request, "usage_source": "gateway", "model": "alias", "output_tokens": 4},
        "unnumbered correction": correction | {"correction_no": 1, "input_tokens": -3, "output_tokens": -2,
                                               "cache_hit_tokens": -1},
        "numbered correction": correction | {"correction_no": 2, "replica_id": replica, "boot_id": "b2", "seq": 1,
                                             "input_tokens": 0, "output_tokens": 1, "cache_hit_tokens": 0,
                                             "engine_output_tokens": -5},
    }  # fmt: skip


def test_the_kept_sums_are_those_of_the_events_that_count_in_whatever_order_they_came(
    connection: psycopg.Connection, applier: ChunkApplier
) -> None:
    position = 0
    for number, order in enumerate(itertools.permutations(arrivals("", ""))):
        messages = arrivals(f"req-{number}", f"r{number}")
        records = [make_record(position + i, **messages[name]) for i, name in enumerate(order)]
        cut = number % (len(records) + 1)
        for part in (records[:cut], records[cut:]):
            if part:
                applier.apply(make_chunk(*part))
        position += len(records)
    sums = kept(connection)
    assert sums == recomputed(connection)
    assert len({tokens for (_, boot, _), tokens in sums.items() if boot == "b1"}) > 1


def test_duplicates_and_refused_events_add_nothing(connection: psycopg.Connection, applier: ChunkApplier) -> None:
    told = {"engine_output_tokens": 15}
    applier.apply(make_chunk(numbered(0, 1, request_id="a", **told), numbered(1, 1, request_id="a", **told)))
    applier.apply(
        make_chunk(numbered(2, 1, request_id="a", **told), numbered(3, 2, request_id="a", engine_output_tokens=99),
                   numbered(4, 3, tenant_id="stranger", **told))
    )  # fmt: skip
    assert kept(connection) == {("r1", "b1", "llama"): EngineTokens(10, 15, 4)}


class Line:
    """One boot's events and reports, told by their second."""

    def __init__(self, connection: psycopg.Connection, usage: ChunkApplier, reports: ReplicaChunkApplier) -> None:
        self.connection, self._usage, self._reports = connection, usage, reports
        self._usage_at = self._reports_at = 0

    def events(self, *seqs: int, **changed: object) -> None:
        records = [numbered(self._usage_at + i, seq, **changed) for i, seq in enumerate(seqs)]
        self._usage.apply(make_chunk(*records))
        self._usage_at += len(records)

    def report(self, kind: str, at: float, **more: object) -> None:
        self.records(make_report(self._reports_at, kind, at=after(at), **more))

    def records(self, *records: Record) -> None:
        self._reports.apply(make_chunk(*records, source=REPLICA_SOURCE))
        self._reports_at += len(records)

    def scrape(self, at: float, prompt: int, generated: int, cached: int, *, since: float = -5, **more: object) -> None:
        self.report("engine_counters", at, **scraped(prompt, generated, cached, since=since), **more)

    @property
    def found(self) -> dict[str, tuple[Standing, EngineTokens]]:
        """By boot: standing and difference."""
        return {f.boot_id: (f.standing, f.difference) for f in report(self.connection).comparisons}


def scraped(prompt: int, generated: int, cached: int, *, since: float = -5) -> dict[str, object]:
    model = {"model": "llama", "prompt_tokens": prompt, "generation_tokens": generated, "cached_tokens": cached}
    return {"since": after(since).isoformat(), "models": [model | {"finished": {"stop": generated}}]}


@pytest.fixture
def line(connection: psycopg.Connection, applier: ChunkApplier, replica_applier: ReplicaChunkApplier) -> Line:
    return Line(connection, applier, replica_applier)


def test_a_run_without_kills_is_equal_with_its_itemised_rows_and_a_token_more_is_found(line: Line) -> None:
    line.report("boot", 0)
    line.events(1, 2, engine_output_tokens=8)
    line.events(3, tenant_id="_platform", purpose="probe", input_tokens=6, output_tokens=1, cache_hit_tokens=0)
    assert line.found["b1"][0] is Standing.UNSCRAPED
    line.report("heartbeat", 1, last_seq=3)
    line.scrape(1.5, 20, 16, 8)
    line.report("heartbeat", 4, last_seq=3)
    assert line.found["b1"] == (Standing.NOT_YET, EngineTokens(-6, -1, 0))
    line.scrape(5, 26, 17, 8)
    assert line.found["b1"] == (Standing.EQUAL, EngineTokens())
    line.scrape(6, 26, 18, 8)
    line.report("heartbeat", 7, last_seq=3)
    assert line.found["b1"] == (Standing.DIFFERS, EngineTokens(0, 1, 0))
    (found,) = report(line.connection).comparisons
    assert (found.events, found.itemised) == (EngineTokens(20, 16, 8), EngineTokens(6, 1, 0))


def test_a_killed_boot_lists_its_difference_and_its_requests_add_up_once_recovery_has_spoken(line: Line) -> None:
    line.events(1)
    line.report("heartbeat", 1, last_seq=1, started=3, ended=1, open=2)
    line.scrape(2, 30, 29, 4)
    line.events(2, 3, status="lost", usage_source="estimate", output_tokens=9)
    line.report("farewell", 60, last_seq=3, started=3, ended=1)
    assert line.found["b1"] == (Standing.CUT_OFF, EngineTokens(0, 6, -8))
    (boot,) = report(line.connection).requests
    assert (boot.requests.lost, boot.requests.unexplained) == (2, 0)


def test_a_request_that_nobody_accounts_for_is_listed(line: Line) -> None:
    line.events(1)
    line.report("farewell", 60, last_seq=1, started=2, ended=1)
    (boot,) = report(line.connection).unexplained
    assert (boot.boot_id, boot.requests.unexplained) == ("b1", 1)


def test_a_restart_is_a_run_of_its_own_and_a_reset_within_a_boot_adds_up(line: Line) -> None:
    line.events(1, 2, 3)
    line.report("heartbeat", 1, last_seq=3)
    line.scrape(1, 20, 10, 8)
    line.scrape(5, 10, 5, 4, since=4)
    line.report("heartbeat", 6, last_seq=3)
    assert line.found["b1"] == (Standing.EQUAL, EngineTokens())
    line.scrape(9, 0, 0, 0, since=8, boot="b2")
    assert line.found["b2"] == (Standing.EQUAL, EngineTokens())


def test_a_boot_that_joins_a_running_engine_has_its_share_from_its_first_scrape(line: Line) -> None:
    line.events(1)
    line.scrape(1, 10, 5, 4)
    line.events(1, 2, boot="b2")
    line.scrape(2, 10, 5, 4, boot="b2")
    line.scrape(9, 30, 15, 12, boot="b2")
    assert line.found == {boot: (Standing.EQUAL, EngineTokens()) for boot in ("b1", "b2")}


def test_late_repeated_and_reordered_scrapes_leave_the_same_rows(line: Line) -> None:
    """A run's rows depend on what was scraped, not on the order, the repetition or the chunks in which it came."""
    truth = [(second, 10 * second, 3 * second, second) for second in range(1, 7)]
    seen = set()
    for seed in range(12):
        chance = random.Random(seed)
        order = [*truth, *chance.sample(truth, 3)]
        chance.shuffle(order)
        records = [
            make_report(line._reports_at + i, "engine_counters", at=after(at), boot=f"b{seed}", **scraped(*tokens))
            for i, (at, *tokens) in enumerate(order)
        ]
        cut = chance.randrange(1, len(records))
        line.records(*records[:cut])
        line.records(*records[cut:])
        row = line.connection.execute(
            "select first_prompt_tokens, prompt_tokens, generation_tokens, cached_tokens, finished::text,"
            " first_scraped_at, scraped_at from usage.engine_counters where boot_id = %s",
            (f"b{seed}",),
        ).fetchall()
        seen.add(tuple(row))
    assert seen == {((10, 60, 18, 6, '{"stop": 18}', after(1), after(6)),)}


def test_a_month_has_the_boots_that_were_heard_of_within_it(line: Line) -> None:
    line.events(1)
    line.report("heartbeat", 1, last_seq=1)
    line.scrape(5, 10, 5, 4)
    connection = line.connection
    assert len(engine_store.report(connection, after(-9), after(9)).comparisons) == 1
    assert engine_store.report(connection, after(9), after(99)).comparisons == ()
    assert engine_store.report(connection, after(-99), after(-9)).comparisons == ()
