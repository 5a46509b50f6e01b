"""`tollbook streams`: from Kafka into the windows."""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Final

import psycopg
import typer
from rich.text import Text

from console import session, witnesses
from console.output import AsCsv, AsJson, document, err, listing, out
from serving_adapter.topic_check import require_fit
from serving_adapter.topics import REPLICAS, USAGE
from streams import (
    archive,
    chunk_intervals,
    completeness_store,
    engine_store,
    hypertables,
    ingest_rules,
    quarantine,
    retention_store,
    sources,
    status,
)
from streams import rebuild as rebuilding
from streams.retention import Forgotten, Retention
from streams.schema import check
from streams.settings import CHUNK_MESSAGES, RetentionSettings
from streams.sources import Feed, Log
from streams.windows import WINDOW_SUMS

WATCH_EVERY_S: Final = 2.0
STEP_AGAIN_S: Final = 0.5
GAPS_SHOWN: Final = 20
PARTITION_COLUMNS: Final = (
    "partition", "next_offset", "end_offset", "lag", "applied", "duplicates", "quarantined", "last_applied_at",
)  # fmt: skip
GAP_COLUMNS: Final = ("replica_id", "boot_id", "first_number", "last_number", "missing", "since", "alerted_at")

app = typer.Typer(help="From Kafka into the windows.", no_args_is_help=True, add_completion=False)


@app.command()
def run(
    drain: Annotated[bool, typer.Option("--drain", help="Stop when all that is in the topic now is applied.")] = False,
    chunk: Annotated[int, typer.Option(min=1, max=10_000, help="Messages a transaction, at most.")] = CHUNK_MESSAGES,
    dev: session.Dev = False,
    instance: Annotated[
        str | None, typer.Option(help="This worker's own name: restarted, it has its partitions back at once.")
    ] = None,
) -> None:
    """Run a worker. Start as many as there are cores; stop with Ctrl-C: the chunk in hand is finished first."""
    from streams.worker import StreamsWorker  # Faust takes a second to import

    kafka, database = session.kafka(), session.database()
    for topic in (USAGE, REPLICAS):
        require_fit(kafka, topic, development=dev)
    check(database.url)
    worker = StreamsWorker(
        kafka,
        database,
        drain=drain,
        chunk_messages=chunk,
        instance=instance,
        say=lambda text: err.print(text, markup=False),
    )
    tally = worker.run()
    out.print(
        f"applied {tally.applied:,}, duplicates {tally.duplicates:,}, quarantined {tally.quarantined:,}"
        f" in {tally.chunks:,} chunks"
    )
    if tally.stopped:
        raise typer.Exit(1)


Watch = Annotated[bool, typer.Option("--watch", help="Show it again every 2 seconds, on a terminal, until Ctrl-C.")]


@app.command("status")
def show_status(as_json: AsJson = False, as_csv: AsCsv = False, watch: Watch = False) -> None:
    """How far everything is: lag and counts of each partition, quarantine, complete-to, gaps, boots, witnesses."""
    if watch and (as_json or as_csv or not out.is_terminal):
        raise typer.BadParameter("--watch is for a terminal, without --json and --csv")
    with session.connection() as connection:
        if not watch:
            _show(connection, session.usage_log(), as_json, as_csv)
            return
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                with out.capture() as captured:
                    _show(connection, session.usage_log(), as_json, as_csv)
                out.clear()
                out.print(Text.from_ansi(captured.get()))
                time.sleep(WATCH_EVERY_S)


@app.command("write-off")
def write_off(
    replica_id: Annotated[str, typer.Argument(metavar="REPLICA")],
    boot_id: Annotated[str, typer.Argument(metavar="BOOT")],
    reason: Annotated[str, typer.Option(help="Why nothing more will come of this boot; goes to the audit log.")],
    actor: session.Actor,
    dry_run: session.DryRun = False,
) -> None:
    """Wait no longer for a boot that ended without a farewell or lost events for good. Its gaps stay listed."""
    with session.connection() as connection, session.change(connection, dry_run):
        done = completeness_store.write_off(connection, (replica_id, boot_id), actor=actor, reason=reason)
    if not done:
        out.print(f"boot {boot_id} of {replica_id} is written off already")
    elif dry_run:
        out.print(f"boot {boot_id} of {replica_id} would be written off")
    else:
        out.print(f"boot {boot_id} of {replica_id} is written off")


