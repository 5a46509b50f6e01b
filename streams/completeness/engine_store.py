"""Reading and writing what engines counted, and what events say of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg.types.json import Jsonb

from streams.completeness import completeness_store
from streams.completeness.complete_to import Boot, BootKey
from streams.completeness.engine_witness import (
    BootRequests,
    EngineReport,
    EngineRun,
    EngineTokens,
    RunKey,
    compare,
    named_witnesses,
)
from streams.completeness.witnesses import Requests

STORE: Final = """
    insert into usage.engine_counters as e
        (replica_id, boot_id, model, counting_since, first_prompt_tokens, first_generation_tokens, first_cached_tokens,
         prompt_tokens, generation_tokens, cached_tokens, from_zero, first_scraped_at, scraped_at, finished)
    values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
    on conflict (replica_id, boot_id, model, counting_since) do update set
        first_prompt_tokens = least(e.first_prompt_tokens, excluded.first_prompt_tokens),
        first_generation_tokens = least(e.first_generation_tokens, excluded.first_generation_tokens),
        first_cached_tokens = case when e.cached_tokens is not null and excluded.cached_tokens is not null
            then least(e.first_cached_tokens, excluded.first_cached_tokens) end,
        prompt_tokens = greatest(e.prompt_tokens, excluded.prompt_tokens),
        generation_tokens = greatest(e.generation_tokens, excluded.generation_tokens),
        cached_tokens = case when e.cached_tokens is not null and excluded.cached_tokens is not null
            then greatest(e.cached_tokens, excluded.cached_tokens) end,
        from_zero = e.from_zero or excluded.from_zero,
        finished = case when excluded.scraped_at >= e.scraped_at then excluded.finished else e.finished end,
        first_scraped_at = least(e.first_scraped_at, excluded.first_scraped_at),
        scraped_at = greatest(e.scraped_at, excluded.scraped_at)
"""
# `shared`: another boot had reported the same run before, so that this one's part begins with its first scrape.
_RUNS: Final = """
    select replica_id, boot_id, model, first_prompt_tokens, first_generation_tokens, first_cached_tokens,
           prompt_tokens, generation_tokens, cached_tokens, from_zero, first_scraped_at, scraped_at, finished,
           exists (select from usage.engine_counters as o
                   where o.replica_id = e.replica_id and o.model = e.model and o.counting_since = e.counting_since
                     and o.boot_id <> e.boot_id and o.first_scraped_at < e.first_scraped_at)
    from usage.engine_counters as e order by counting_since
"""
_SUMS: Final = r"""
    select replica_id, boot_id, model, starts_with(tenant_id, '_'), sum(input_tokens + engine_input_beyond)::int8,
           sum(output_tokens + engine_output_beyond)::int8, sum(cache_hit_tokens + engine_cached_beyond)::int8
    from usage.replica_counts where replica_id <> '' group by 1, 2, 3, 4
"""


def store(connection: psycopg.Connection, runs: Mapping[RunKey, EngineRun]) -> None:
    """Write what a chunk says of engines, in order of the keys."""
    rows = [
        (*key, *_cached(run.first, run), *_cached(run.latest, run), run.from_zero, run.first_scraped_at,
         run.scraped_at, Jsonb(dict(run.finished)))
        for key, run in sorted(runs.items(), key=lambda item: item[0])
    ]  # fmt: skip
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(STORE, rows)


def report(connection: psycopg.Connection, begin: datetime | None = None, end: datetime | None = None) -> EngineReport:
    """How engines' counters stand to events, of boots that were heard of within [begin, end)."""
    runs: dict[tuple[str, str, str], list[tuple[EngineRun, bool]]] = defaultdict(list)
    for replica_id, boot_id, model, *values, shared in connection.execute(_RUNS):
        runs[replica_id, boot_id, model].append((_run(values), shared))
    events: dict[tuple[str, str, str], EngineTokens] = {}
    itemised: dict[tuple[str, str, str], EngineTokens] = {}
    for replica_id, boot_id, model, platform, *tokens in connection.execute(_SUMS):
        (itemised if platform else events)[replica_id, boot_id, model] = EngineTokens(*tokens)
    boots = {boot.key: boot for boot in completeness_store.all_boots(connection)}
    broken = {boot.key for boot in completeness_store.broken_off(connection)}
    found, scraped = [], False
    for key in sorted(runs.keys() | events.keys() | itemised.keys()):
        boot = boots.get(key[:2], Boot(*key[:2]))
        mine = runs.get(key, [])
        if not _heard(boot, [run for run, _ in mine], begin, end):
            continue
        scraped = scraped or bool(mine)
        found.append(
            compare(boot, _over(boot, broken), key[2], [run for run, _ in mine], [shared for _, shared in mine],
                    events.get(key, EngineTokens()), itemised.get(key, EngineTokens()))
        )  # fmt: skip
    over = [b for b in boots.values() if _over(b, broken) and b.started is not None and _heard(b, [], begin, end)]
    return EngineReport(named_witnesses(scraped), tuple(found), tuple(_requests(connection, over)))


def _over(boot: Boot, broken: Iterable[BootKey]) -> bool:
    return boot.farewell_at is not None or boot.written_off or boot.key in broken


def _heard(boot: Boot, runs: list[EngineRun], begin: datetime | None, end: datetime | None) -> bool:
    """Whether anything of a boot lies within [begin, end). One that nobody has a time of belongs to all."""
    starts = [at for at in (boot.first_received_at, *(run.first_scraped_at for run in runs)) if at is not None]
    ends = [at for at in (boot.last_received_at, *(run.scraped_at for run in runs)) if at is not None]
    after_end = bool(starts) and end is not None and min(starts) >= end
    before_begin = bool(ends) and begin is not None and max(ends) < begin
    return not after_end and not before_begin


def _requests(connection: psycopg.Connection, boots: list[Boot]) -> list[BootRequests]:
    """What became of the requests of boots that are over. `open` is what recovery has not settled: 0 once it has."""
    rows = connection.execute("select replica_id, boot_id, sum(lost)::int8 from usage.replica_counts group by 1, 2")
    lost = {(row[0], row[1]): row[2] for row in rows}
    return [
        BootRequests(*b.key, Requests(b.started or 0, b.ended or 0, 0, lost.get(b.key, 0)))
        for b in sorted(boots, key=lambda boot: boot.key)
    ]


def _run(values: list[Any]) -> EngineRun:
    first, latest, (from_zero, first_at, at, finished) = values[:3], values[3:6], values[6:]
    known = first[2] is not None
    return EngineRun(
        EngineTokens(first[0], first[1], first[2] or 0), EngineTokens(latest[0], latest[1], latest[2] or 0), known,
        from_zero, first_at, at, finished,
    )  # fmt: skip


def _cached(tokens: EngineTokens, run: EngineRun) -> tuple[int, int, int | None]:
    """Tokens as they are stored: null for cached ones that the engine does not tell."""
    return (tokens.prompt_tokens, tokens.generation_tokens, tokens.cached_tokens if run.cached_known else None)