@app.command()
def rebuild(
    actor: session.Actor,
    start: Annotated[str, typer.Option("--from", help="Beginning, a whole hour in RFC 3339.")],
    end: Annotated[str, typer.Option("--to", help="End, not included, a whole hour in RFC 3339.")],
    apply: Annotated[bool, typer.Option("--apply", help="Replace the windows that differ.")] = False,
    as_json: AsJson = False,
) -> None:
    """Recompute windows from raw events, beside the running ingestion, and show what differs (expected: nothing)."""
    begins, ends = session.whole_hours(start, end)
    with session.connection() as connection:
        found = rebuilding.rebuild(connection, begins, ends, actor=actor, apply=apply)
    rows = [asdict(difference) for difference in found.differences]
    if as_json:
        document(
            {"windows": found.windows, "differences": rows, "sums": WINDOW_SUMS, "replaced": found.replaced,
             "rebanded": found.rebanded}
        )  # fmt: skip
    else:
        if rows:
            listing(rows, ("table", "bucket", "key", "stored", "events"), title=f"sums: {', '.join(WINDOW_SUMS)}")
        done = f", {found.replaced:,} replaced" if apply and rows else ""
        out.print(f"{found.windows:,} windows compared with their events, {len(rows):,} listed that differ{done}")
        if found.rebanded:
            out.print(f"{found.rebanded:,} events have another rating band by today's rules")
    if rows and not apply:
        raise typer.Exit(1)


@app.command()
def retain(
    actor: session.Actor,
    now: Annotated[str | None, typer.Option("--now", help="Take this RFC 3339 time for now (tests only).")] = None,
    dry_run: session.DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Let go of what is old: identities behind the horizon, ended boots, the feed; drop raw events that are archived.

    Workers do the first three by themselves, a little at a time. Safe to repeat; run it daily, after `events archive`.
    """
    from billing import ledger_store, periods
    from billing.database import transaction

    at = session.clock(now)
    with session.engine() as engine, transaction(engine) as books:
        closed = periods.closed_before(ledger_store.books(books))
    with session.connection() as connection:
        retention = Retention(connection, RetentionSettings.from_environment())
        with session.change(connection, dry_run):
            retention_store.set_closed_before(connection, closed, actor=actor)
            dropping = archive.droppable(connection, at)
            done, dropped = (retention.preview(at) if dry_run else Forgotten()), list(dropping.days)
        if not dry_run:
            done = _let_go(retention, at)
            if dropping.days:
                dropped = archive.drop(connection, session.archive(), at, actor=actor, progress=err.print)
    if as_json:
        document(asdict(done) | {"days_dropped": dropped, "closed_before": closed, "hindered_by": dropping.hindered_by})
        return
    would = "would be " if dry_run else ""
    out.print(f"closed before {closed:%Y-%m-%d}" if closed else "no period is closed: nothing is behind the horizon")
    if done.before is not None:
        out.print(f"events from before {done.before:%Y-%m-%d %H:%M} UTC are too old")
        out.print(
            f"{done.weeks:,} weeks of identities, {done.identities:,} other identities and {done.boots:,} boots"
            f" {would}forgotten"
        )
    out.print(f"{done.feed_chunks:,} chunks of the quota feed {would}dropped")
    days = f": {dropped[0]} to {dropped[-1]}" if dropped else ""
    out.print(f"{len(dropped)} days of raw events {would}dropped{days}")
    if dropping.hindered_by:
        out.print(f"not more, because {dropping.hindered_by}")


def _let_go(retention: Retention, at: datetime) -> Forgotten:
    """Steps until nothing is left; a worker's step in between is waited for."""
    done = Forgotten(more=True)
    while done.more:
        step = retention.step(at, at_once=True)
        if step is None:
            time.sleep(STEP_AGAIN_S)
        else:
            done += step
    return done


@app.command("plan-chunks")
def plan_chunks(
    actor: session.Actor,
    events_a_day: Annotated[int, typer.Option("--events-per-day", min=1, help="What is expected.")],
    keys: Annotated[
        int, typer.Option("--keys-per-minute", min=1, help="Windows a minute: tenants times models in use, about.")
    ] = 2000,
    memory_gib: Annotated[float | None, typer.Option("--memory-gib", help="Default: shared_buffers.")] = None,
    share: Annotated[int, typer.Option("--share", min=1, max=100, help="Percent of it for indexes written to.")] = 25,
    apply: Annotated[bool, typer.Option("--apply", help="Set it for chunks to come.")] = False,
    as_json: AsJson = False,
) -> None:
    """Work out how much time a chunk should hold, so that the indexes that are written to stay in memory."""
    with session.connection() as connection:
        memory = int(memory_gib * 2**30) if memory_gib else hypertables.shared_memory(connection)
        stands, edition = hypertables.intervals(connection), hypertables.edition(connection)
        planned = chunk_intervals.plan(chunk_intervals.loads(events_a_day, keys), memory, share)
        rows = [
            {"table": each.table, "hours": each.interval // chunk_intervals.HOUR, "index_mib": each.index_bytes >> 20,
             "fits": each.fits, "hours_now": stands[each.table] // chunk_intervals.HOUR}
            for each in planned
        ]  # fmt: skip
        if apply:
            for each in planned:
                hypertables.set_interval(connection, each.table, each.interval, actor=actor)
            hypertables.compress_after(connection, ingest_rules.horizon(connection).length * 2, actor=actor)
    if as_json:
        document({"edition": edition, "memory_bytes": memory, "chunks": rows, "applied": apply})
        return
    listing(rows, ("table", "hours", "hours_now", "index_mib", "fits"), title=f"{memory >> 20:,} MiB, {share} % of it")
    out.print(
        f"TimescaleDB's edition: {edition}" + ("" if edition == hypertables.COMMUNITY else ", without compression")
    )
    if not all(row["fits"] for row in rows):
        out.print("even the shortest chunk does not fit: give PostgreSQL more memory, or a larger share")


@app.command()
def resolve(
    actor: session.Actor,
    partition: Annotated[int, typer.Option(min=0, help="The partition that stands still.")],
    to: Annotated[int, typer.Option(min=0, help="The offset at which it goes on.")],
    reason: Annotated[str, typer.Option(help="Why; goes to the audit log.")],
    feed: Annotated[Feed, typer.Option(help="Of which topic: usage events, or replicas' reports.")] = "usage",
    dry_run: session.DryRun = False,
) -> None:
    """Let a partition that stands still go on: pass over positions, or begin in a topic that was made again."""
    log = session.feed_log(feed)
    with session.connection() as connection, session.change(connection, dry_run):
        source, stood_at = sources.resolve(connection, log, partition, to, reason=reason, actor=actor)
    out.print(f"{source} {'would go' if dry_run else 'goes'} on at {to} (stood at {stood_at})")


def _show(connection: psycopg.Connection, log: Log, as_json: bool, as_csv: bool) -> None:
    """The status once."""
    rows = [asdict(row) for row in status.partitions(connection, log)]
    refused = quarantine.counts(connection)
    if as_json:
        document(
            {"topic": log.topic, "partitions": rows, "lag": _total_lag(rows), "quarantine": refused}
            | _completeness(connection)
        )
        return
    listing(rows, PARTITION_COLUMNS, as_csv=as_csv, title=log.topic)
    if as_csv:
        return
    for row in rows:
        if row["stopped_because"]:
            err.print(f"partition {row['partition']} STOPPED: {row['stopped_because']}")
    out.print("quarantine: " + (", ".join(f"{reason} {count}" for reason, count in refused.items()) or "empty"))
    _print_completeness(connection)


def _total_lag(rows: list[dict[str, Any]]) -> int | None:
    """Messages that wait in all partitions; None where one partition's position is about another log."""
    lags: list[int | None] = [row["lag"] for row in rows]
    known = [lag for lag in lags if lag is not None]
    return sum(known) if len(known) == len(lags) else None


def _completeness(connection: psycopg.Connection) -> dict[str, Any]:
    """What is known about completeness, for machines."""
    complete = completeness_store.complete_to_overall(connection)
    unnumbered = completeness_store.unnumbered(connection)
    return {
        "complete_to": complete.complete_to,
        "held_back_by": [{"replica_id": replica, "boot_id": boot} for replica, boot in complete.held_back_by],
        "open_gaps": [asdict(gap) for gap in completeness_store.open_gaps(connection)],
        "boots_without_farewell": [
            {"replica_id": boot.replica_id, "boot_id": boot.boot_id, "last_received_at": boot.last_received_at,
             "last_seq": boot.last_seq, "received_through": boot.received_through}
            for boot in completeness_store.broken_off(connection)
        ],
        "unnumbered": {"total": sum(unnumbered.values()), "by_tenant": unnumbered},
        "differences": [
            asdict(found) | {"reported": found.reported._asdict(), "counted": found.counted._asdict()}
            for found in completeness_store.boot_differences(connection)
        ],
        "engines": witnesses.as_document(engine_store.report(connection)),
    }  # fmt: skip


def _print_completeness(connection: psycopg.Connection) -> None:
    """What is known about completeness, for people."""
    complete = completeness_store.complete_to_overall(connection)
    if complete.complete_to is not None:
        out.print(f"complete to: {complete.complete_to:%Y-%m-%d %H:%M:%S.%f} UTC, as far as replicas are known")
    elif complete.held_back_by:
        out.print("complete to: unknown, some replicas number their events but have not reported")
    else:
        out.print("complete to: unknown, no replica has reported")
    unnumbered = sum(completeness_store.unnumbered(connection).values())
    if unnumbered:
        out.print(f"unnumbered: {unnumbered:,} events, whose completeness cannot be proven")
    found = completeness_store.open_gaps(connection, GAPS_SHOWN)
    if found:
        listing([asdict(gap) for gap in found], GAP_COLUMNS, title="open gaps, the oldest first")
    for boot in completeness_store.broken_off(connection)[:GAPS_SHOWN]:
        err.print(
            f"boot {boot.boot_id} of {boot.replica_id} ended without a farewell; last number {boot.last_seq},"
            f" received through {boot.received_through}",
        )
    witnesses.show(engine_store.report(connection))
